"""Client schedules: which clients take part in a round, and what that earns.

All are pure functions of (seed, round): `cohort(round_num)` is the same when
asked twice, in another order, or in another process. Rounds are numbered from
1. `contract(rounds)` holds for every seed, and `amplification` is set only
where the sampling earns it.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar, Optional

import numpy as np

from si_federated.privacy import participation


@dataclasses.dataclass(frozen=True)
class Amplification:
  """Sampling that makes a mechanism more private than its noise alone.

  Attributes:
    kind: `'poisson'`: each client takes part in each round independently; or
      `'cyclic_poisson'`: the same within fixed groups that take turns
      (Choquette-Choo et al. 2023, section 4); or `'balls_in_bins'`: each client
      draws its group, and takes part whenever that has its turn (Choquette-Choo
      et al. 2024).
    probability: Of a client whose group has its turn; of `'balls_in_bins'`,
      that a client is in a given group.
    groups: The number of groups; 1 for `'poisson'`.
  """

  kind: str
  probability: float
  groups: int = 1

  def __post_init__(self):
    if self.kind not in ('poisson', 'cyclic_poisson', 'balls_in_bins'):
      raise ValueError(
        f'amplification kind is {self.kind!r}; known are poisson, '
        'cyclic_poisson and balls_in_bins.'
      )
    if not 0 < self.probability <= 1:
      raise ValueError(
        f'a sampling probability of {self.probability} is not in (0, 1].'
      )
    if self.groups < 1 or (self.kind == 'poisson' and self.groups != 1):
      raise ValueError(f'{self.kind} cannot have {self.groups} groups.')
    if self.kind == 'balls_in_bins' and self.groups * self.probability > 1.001:
      raise ValueError(
        f'{self.groups} groups cannot have a probability of '
        f'{self.probability} each; together it is at most 1.'
      )


@dataclasses.dataclass(eq=False)
class Schedule(abc.ABC):
  """Decides which clients take part in each round.

  Attributes:
    num_clients: The size of the population.
    clients_per_round: The size of a cohort; its mean for Poisson sampling.
    seed: The client seed of the experiment.
    groups_by_bands: Whether its groups may be chosen together with the number
      of bands of a strategy.
  """

  groups_by_bands: ClassVar[bool] = False
  num_clients: int
  clients_per_round: int
  seed: int

  def __post_init__(self):
    if self.clients_per_round < 1:
      raise ValueError(
        f'clients_per_round is {self.clients_per_round}; a cohort needs a '
        'client.'
      )
    if self.clients_per_round > self.num_clients:
      raise ValueError(
        f'A cohort of {self.clients_per_round} clients needs a population of '
        f'that size; the training split has {self.num_clients}.'
      )

  @property
  def amplification(self) -> Optional[Amplification]:
    """The amplification that the sampling earns, if any."""
    return None

  @property
  def whole_cohorts(self) -> int:
    """The number of whole cohorts in the population."""
    return self.num_clients // self.clients_per_round

  def check_rounds(self, rounds: int) -> None:
    """Raises unless all rounds have their clients.

    Cohorts are a function of the seed, so that this is known before training.

    Args:
      rounds: The number of rounds to run.

    Raises:
      ValueError: If a round lacks clients; the message says which changes give
        all rounds theirs.
    """
    # Schedules of which no client ever retires always have enough of them.
    del rounds

  def cohort(self, round_num: int) -> np.ndarray:
    """Returns the distinct indices of a round's clients.

    Args:
      round_num: The round, from 1 on.

    Raises:
      ValueError: If the round is below 1, or lacks clients.
    """
    if round_num < 1:
      raise ValueError(f'Rounds are numbered from 1; found {round_num}.')
    return self._cohort(round_num)

  def contract(self, rounds: int) -> participation.Participation:
    """Returns the contract that the schedule meets for a number of rounds.

    By default, a client may take part in every round.
    """
    return participation.Participation(rounds, rounds, 1)

  @abc.abstractmethod
  def _cohort(self, round_num: int) -> np.ndarray:
    """Returns a round's clients; the round is at least 1."""

  def _generator(self, *words: int) -> np.random.Generator:
    return np.random.default_rng([self.seed, *words])

  def _draw(self, candidates, round_num):
    return self._generator(round_num).choice(
      candidates, self.clients_per_round, replace=False
    )

  def _slice(self, order, position):
    return order[position * self.clients_per_round :][: self.clients_per_round]

  def _check_separation(self, min_separation: int) -> None:
    if not 1 <= min_separation <= self.whole_cohorts:
      raise ValueError(
        f'min_separation is {min_separation}, but {self.num_clients} clients '
        f'make at most {self.whole_cohorts} cohorts of '
        f'{self.clients_per_round}; take 1 to {self.whole_cohorts}.'
      )


