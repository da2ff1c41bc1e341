"""Client schedules whose clients are drawn independently of each other.

This sampling amplifies privacy: whether a client takes part reveals nothing
about the others.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Optional

import numpy as np

from si_federated.privacy import cohorts, participation
from si_federated.privacy.amplification import Amplification


@dataclasses.dataclass(frozen=True, eq=False)
class _Draws:
  """Independent draws of clients, and of guests, up to a maximum size.

  Attributes:
    mean: The mean number of clients that join.
    num_clients: The number of clients.
    most: The largest number that joins; None for any.
    num_guests: The number of guests; without a maximum they are not drawn.
  """

  mean: int
  num_clients: int
  most: Optional[int]
  num_guests: int

  def __post_init__(self):
    if self.most is not None and not self.mean <= self.most <= self.num_clients:
      raise ValueError(
        f'max_cohort_size is {self.most}; take {self.mean} (clients_per_round, '
        f'the mean) to {self.num_clients} (all clients that can be drawn).'
      )

  def amplification(self, kind: str, groups: int = 1) -> Amplification:
    """Returns the amplification by these draws in the turns of a group."""
    everyone = self.num_clients + self.num_guests
    return Amplification(
      kind,
      self.mean / self.num_clients,
      groups,
      max_cohort_size=self.most,
      num_clients=None if self.most is None else everyone,
    )

  def join(
    self, generator: np.random.Generator, *, with_guests: bool = True
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of clients, and of guests, that take part."""
    count = self.num_clients
    if with_guests and self.most is not None:
      count += self.num_guests
    drawn = np.flatnonzero(
      generator.random(count) < self.mean / self.num_clients
    )
    if self.most is not None and len(drawn) > self.most:
      drawn = np.sort(generator.choice(drawn, self.most, replace=False))
    is_client = drawn < self.num_clients
    return drawn[is_client], drawn[~is_client] - self.num_clients


@dataclasses.dataclass(eq=False)
class Poisson(cohorts.Schedule):
  """Each client takes part in each round independently.

  Attributes:
    max_cohort_size: If more clients are drawn, a random choice of this size
      takes part; at least `clients_per_round`. None for no maximum.
    num_guests: The number of further clients without an index, such as the
      canaries of an audit. With a maximum size they are drawn, and take places,
      as clients do; see `guests_of`.
  """

  max_cohort_size: Optional[int] = None
  num_guests: int = 0

  def __post_init__(self):
    super().__post_init__()
    self._draws = _Draws(
      self.clients_per_round,
      self.num_clients,
      self.max_cohort_size,
      self.num_guests,
    )

  @property
  def amplification(self):
    """The amplification by the sampling."""
    return self._draws.amplification('poisson')

  def _cohort(self, round_num):
    return self._draws.join(self._generator(round_num))[0]

  def guests_of(self, round_num: int) -> np.ndarray:
    """Returns the indices of the guests in a round with a maximum size.

    Args:
      round_num: The round, from 1 on.
    """
    return self._draws.join(self._generator(round_num))[1]


@dataclasses.dataclass(eq=False)
class CyclicPoisson(cohorts.Schedule):
  """Fixed groups take turns; each client of the group joins independently.

  This sampling amplifies banded strategies (Choquette-Choo et al. 2023, section
  4 and theorem 4). Truncation to a maximum size changes one round at a time, so
  that the theorem holds with the cost of truncated rounds.

  Attributes:
    min_separation: The number of groups; at least the number of bands of the
      strategy.
    max_cohort_size: As for `Poisson`.
    num_guests: As for `Poisson`; they belong to the first group.
  """

  chosen_by_bands: ClassVar[str] = 'groups'
  min_separation: int
  max_cohort_size: Optional[int] = None
  num_guests: int = 0

  def __post_init__(self):
    super().__post_init__()
    self._check_separation(self.min_separation)
    # Theorem 4 needs groups of equal size, so the remaining clients are unused.
    self._group_size = self.num_clients // self.min_separation
    self._order = self._generator().permutation(self.num_clients)
    self._draws = _Draws(
      self.clients_per_round,
      self._group_size,
      self.max_cohort_size,
      self.num_guests,
    )

  @property
  def amplification(self):
    """The amplification by the sampling."""
    return self._draws.amplification('cyclic_poisson', self.min_separation)

  def _join(self, round_num):
    return self._draws.join(
      self._generator(round_num),
      with_guests=(round_num - 1) % self.min_separation == 0,
    )

  def _cohort(self, round_num):
    start = (round_num - 1) % self.min_separation * self._group_size
    group = self._order[start : start + self._group_size]
    return group[self._join(round_num)[0]]

  def guests_of(self, round_num: int) -> np.ndarray:
    """Returns the indices of the guests in a round with a maximum size.

    Args:
      round_num: The round, from 1 on.
    """
    return self._join(round_num)[1]

  def contract(self, rounds):
    """Returns the contract that the schedule meets for a number of rounds."""
    return cohorts.cyclic_contract(rounds, self.min_separation)


