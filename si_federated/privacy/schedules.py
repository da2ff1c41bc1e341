"""Client schedules: which clients take part in a round, and what that earns.

All are pure in (seed, round): asked twice, or in another process, or in
another order, `cohort(round_num)` is the same. Rounds are numbered from 1.
`contract(rounds)` is what the schedule meets whatever the seed, and
`amplification` is set only where the sampling earns it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Optional

import numpy as np

from si_federated.privacy import participation


@dataclasses.dataclass(frozen=True)
class Amplification:
  """Sampling that makes a mechanism more private than its noise alone.

  Attributes:
    kind: `'poisson'`: each client takes part in each round independently; or
      `'cyclic_poisson'`: the same within fixed groups that take turns
      (Choquette-Choo et al. 2023, section 4).
    probability: Of a client whose group has its turn.
    groups: The number of groups; 1 for `'poisson'`.
  """

  kind: str
  probability: float
  groups: int = 1

  def __post_init__(self):
    if self.kind not in ('poisson', 'cyclic_poisson'):
      raise ValueError(
        f'amplification kind is {self.kind!r}; known are poisson and '
        'cyclic_poisson.'
      )
    if not 0 < self.probability <= 1:
      raise ValueError(
        f'a sampling probability of {self.probability} is not in (0, 1].'
      )
    if self.groups < 1 or (self.kind == 'poisson' and self.groups != 1):
      raise ValueError(f'{self.kind} can not have {self.groups} groups.')


class Schedule:
  """What all schedules share."""

  amplification: Optional[Amplification] = None

  def __init__(self, *, num_clients: int, clients_per_round: int, seed: int):
    """Initializes the schedule.

    Args:
      num_clients: The size of the population.
      clients_per_round: The size of a cohort; its mean for Poisson sampling.
      seed: The client seed of the experiment.
    """
    if clients_per_round < 1:
      raise ValueError(
        f'clients_per_round is {clients_per_round}; a cohort needs a client.'
      )
    if clients_per_round > num_clients:
      raise ValueError(
        f'A cohort of {clients_per_round} clients needs a population of that '
        f'size; the training split has {num_clients}.'
      )
    self._num_clients = num_clients
    self._cohort_size = clients_per_round
    self._seed = seed

  def _generator(self, *words: int) -> np.random.Generator:
    return np.random.default_rng([self._seed, *words])

  def cohort(self, round_num: int) -> np.ndarray:
    """Returns the indices of a round's clients, none twice.

    Args:
      round_num: The round, from 1 on.
    """
    if round_num < 1:
      raise ValueError(f'Rounds are numbered from 1; found {round_num}.')
    return self._cohort(round_num)

  def _cohort(self, round_num: int) -> np.ndarray:
    raise NotImplementedError

  def contract(self, rounds: int) -> participation.Participation:
    """Returns the contract that the schedule meets for a number of rounds."""
    raise NotImplementedError


class Uniform(Schedule):
  """Uniform without replacement in each round; promises nothing.

  A cohort of fixed size earns no amplification, and nothing keeps a client
  from taking part in every round.
  """

  def _cohort(self, round_num):
    return self._generator(round_num).choice(
      self._num_clients, self._cohort_size, replace=False
    )

  def contract(self, rounds):
    """Returns the contract that the schedule meets for a number of rounds."""
    return participation.Participation(rounds, rounds, 1)


class ShuffledEpochs(Schedule):
  """A new order of all clients each epoch; some are left out if it is uneven.

  A client can be last in one epoch and first in the next, so rounds may be
  adjacent, but there is no more than one in an epoch.
  """

  @property
  def rounds_per_epoch(self) -> int:
    """The number of whole cohorts in the population."""
    return self._num_clients // self._cohort_size

  def _cohort(self, round_num):
    epoch, position = divmod(round_num - 1, self.rounds_per_epoch)
    order = self._generator(epoch).permutation(self._num_clients)
    return order[position * self._cohort_size :][: self._cohort_size]

  def contract(self, rounds):
    """Returns the contract that the schedule meets for a number of rounds."""
    epochs = -(-rounds // self.rounds_per_epoch)
    separation = rounds if epochs == 1 else 1
    return participation.Participation(rounds, epochs, separation)


class FixedCycles(Schedule):
  """One order of the clients, gone through again and again.

  Any two rounds of a client are a multiple of `rounds_per_cycle` apart.
  """

  def __init__(
    self,
    *,
    num_clients: int,
    clients_per_round: int,
    seed: int,
    min_separation: Optional[int] = None,
  ):
    """Initializes the schedule.

    Args:
      num_clients: The size of the population.
      clients_per_round: The size of a cohort.
      seed: The client seed of the experiment.
      min_separation: The rounds in a cycle; all whole cohorts by default.
    """
    super().__init__(
      num_clients=num_clients, clients_per_round=clients_per_round, seed=seed
    )
    most = num_clients // clients_per_round
    self.rounds_per_cycle = most if min_separation is None else min_separation
    if not 1 <= self.rounds_per_cycle <= most:
      raise ValueError(
        f'{num_clients} clients make at most {most} cohorts of '
        f'{clients_per_round}; a cycle can not have {min_separation} rounds.'
      )
    self._order = self._generator().permutation(num_clients)

  def _cohort(self, round_num):
    position = (round_num - 1) % self.rounds_per_cycle
    return self._order[position * self._cohort_size :][: self._cohort_size]

  def contract(self, rounds):
    """Returns the contract that the schedule meets for a number of rounds."""
    b = self.rounds_per_cycle
    return participation.Participation(rounds, -(-rounds // b), b, cyclic=True)


class MinSeparation(Schedule):
  """Random check-in by a device timer, as in Gboard (Xu et al. 2023).

  A device is available again `min_separation` rounds after its last
  participation; each cohort is drawn uniformly from those available. Being
  pure in (seed, round) takes a replay of earlier rounds, which is kept: rounds
  asked in order cost one draw each, and memory is that of the cohorts.
  """

  def __init__(
    self,
    *,
    num_clients: int,
    clients_per_round: int,
    seed: int,
    min_separation: int,
    max_participations: Optional[int] = None,
  ):
    """Initializes the schedule.

    Args:
      num_clients: The size of the population.
      clients_per_round: The size of a cohort.
      seed: The client seed of the experiment.
      min_separation: The timer, in rounds.
      max_participations: After that many rounds, a device retires.
    """
    super().__init__(
      num_clients=num_clients, clients_per_round=clients_per_round, seed=seed
    )
    if min_separation < 1:
      raise ValueError(f'min_separation is {min_separation}; it is at least 1.')
    if max_participations is not None and max_participations < 1:
      raise ValueError('max_participations must be at least 1.')
    if min_separation * clients_per_round > num_clients:
      raise ValueError(
        f'{num_clients} clients can not fill cohorts of {clients_per_round} '
        f'with {min_separation} rounds between two of a client; take at most '
        f'{num_clients // clients_per_round}.'
      )
    self._min_separation = min_separation
    self._max_participations = max_participations
    self._cohorts: list[np.ndarray] = []
    self._available = np.ones(num_clients, bool)
    self._counts = np.zeros(num_clients, np.int64)

  def _cohort(self, round_num):
    while len(self._cohorts) < round_num:
      current = len(self._cohorts) + 1
      back = current - self._min_separation
      if back >= 1:
        returning = self._cohorts[back - 1]
        if self._max_participations is not None:
          returning = returning[
            self._counts[returning] < self._max_participations
          ]
        self._available[returning] = True
      candidates = np.flatnonzero(self._available)
      if len(candidates) < self._cohort_size:
        raise ValueError(
          f'Only {len(candidates)} clients are left for round {current}, whose '
          f'cohort needs {self._cohort_size}: the others have taken part '
          f'{self._max_participations} times or too recently; raise '
          'max_participations or run fewer rounds.'
        )
      drawn = self._generator(current).choice(
        candidates, self._cohort_size, replace=False
      )
      self._available[drawn] = False
      self._counts[drawn] += 1
      self._cohorts.append(drawn)
    return self._cohorts[round_num - 1].copy()

  def contract(self, rounds):
    """Returns the contract that the schedule meets for a number of rounds."""
    fits = -(-rounds // self._min_separation)
    return participation.Participation(
      rounds, min(fits, self._max_participations or fits), self._min_separation
    )


class Poisson(Schedule):
  """Each client takes part in each round independently of all else."""

  def __init__(self, *, num_clients: int, clients_per_round: int, seed: int):
    """Initializes the schedule."""
    super().__init__(
      num_clients=num_clients, clients_per_round=clients_per_round, seed=seed
    )
    self.amplification = Amplification(
      'poisson', clients_per_round / num_clients
    )

  def _cohort(self, round_num):
    assert self.amplification
    draws = self._generator(round_num).random(self._num_clients)
    return np.flatnonzero(draws < self.amplification.probability)

  def contract(self, rounds):
    """Returns the contract that the schedule meets for a number of rounds."""
    return participation.Participation(rounds, rounds, 1)


class CyclicPoisson(Schedule):
  """Fixed groups take turns; each client of the group joins independently.

  The sampling under which banded strategies are amplified (Choquette-Choo et
  al. 2023, section 4 and theorem 4).
  """

  def __init__(
    self,
    *,
    num_clients: int,
    clients_per_round: int,
    seed: int,
    min_separation: int,
  ):
    """Initializes the schedule.

    Args:
      num_clients: The size of the population.
      clients_per_round: The mean size of a cohort.
      seed: The client seed of the experiment.
      min_separation: The number of groups; at least the number of bands of
        the strategy.
    """
    super().__init__(
      num_clients=num_clients, clients_per_round=clients_per_round, seed=seed
    )
    if not 1 <= min_separation <= num_clients // clients_per_round:
      raise ValueError(
        f'{num_clients} clients in {min_separation} groups leave fewer than '
        f'{clients_per_round} in a group; take at most '
        f'{num_clients // clients_per_round} groups.'
      )
    self._groups = min_separation
    # Theorem 4 has groups of one size: those who don't fit are left out.
    self._group_size = num_clients // min_separation
    self._order = self._generator().permutation(num_clients)
    self.amplification = Amplification(
      'cyclic_poisson', clients_per_round / self._group_size, min_separation
    )

  def _cohort(self, round_num):
    assert self.amplification
    start = (round_num - 1) % self._groups * self._group_size
    group = self._order[start : start + self._group_size]
    draws = self._generator(round_num).random(self._group_size)
    return group[draws < self.amplification.probability]

  def contract(self, rounds):
    """Returns the contract that the schedule meets for a number of rounds."""
    return participation.Participation(
      rounds, -(-rounds // self._groups), self._groups, cyclic=True
    )


SCHEDULES: dict[str, Callable[..., Schedule]] = {
  'uniform': Uniform,
  'shuffled_epochs': ShuffledEpochs,
  'fixed_cycles': FixedCycles,
  'min_separation': MinSeparation,
  'poisson': Poisson,
  'cyclic_poisson': CyclicPoisson,
}