class Uniform(Schedule):
  """Uniform without replacement in each round; promises nothing.

  A cohort of fixed size earns no amplification, and nothing keeps a client
  from taking part in every round.
  """

  def _cohort(self, round_num):
    return self._draw(self.num_clients, round_num)


class ShuffledEpochs(Schedule):
  """A new order of all clients each epoch; leaves out an incomplete cohort.

  A client takes part at most once in an epoch, but can be last in one epoch
  and first in the next, so that its rounds may be adjacent.
  """

  def _cohort(self, round_num):
    epoch, position = divmod(round_num - 1, self.whole_cohorts)
    return self._slice(
      self._generator(epoch).permutation(self.num_clients), position
    )

  def contract(self, rounds):
    """Returns the contract that the schedule meets for a number of rounds."""
    epochs = -(-rounds // self.whole_cohorts)
    separation = rounds if epochs == 1 else 1
    return participation.Participation(
      rounds, epochs, separation, block=self.whole_cohorts
    )


@dataclasses.dataclass(eq=False)
class FixedCycles(Schedule):
  """One order of the clients, repeated.

  Any two rounds of a client are a multiple of `min_separation` apart.

  Attributes:
    min_separation: The rounds in a cycle; all whole cohorts by default.
  """

  min_separation: Optional[int] = None

  def __post_init__(self):
    super().__post_init__()
    if self.min_separation is None:
      self.min_separation = self.whole_cohorts
    self._check_separation(self.min_separation)
    self._order = self._generator().permutation(self.num_clients)

  def _cohort(self, round_num):
    return self._slice(self._order, (round_num - 1) % self.min_separation)

  def contract(self, rounds):
    """Returns the contract that the schedule meets for a number of rounds."""
    assert self.min_separation is not None
    return _cyclic_contract(rounds, self.min_separation)


class _TooFewClientsError(ValueError):
  """A round lacks clients."""


@dataclasses.dataclass(eq=False)
class MinSeparation(Schedule):
  """Random check-in by a device timer, as in Gboard (Xu et al. 2023).

  A device is available again `min_separation` rounds after its last
  participation; each cohort is drawn uniformly from the available ones. A round
  depends on those before, which are replayed once and kept: rounds asked in
  order cost one draw each, and memory is that of the cohorts.

  Attributes:
    min_separation: The timer, in rounds.
    max_participations: After that many rounds, a device retires.
  """

  min_separation: int
  max_participations: Optional[int] = None

  def __post_init__(self):
    super().__post_init__()
    if self.max_participations is not None and self.max_participations < 1:
      raise ValueError('max_participations must be at least 1.')
    self._check_separation(self.min_separation)
    self._cohorts: list[np.ndarray] = []
    self._available = np.ones(self.num_clients, bool)
    self._counts = np.zeros(self.num_clients, np.int64)

  def _cohort(self, round_num):
    while len(self._cohorts) < round_num:
      current = len(self._cohorts) + 1
      if current > self.min_separation:
        returning = self._cohorts[current - self.min_separation - 1]
        if self.max_participations is not None:
          returning = returning[
            self._counts[returning] < self.max_participations
          ]
        self._available[returning] = True
      candidates = np.flatnonzero(self._available)
      if len(candidates) < self.clients_per_round:
        raise _TooFewClientsError(
          f'Only {len(candidates)} clients are left for round {current}, whose '
          f'cohort needs {self.clients_per_round}: the others have taken part '
          f'{self.max_participations} times or too recently; raise '
          'max_participations or run fewer rounds.'
        )
      drawn = self._draw(candidates, current)
      self._available[drawn] = False
      self._counts[drawn] += 1
      self._cohorts.append(drawn)
    return self._cohorts[round_num - 1].copy()

  def check_rounds(self, rounds):
    """Raises unless all rounds have their clients; see `Schedule`."""
    size, timer = self.clients_per_round, self.min_separation
    most = self.max_participations
    # Before the last round, clients are missing that retired or took part in
    # the timer - 1 rounds before. At most (timer - 1) size have only done the
    # latter, which leaves (rounds - timer) size participations for the former.
    later = max(rounds - timer, 0) * size
    spare = self.num_clients - timer * size
    if most is None or later // most <= spare:
      return
    try:
      self._cohort(rounds)
    except _TooFewClientsError as error:
      times = min(later // (spare + 1) + 1, -(-rounds // timer))
      raise ValueError(
        f'{self.num_clients} clients of at most {most} participations, {timer} '
        f'rounds or more apart, make {len(self._cohorts)} of the {rounds} '
        f'cohorts of {size}; run no more than these, or take '
        f'max_participations={times} or {later // most + timer * size} '
        'clients, which are enough for every seed.'
      ) from error

  def contract(self, rounds):
    """Returns the contract that the schedule meets for a number of rounds."""
    fits = -(-rounds // self.min_separation)
    return participation.Participation(
      rounds, min(fits, self.max_participations or fits), self.min_separation
    )


class Poisson(Schedule):
  """Each client takes part in each round independently."""

  @property
  def amplification(self):
    """The amplification that the sampling earns."""
    return Amplification('poisson', self.clients_per_round / self.num_clients)

  def _cohort(self, round_num):
    draws = self._generator(round_num).random(self.num_clients)
    return np.flatnonzero(draws < self.amplification.probability)


@dataclasses.dataclass(eq=False)
class CyclicPoisson(Schedule):
  """Fixed groups take turns; each client of the group joins independently.

  The sampling under which banded strategies are amplified (Choquette-Choo et
  al. 2023, section 4 and theorem 4).

  Attributes:
    min_separation: The number of groups; at least the number of bands of the
      strategy.
  """

  groups_by_bands: ClassVar[bool] = True
  min_separation: int

  def __post_init__(self):
    super().__post_init__()
    self._check_separation(self.min_separation)
    # Theorem 4 needs groups of one size: remaining clients are left out.
    self._group_size = self.num_clients // self.min_separation
    self._order = self._generator().permutation(self.num_clients)

  @property
  def amplification(self):
    """The amplification that the sampling earns."""
    return Amplification(
      'cyclic_poisson',
      self.clients_per_round / self._group_size,
      self.min_separation,
    )

  def _cohort(self, round_num):
    start = (round_num - 1) % self.min_separation * self._group_size
    group = self._order[start : start + self._group_size]
    draws = self._generator(round_num).random(self._group_size)
    return group[draws < self.amplification.probability]

  def contract(self, rounds):
    """Returns the contract that the schedule meets for a number of rounds."""
    return _cyclic_contract(rounds, self.min_separation)


@dataclasses.dataclass(eq=False)
class BallsInBins(Schedule):
  """Fixed cycles whose cohorts are drawn client by client.

  Each client draws one of the groups that take turns, or none, independently of
  the others, once and for all: balls in bins (Choquette-Choo et al. 2024, arXiv
  2410.06266). Unlike the cohorts of `FixedCycles`, whose sizes are fixed, those
  amplify: others' groups tell nothing about a client's.

  Attributes:
    min_separation: The number of groups, the rounds in a cycle; all whole
      cohorts by default.
  """

  min_separation: Optional[int] = None

  def __post_init__(self):
    super().__post_init__()
    if self.min_separation is None:
      self.min_separation = self.whole_cohorts
    self._check_separation(self.min_separation)
    draws = self._generator().random(self.num_clients)
    # Groups from the separation on have no turn.
    self._groups = np.floor(draws / self.amplification.probability)

  @property
  def amplification(self):
    """The amplification that the sampling earns."""
    assert self.min_separation is not None
    return Amplification(
      'balls_in_bins',
      self.clients_per_round / self.num_clients,
      self.min_separation,
    )

  def _cohort(self, round_num):
    turn = (round_num - 1) % self.min_separation
    return np.flatnonzero(self._groups == turn)

  def contract(self, rounds):
    """Returns the contract that the schedule meets for a number of rounds."""
    assert self.min_separation is not None
    return _cyclic_contract(rounds, self.min_separation)


def _cyclic_contract(rounds, separation):
  return participation.Participation(
    rounds, -(-rounds // separation), separation, cyclic=True
  )


SCHEDULES: dict[str, Callable[..., Schedule]] = {
  'uniform': Uniform,
  'shuffled_epochs': ShuffledEpochs,
  'fixed_cycles': FixedCycles,
  'min_separation': MinSeparation,
  'poisson': Poisson,
  'cyclic_poisson': CyclicPoisson,
  'balls_in_bins': BallsInBins,
}
