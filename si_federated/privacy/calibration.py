"""The least noise of a Gaussian mechanism that keeps to an epsilon."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Optional

import dp_accounting

from si_federated.privacy import accountants, monte_carlo
from si_federated.privacy import record as record_lib
from si_federated.privacy.gaussian import gaussian_noise

if TYPE_CHECKING:
  from si_federated.privacy.accounting import PrivacyRecord

# Renyi accounting asks for too much noise; this part of it is too little, most
# often the first.
_PARTS = (0.6, 0.36, 0.2, 0.1)


def calibrated(
  record: PrivacyRecord, target_epsilon: float, delta: float
) -> PrivacyRecord:
  """Returns the record with the least noise; use `accounting.calibrate`.

  Args:
    record: The mechanism; its noise multiplier does not matter.
    target_epsilon: The epsilon to keep to, positive and finite.
    delta: In (0, 1).

  Raises:
    ValueError: If no noise is enough.
  """
  if record.epsilon_before(delta) >= target_epsilon:
    raise ValueError(
      f'The earlier run has spent epsilon {record.epsilon_before(delta):.4g} '
      f'at delta {delta}, so that nothing of {target_epsilon} is left; raise '
      'the target, or give the earlier run more noise.'
    )
  if record.is_by_monte_carlo:
    return by_samples(record, target_epsilon, delta)
  if record.is_amplified:
    return _by_accountants(record, target_epsilon, delta)
  noise = gaussian_noise(target_epsilon, delta, 1e-10)
  if record.earlier:
    noise = _beside_earlier(record, noise)
  return record.with_noise(record.sensitivity.value * noise)


def _by_accountants(record, target_epsilon, delta):
  """Returns the record with the least noise under Poisson sampling."""

  def search(method, bracket, tolerance):
    return dp_accounting.calibrate_dp_mechanism(
      lambda: accountants.accountant(method),
      lambda z: record.with_noise(z).event(),
      target_epsilon,
      delta,
      bracket,
      tol=tolerance,
    )

  # Renyi accounting is fast and brackets the search by privacy loss
  # distributions, which are slow for little noise.
  guess = record.sensitivity_once
  errors = dp_accounting.mechanism_calibration.NoBracketIntervalFoundError
  try:
    most = search(
      'rdp',
      dp_accounting.LowerEndpointAndGuess(0.02 * guess, guess),
      1e-3 * guess,
    )
    for part in _PARTS:
      bracket = dp_accounting.ExplicitBracketInterval(part * most, 1.001 * most)
      try:
        return record.with_noise(float(search('exact', bracket, 1e-4 * most)))
      except (errors, ValueError):
        if part == _PARTS[-1]:
          raise
  except (errors, ValueError) as e:
    raise ValueError(
      f'No noise multiplier was found for epsilon {target_epsilon} at delta '
      f'{delta}; ask for an epsilon that is neither tiny nor huge.'
    ) from e


def _beside_earlier(record, noise):
  """Returns the noise left by what earlier ones take of that of all."""
  spent = sum((one.mu or 0.0) ** 2 for one in record.earlier)
  return 1 / math.sqrt(noise**-2 - spent)


def by_samples(
  record: PrivacyRecord,
  target_epsilon: float,
  delta: float,
  *,
  samples: Optional[int] = None,
  tolerance: float = 2e-3,
) -> PrivacyRecord:
  """Returns a record with noise for an epsilon by Monte Carlo.

  Args:
    record: Amplified by sampling that takes Monte Carlo; its noise multiplier
      does not matter.
    target_epsilon: The epsilon to keep to, positive and finite.
    delta: In (0, 1).
    samples: Of each figure; fewer are faster, and ask for more noise, but keep
      to the epsilon with the same confidence. None for the usual number.
    tolerance: Of the noise, relative.
  """
  known = _beside_earlier(record, gaussian_noise(target_epsilon, delta, 1e-6))
  own = dataclasses.replace(record, noise_multiplier=1.0, earlier=())
  most = known * own.mixture().most ** 0.5

  def sampled(noise):
    mixture = record.with_noise(noise).mixture()
    return monte_carlo.Sampled(mixture, samples)

  # The search looks at samples of its own, so that those of the result are
  # independent of it but for the few tries below.
  noise = record_lib.least_enough(
    lambda z: z >= most or sampled(z).estimate(delta) <= target_epsilon,
    low=0.0,
    high=most,
    tolerance=tolerance,
  )
  for _ in range(8):
    found = record.with_noise(min(noise, most))
    # A record keeps its own samples, for later.
    bounds = found if samples is None else sampled(found.noise_multiplier)
    if noise >= most or bounds.epsilon(delta) <= target_epsilon:
      return found
    noise *= 1 + 1.5 * tolerance
  return record.with_noise(most)
