"""The Gaussian mechanism in closed form: epsilon, noise and the best attack."""

from __future__ import annotations

import math

import numpy as np
from dp_accounting.pld import common as pld_common
from dp_accounting.pld import privacy_loss_mechanism
from scipy import special

from si_federated.privacy import record as record_lib


def gaussian_epsilon(noise: float, delta: float) -> float:
  """Returns the exact epsilon of a Gaussian mechanism of sensitivity 1.

  Args:
    noise: The standard deviation divided by the sensitivity.
    delta: In (0, 1).
  """
  record_lib.check_delta(delta)
  if noise <= 0:
    return math.inf
  loss = privacy_loss_mechanism.GaussianPrivacyLoss(noise)
  if loss.get_delta_for_epsilon(0.0) <= delta:
    return 0.0
  # Epsilon from rho is an upper bound, so the root lies below.
  rho = 0.5 / noise**2
  most = rho + 2 * math.sqrt(rho * math.log(1 / delta))
  return float(
    pld_common.inverse_monotone_function(
      loss.get_delta_for_epsilon,
      delta,
      pld_common.BinarySearchParameters(0.0, most, tolerance=1e-9 * most),
    )
  )


def gaussian_true_positive_rates(
  mu: float, false_positive_rates: np.ndarray
) -> np.ndarray:
  """Returns the true positive rates of the best attack on a Gaussian.

  The likelihood ratio test of N(0, 1) against N(mu, 1) (Dong, Roth and Su 2019,
  arXiv 1905.02383, equation 6).

  Args:
    mu: The sensitivity over the standard deviation, not negative.
    false_positive_rates: In (0, 1).

  Returns:
    A true positive rate for each false positive rate.
  """
  return special.ndtr(special.ndtri(false_positive_rates) + mu)


def gaussian_noise(
  target_epsilon: float, delta: float, tolerance: float
) -> float:
  """Returns the noise that an epsilon needs, divided by the sensitivity.

  Args:
    target_epsilon: The largest acceptable epsilon, positive and finite.
    delta: In (0, 1).
    tolerance: The relative error of the result, which is never too small.
  """
  return record_lib.least_enough(
    lambda z: gaussian_epsilon(z, delta) <= target_epsilon,
    low=1e-6,
    tolerance=tolerance,
  )
