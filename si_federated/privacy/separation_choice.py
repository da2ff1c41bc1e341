"""The choice of the separation of b-min-separation sampling.

A strategy may have as many bands as rounds of separation (Dong and Ganesh 2026,
arXiv 2602.09338), and wider bands decrease the error.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Optional

import numpy as np

from si_federated.privacy import (
  accounting,
  band_choice,
  calibration,
  schedules,
)

# The samples of a Monte Carlo figure, and the tolerance of the noise.
_SAMPLES, _TOLERANCE = 2**12, 2e-2


def choose_separation(
  rounds: int,
  *,
  num_clients: int,
  clients_per_round: int,
  target_epsilon: float,
  delta: float,
  groups: Optional[int] = None,
  releases: int = 1,
  workload: Optional[np.ndarray] = None,
  objective: str = 'rms',
  cache: Optional[str] = None,
) -> int:
  """Chooses the separation of b-min-separation sampling.

  As many bands as rounds of separation are best. This sampling amplifies wider
  bands more than cyclic Poisson sampling does. So the search starts at the
  number of groups that is best there, and doubles the separation while errors
  at the epsilon, estimated from few samples, decrease.

  Args:
    rounds: The number of rounds.
    num_clients: The size of the population.
    clients_per_round: The mean size of a cohort.
    target_epsilon: The largest acceptable epsilon, finite.
    delta: In (0, 1).
    groups: The result of `band_choice.choose_groups`, if it is known.
    releases: The number of sums that a round releases.
    workload: A, shape `[rounds, rounds]`; prefix sums by default.
    objective: `'rms'` or `'max'` error.
    cache: A folder that keeps optimised strategies.

  Returns:
    The separation; 1, which is Poisson sampling, if correlated noise does not
    pay.
  """
  options: dict[str, Any] = {
    'num_clients': num_clients,
    'clients_per_round': clients_per_round,
    'workload': workload,
    'objective': objective,
    'cache': cache,
  }
  if groups is None:
    best, _ = band_choice.choose_groups(
      rounds,
      target_epsilon=target_epsilon,
      delta=delta,
      releases=releases,
      **options,
    )
    groups = best.groups
  found, least = groups, math.inf
  most = min(num_clients // clients_per_round, rounds)
  separation = groups
  while 1 < separation <= most:
    record = separated_record(rounds, separation=separation, **options)
    error = math.inf
    if record is not None:
      record = calibration.by_samples(
        dataclasses.replace(record, releases=releases),
        target_epsilon,
        delta,
        samples=_SAMPLES,
        tolerance=_TOLERANCE,
      )
      errors = record.strategy.errors(workload)
      error = record.noise_multiplier * (
        errors.rms if objective == 'rms' else errors.maximum
      )
    if error >= least:
      break
    found, least = separation, error
    separation *= 2
  return found


def separated_record(
  rounds: int,
  *,
  separation: int,
  num_clients: int,
  clients_per_round: int,
  **options: Any,
) -> Optional[accounting.PrivacyRecord]:
  """Returns the record of a banded strategy under b-min-separation sampling.

  Args:
    rounds: The number of rounds.
    separation: The separation, and the number of bands.
    num_clients: The size of the population.
    clients_per_round: The mean size of a cohort.
    **options: Options of `band_choice.sampled_record`.

  Returns:
    The record; None if the sampling does not amplify the strategy, because it
    has negative entries.
  """
  record = band_choice.sampled_record(
    rounds,
    groups=separation,
    num_clients=num_clients,
    clients_per_round=clients_per_round,
    **options,
  )
  if record.strategy.has_negative_entries:
    return None
  schedule = schedules.BMinSep(
    num_clients, clients_per_round, 0, min_separation=separation
  )
  return dataclasses.replace(
    record,
    contract=schedule.contract(rounds),
    amplification=schedule.amplification,
  )
