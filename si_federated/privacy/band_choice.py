"""The choice of the number of bands of a banded strategy, for a sampling.

More bands never increase the error at a given sensitivity. But cyclic Poisson
sampling needs at least as many groups as bands. With more groups, a client is
sampled with a larger probability in its group's turn, which amplifies privacy
less (Choquette-Choo et al. 2023, arXiv 2306.08153, section 5).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

import numpy as np
from dp_accounting import pld

from si_federated.privacy import (
  accounting,
  comparison,
  participation,
  schedules,
)

# The tolerance relative to the best error, also that of BLT's buffers.
_NEARLY = 1.001
# Ten times coarser than dp_accounting's default: ten times as fast, and within
# 0.05 %.
_INTERVAL = 1e-3
_STEP = 0.8
_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Sampled:
  """A banded strategy under cyclic Poisson sampling, for one epsilon.

  Attributes:
    groups: The number of groups, and of bands.
    noise_multiplier: The least that achieves the epsilon, within 0.1 %.
    max_error: The largest standard deviation of an iterate, in clip norms.
    rms_error: The root mean square over rounds of that standard deviation.
  """

  groups: int
  noise_multiplier: float
  max_error: float
  rms_error: float


def fewest_bands(
  contract: participation.Participation,
  *,
  workload: Optional[np.ndarray] = None,
  objective: str = 'rms',
  cache: Optional[str] = None,
) -> int:
  """Returns the fewest bands whose error is within 0.1 % of the best.

  The error is that of Toeplitz strategies, times their sensitivity. This is for
  participation without amplification, or in a fixed number of groups.

  Args:
    contract: The participation contract; its separation limits the bands.
    workload: A, shape `[n, n]`; prefix sums by default.
    objective: `'rms'` or `'max'` error.
    cache: A folder that keeps optimised strategies.
  """

  def loss(bands):
    strategy = comparison.build(
      'banded_toeplitz',
      contract,
      bands=bands,
      workload=workload,
      objective=objective,
      cache=cache,
    )
    errors = strategy.errors(workload)
    error = errors.rms if objective == 'rms' else errors.maximum
    return error * strategy.sensitivity(contract).value

  # Strategies with fewer bands are special cases of those with more, so the
  # error does not increase with bands.
  most = contract.separation
  enough = _NEARLY * loss(most)
  low, high = 0, most
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if loss(middle) <= enough else (middle, high)
  return high


def choose_groups(
  rounds: int,
  *,
  num_clients: int,
  clients_per_round: int,
  target_epsilon: float,
  delta: float,
  releases: int = 1,
  workload: Optional[np.ndarray] = None,
  objective: str = 'rms',
  cache: Optional[str] = None,
) -> tuple[Sampled, list[Sampled]]:
  """Chooses the number of groups of cyclic Poisson sampling.

  As many bands as groups are best. This tries powers of two and the largest
  possible number, and takes the one with the smallest error at an epsilon.

  Args:
    rounds: The number of rounds.
    num_clients: The size of the population.
    clients_per_round: The mean size of a cohort.
    target_epsilon: The largest acceptable epsilon, finite.
    delta: In (0, 1).
    releases: The number of sums that a round releases.
    workload: A, shape `[rounds, rounds]`; prefix sums by default.
    objective: `'rms'` or `'max'` error.
    cache: A folder that keeps optimised strategies.

  Returns:
    The best one, and all that were tried, by increasing number of groups.
  """
  most = min(num_clients // clients_per_round, rounds)
  found: list[Sampled] = []
  for groups in [2**i for i in range(most.bit_length())] + [most]:
    if found and groups == found[-1].groups:
      continue
    record = sampled_record(
      rounds,
      groups=groups,
      num_clients=num_clients,
      clients_per_round=clients_per_round,
      workload=workload,
      objective=objective,
      cache=cache,
    )
    record = dataclasses.replace(record, releases=releases)
    noise = _nearly_calibrated(record, target_epsilon, delta)
    errors = record.strategy.errors(workload)
    found.append(
      Sampled(groups, noise, noise * errors.maximum, noise * errors.rms)
    )
  key = 'rms_error' if objective == 'rms' else 'max_error'
  return min(found, key=lambda one: getattr(one, key)), found


def sampled_record(
  rounds: int,
  *,
  groups: int,
  num_clients: int,
  clients_per_round: int,
  mechanism: str = 'banded_toeplitz',
  **options: Any,
) -> accounting.PrivacyRecord:
  """Returns the record of a banded strategy under cyclic Poisson sampling.

  Args:
    rounds: The number of rounds.
    groups: The number of groups, and of bands.
    num_clients: The size of the population.
    clients_per_round: The mean size of a cohort.
    mechanism: `'banded_toeplitz'` or `'banded'`.
    **options: Options of `comparison.build`.
  """
  schedule = schedules.CyclicPoisson(
    num_clients, clients_per_round, 0, min_separation=groups
  )
  contract = schedule.contract(rounds)
  strategy = comparison.build(mechanism, contract, bands=groups, **options)
  return accounting.PrivacyRecord(
    strategy, 1.0, contract, schedule.amplification
  )


def _nearly_calibrated(record, target_epsilon, delta):
  """Returns the noise of an amplified record for an epsilon, within 0.1 %."""

  def enough(noise):
    accountant = pld.PLDAccountant(value_discretization_interval=_INTERVAL)
    accountant.compose(record.with_noise(noise).event())
    return accountant.get_epsilon(delta) <= target_epsilon

  # Start at about the noise without amplification, since accounting is fast for
  # large noise.
  high = accounting.calibrate(
    record.without_amplification(), target_epsilon=target_epsilon, delta=delta
  ).noise_multiplier
  while not enough(high):
    high /= _STEP
  while enough(_STEP * high):
    high *= _STEP
  low = _STEP * high
  while high - low > _TOLERANCE * high:
    middle = (low * high) ** 0.5
    low, high = (low, middle) if enough(middle) else (middle, high)
  return high
