"""Client schedules, which decide the clients of each round.

`SCHEDULES` lists all of them. Those in this module do not amplify privacy;
those in `sampled_schedules` do. Their common interface is in `cohorts`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Optional

import numpy as np

from si_federated.privacy import cohorts, participation
from si_federated.privacy.amplification import Amplification
from si_federated.privacy.cohorts import Schedule
from si_federated.privacy.sampled_schedules import (
  BallsInBins,
  BMinSep,
  CyclicPoisson,
  Poisson,
)

__all__ = [
  'SCHEDULES',
  'Amplification',
  'BMinSep',
  'BallsInBins',
  'CyclicPoisson',
  'FixedCycles',
  'MinSeparation',
  'Poisson',
  'Schedule',
  'ShuffledEpochs',
  'Uniform',
]


class Uniform(Schedule):
  """Uniform without replacement in each round; promises nothing.

  A cohort of fixed size gives no amplification, and nothing prevents a client
  from taking part in every round.
  """

  def _cohort(self, round_num):
    return self._draw(self.num_clients, round_num)


class ShuffledEpochs(Schedule):
  """A new order of all clients each epoch, without an incomplete last cohort.

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
class FixedCycles(cohorts.Cycles):
  """One order of the clients, repeated.

  Any two rounds of a client are a multiple of `min_separation` apart.
  """

  def __post_init__(self):
    super().__post_init__()
    self._order = self._generator().permutation(self.num_clients)

  def _cohort(self, round_num):
    return self._slice(self._order, self._turn(round_num))


class _TooFewClientsError(ValueError):
  """A round lacks clients."""


@dataclasses.dataclass(eq=False)
class MinSeparation(Schedule):
  """Random check-in by a device timer, as in Gboard (Xu et al. 2023).

  A device is available again `min_separation` rounds after its last
  participation; each cohort is drawn uniformly from the available ones. A round
  depends on earlier ones, which are replayed once and stored: asking for rounds
  in order costs one draw each, and the memory of the cohorts.

  Attributes:
    min_separation: The timer, in rounds.
    max_participations: The number of rounds after which a device retires.
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
          f'Only {len(candidates)} clients remain for round {current}, whose '
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
    """Raises unless all rounds have enough clients; see `Schedule`."""
    size, timer = self.clients_per_round, self.min_separation
    most = self.max_participations
    # In the last round, clients are unavailable that retired, or took part in
    # the timer - 1 rounds before it. At most (timer - 1) size are unavailable
    # for the second reason only, which leaves (rounds - timer) size
    # participations for the first.
    later = max(rounds - timer, 0) * size
    spare = self.num_clients - timer * size
    if most is None or later // most <= spare:
      return
    try:
      self._cohort(rounds)
    except _TooFewClientsError as error:
      times = min(later // (spare + 1) + 1, -(-rounds // timer))
      raise ValueError(
        f'{self.num_clients} clients with at most {most} participations, '
        f'{timer} rounds or more apart, make {len(self._cohorts)} of the '
        f'{rounds} cohorts of {size}; run at most these rounds, or take '
        f'max_participations={times} or {later // most + timer * size} '
        'clients, which suffice for every seed.'
      ) from error

  def contract(self, rounds):
    """Returns the contract that the schedule meets for a number of rounds."""
    fits = -(-rounds // self.min_separation)
    return participation.Participation(
      rounds, min(fits, self.max_participations or fits), self.min_separation
    )


SCHEDULES: dict[str, Callable[..., Schedule]] = {
  'uniform': Uniform,
  'shuffled_epochs': ShuffledEpochs,
  'fixed_cycles': FixedCycles,
  'min_separation': MinSeparation,
  'poisson': Poisson,
  'cyclic_poisson': CyclicPoisson,
  'balls_in_bins': BallsInBins,
  'b_min_sep': BMinSep,
}