@dataclasses.dataclass(eq=False)
class BallsInBins(cohorts.Cycles):
  """Fixed cycles whose cohorts are drawn client by client.

  Each client draws one of the groups, or none, once and independently of the
  others: balls in bins (Choquette-Choo et al. 2024, arXiv 2410.06266). Unlike
  `FixedCycles`, whose cohorts have a fixed size, this amplifies privacy: other
  clients' groups reveal nothing about a client's.
  """

  def __post_init__(self):
    super().__post_init__()
    draws = self._generator().random(self.num_clients)
    # Clients whose group is `min_separation` or more never take part.
    self._groups = np.floor(draws / self.amplification.probability)

  @property
  def amplification(self):
    """The amplification by the sampling."""
    assert self.min_separation is not None
    return Amplification(
      'balls_in_bins',
      self.clients_per_round / self.num_clients,
      self.min_separation,
    )

  def _cohort(self, round_num):
    return np.flatnonzero(self._groups == self._turn(round_num))


class SeparatedClients:
  """Draws clients that pause after each round; see `BMinSep`."""

  def __init__(
    self,
    num_clients: int,
    amplification: Amplification,
    generator: np.random.Generator,
  ):
    """Initializes clients before the first round.

    Args:
      num_clients: The number of clients.
      amplification: An amplification of kind `'b_min_sep'`.
      generator: Draws the rounds from which they are available.
    """
    self._probability = amplification.probability
    self._pause = amplification.groups
    bounds = np.cumsum(amplification.first_available)[:-1]
    # The number of draws until a client is available.
    self._waits = np.searchsorted(
      bounds, generator.random(num_clients), side='right'
    )

  def draw(self, generator: np.random.Generator) -> np.ndarray:
    """Returns the indices of the next round's clients.

    Args:
      generator: Draws which of the available clients take part.
    """
    joins = generator.random(len(self._waits)) < self._probability
    joins &= self._waits <= 0
    self._waits -= 1
    self._waits[joins] = self._pause - 1
    return np.flatnonzero(joins)


@dataclasses.dataclass(eq=False)
class BMinSep(cohorts.Schedule):
  """Each available client takes part independently, then pauses.

  After a round, a client is not available for the next `min_separation - 1`
  (Dong and Ganesh 2026, arXiv 2602.09338: b-min-separation subsampling).
  Clients start in the stationary state, as if many rounds had gone before, so
  that all cohorts have the same mean size. With a `min_separation` of 1 this is
  Poisson sampling; with the number of all whole cohorts it is balls in bins. A
  round depends on earlier ones, which are replayed once and stored, as in
  `MinSeparation`.

  Attributes:
    min_separation: The least distance between two rounds of a client; at least
      the number of bands of the strategy.
  """

  chosen_by_bands: ClassVar[str] = 'separation'
  min_separation: int

  def __post_init__(self):
    super().__post_init__()
    self._check_separation(self.min_separation)
    self._cohorts: list[np.ndarray] = []
    self._clients = SeparatedClients(
      self.num_clients, self.amplification, self._generator()
    )

  @property
  def amplification(self):
    """The amplification by the sampling."""
    if self.min_separation == 1:
      # No client pauses, so epsilon needs no Monte Carlo.
      return Amplification('poisson', self.clients_per_round / self.num_clients)
    # The rate is probability / (1 + (min_separation - 1) probability).
    others = self.num_clients - (
      (self.min_separation - 1) * self.clients_per_round
    )
    return Amplification(
      'b_min_sep', self.clients_per_round / others, self.min_separation
    )

  def _cohort(self, round_num):
    while len(self._cohorts) < round_num:
      current = len(self._cohorts) + 1
      self._cohorts.append(self._clients.draw(self._generator(current)))
    return self._cohorts[round_num - 1].copy()

  def contract(self, rounds):
    """Returns the contract that the schedule meets for a number of rounds."""
    return participation.Participation(
      rounds, -(-rounds // self.min_separation), self.min_separation
    )
