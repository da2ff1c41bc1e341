"""The least noise with which a Gaussian mechanism achieves an epsilon."""

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

# Renyi accounting asks for too much noise; these fractions of it are too
# little, usually already the first.
_PARTS = (0.6, 0.36, 0.2, 0.1)


def calibrated(
  record: PrivacyRecord, target_epsilon: float, delta: float
) -> PrivacyRecord:
  """Returns the record with the least noise; use `accounting.calibrate`.

  Args:
    record: The mechanism; its noise multiplier does not matter.
    target_epsilon: The largest acceptable epsilon, positive and finite.
    delta: In (0, 1).

  Raises:
    ValueError: If no noise suffices.
  """
  if record.epsilon_before(delta) >= target_epsilon:
    raise ValueError(
      f'The earlier run has spent epsilon {record.epsilon_before(delta):.4g} '
      f'at delta {delta}, which leaves nothing of {target_epsilon}; raise the '
      'target, or give the earlier run more noise.'
    )
  if record.is_by_monte_carlo:
    return by_samples(record, target_epsilon, delta)
  if record.is_amplified:
    return _by_accountants(record, target_epsilon, delta)
  noise = gaussian_noise(target_epsilon, delta, 1e-10)
  if record.earlier:
    noise = _minus_earlier(record, noise)
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

  # Renyi accounting is fast, and brackets the search with privacy loss
  # distributions, which are slow at low noise.
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


def _minus_earlier(record, noise):
  """Returns this mechanism's noise, from that of all mechanisms together."""
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
  """Returns a record with noise that achieves an epsilon, by Monte Carlo.

  Args:
    record: A mechanism whose epsilon is computed by Monte Carlo; its noise
      multiplier does not matter.
    target_epsilon: The largest acceptable epsilon, positive and finite.
    delta: In (0, 1).
    samples: The number of samples for each figure. Fewer are faster and ask for
      more noise, at the same confidence. None for the usual number.
    tolerance: The relative tolerance of the noise.
  """
  known = _minus_earlier(record, gaussian_noise(target_epsilon, delta, 1e-6))
  own = dataclasses.replace(record, noise_multiplier=1.0, earlier=())
  most = known * own.mixture().most ** 0.5

  def sampled(noise):
    mixture = record.with_noise(noise).mixture()
    return monte_carlo.Sampled(mixture, samples)

  # The search uses separate samples, so that the result depends on its own only
  # through the few tries below.
  noise = record_lib.least_enough(
    lambda z: z >= most or sampled(z).estimate(delta) <= target_epsilon,
    low=0.0,
    high=most,
    tolerance=tolerance,
  )
  for _ in range(8):
    found = record.with_noise(min(noise, most))
    # A record keeps its samples for later figures.
    bounds = found if samples is None else sampled(found.noise_multiplier)
    if noise >= most or bounds.epsilon(delta) <= target_epsilon:
      return found
    noise *= 1 + 1.5 * tolerance
  return record.with_noise(most)
