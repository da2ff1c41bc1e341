"""The interface of client schedules: cohorts, contract and amplification.

All schedules are pure functions of (seed, round): `cohort(round_num)` is the
same in each call and process, whatever the order of calls. Rounds are numbered
from 1. Every seed meets `contract(rounds)`; `amplification` is None unless the
sampling amplifies privacy.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, Optional

import numpy as np

from si_federated.privacy import participation
from si_federated.privacy.amplification import Amplification


@dataclasses.dataclass(eq=False)
class Schedule(abc.ABC):
  """Decides which clients take part in each round.

  Attributes:
    num_clients: The size of the population.
    clients_per_round: The size of a cohort; its mean for Poisson sampling.
    seed: The client seed of the experiment.
    chosen_by_bands: What may be chosen together with the number of a strategy's
      bands: the number of `'groups'`, or the least `'separation'` of a client's
      rounds; empty if nothing may.
  """

  chosen_by_bands: ClassVar[str] = ''
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
    """The amplification by the sampling, if any."""
    return None

  @property
  def whole_cohorts(self) -> int:
    """The number of whole cohorts in the population."""
    return self.num_clients // self.clients_per_round

  def check_rounds(self, rounds: int) -> None:
    """Raises unless all rounds have enough clients.

    Cohorts depend only on the seed, so this is known before training.

    Args:
      rounds: The number of rounds to run.

    Raises:
      ValueError: If a round lacks clients; the message says what to change.
    """
    # Schedules that never retire a client always have enough clients.
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


def cyclic_contract(
  rounds: int, min_separation: int
) -> participation.Participation:
  """Returns the contract of groups that take turns.

  Args:
    rounds: The number of rounds.
    min_separation: The number of groups.
  """
  return participation.Participation(
    rounds, -(-rounds // min_separation), min_separation, cyclic=True
  )


@dataclasses.dataclass(eq=False)
class Cycles(Schedule):
  """Groups of clients that take turns.

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

  def contract(self, rounds):
    """Returns the contract that the schedule meets for a number of rounds."""
    assert self.min_separation is not None
    return cyclic_contract(rounds, self.min_separation)

  def _turn(self, round_num: int) -> int:
    """Returns the number of the group whose turn it is."""
    assert self.min_separation is not None
    return (round_num - 1) % self.min_separation
