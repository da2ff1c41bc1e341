"""Empirical lower bounds on epsilon from canaries in one training run.

Canaries are clients whose updates are independent random directions as long as
the clip norm (Andrew et al. 2023, arXiv 2302.03098). The score of a canary is
the cosine of its direction with the release: the change of the final model, or
the largest cosine over all rounds. Canaries that were never sampled give the
scores of a run without them.
"""

from __future__ import annotations

import math
from typing import Optional

import numpy as np
from scipy import special

from si_federated.privacy import record


def estimate_epsilon(
  scores: np.ndarray,
  delta: float,
  *,
  dimension: Optional[int] = None,
  unseen_scores: Optional[np.ndarray] = None,
) -> float:
  """Estimates epsilon from two normal distributions fitted to scores.

  Algorithm 1 of Andrew et al. 2023. The estimate has no confidence level; its
  error shrinks with the number of canaries.

  Args:
    scores: Of canaries that took part, shape `[canaries]`.
    delta: In (0, 1).
    dimension: The number of weights: cosines of unseen canaries are close to
      normal of mean 0 and variance 1 / dimension.
    unseen_scores: Of canaries that did not take part; needed for scores that
      are the largest of several cosines.

  Returns:
    The estimate, which may be infinite.

  Raises:
    ValueError: If there are too few scores, or neither or both of `dimension`
      and `unseen_scores` are given.
  """
  scores = _checked(scores)
  if (dimension is None) == (unseen_scores is None):
    raise ValueError('Give either dimension or unseen_scores.')
  if dimension is not None:
    mean, std = 0.0, dimension**-0.5
  else:
    unseen = _checked(unseen_scores)
    mean, std = float(unseen.mean()), float(unseen.std(ddof=1))
  return normal_epsilon(
    mean, std, float(scores.mean()), float(scores.std(ddof=1)), delta
  )


def normal_epsilon(
  mean_0: float, std_0: float, mean_1: float, std_1: float, delta: float
) -> float:
  """Returns the epsilon at which two normal distributions differ by delta.

  Args:
    mean_0: The mean of the first.
    std_0: The standard deviation of the first.
    mean_1: The mean of the second.
    std_1: The standard deviation of the second.
    delta: In (0, 1).

  Returns:
    The least epsilon for which both directions' hockey-stick divergences are
    at most delta.
  """
  record.check_delta(delta)
  if not (std_0 > 0 and std_1 > 0):
    return 0.0 if (mean_0, std_0) == (mean_1, std_1) else math.inf
  first, second = (mean_0, std_0), (mean_1, std_1)

  def exceeds(epsilon):
    return (
      _divergence(first, second, epsilon) > delta
      or _divergence(second, first, epsilon) > delta
    )

  if not exceeds(0.0):
    return 0.0
  return record.least_enough(
    lambda epsilon: not exceeds(epsilon), limit=1e6, tolerance=1e-9
  )


def _divergence(p, q, epsilon):
  """Returns the largest P(S) - exp(epsilon) Q(S) over sets S.

  S is where the log ratio of densities, a parabola a x^2 + b x + c, exceeds
  epsilon: a half-line, or the inside or outside of two roots.
  """
  (mean_p, std_p), (mean_q, std_q) = p, q
  # In units of q, so that the parabola is well scaled.
  mean, std = (mean_p - mean_q) / std_q, std_p / std_q
  a = 0.5 - 0.5 / std**2
  b = mean / std**2
  c = -0.5 * mean**2 / std**2 - math.log(std) - epsilon

  def difference(low, high):
    in_p = _between((low - mean) / std, (high - mean) / std)
    in_q = _between(low, high)
    if not in_q:
      return in_p
    # exp(epsilon) alone may overflow where its product with in_q does not.
    return in_p - math.exp(min(epsilon + math.log(in_q), 700.0))

  if abs(a) < 1e-12:
    if b == 0:
      return 0.0
    root = -c / b
    return difference(root, math.inf) if b > 0 else difference(-math.inf, root)
  discriminant = b * b - 4 * a * c
  if discriminant <= 0:
    return 1 - math.exp(min(epsilon, 700.0)) if a > 0 else 0.0
  half = -0.5 * (b + math.copysign(math.sqrt(discriminant), b))
  low, high = sorted((half / a, c / half))
  if a < 0:
    return difference(low, high)
  return difference(-math.inf, low) + difference(high, math.inf)


def _between(low, high):
  """Returns the standard normal probability of an interval."""
  if low > 0:
    # The lower tail has no rounding error.
    low, high = -high, -low
  return float(special.ndtr(high) - special.ndtr(low))


def epsilon_lower_bound(
  scores: np.ndarray,
  unseen_scores: np.ndarray,
  delta: float,
  *,
  confidence: float = 0.95,
) -> float:
  """Returns a lower bound on epsilon at a confidence level.

  Every second score chooses the threshold that best separates members from
  others; on the rest, Clopper-Pearson bounds of the true and false positive
  rates give epsilon >= log((TPR - delta) / FPR). Canaries of one run count as
  independent, as one-shot auditing assumes for many dimensions.

  Args:
    scores: Of canaries that took part, in random order.
    unseen_scores: Of canaries that did not, in random order.
    delta: In (0, 1).
    confidence: In (0, 1).

  Raises:
    ValueError: If there are fewer than four scores of a kind.
  """
  if not 0 < confidence < 1:
    raise ValueError(f'confidence is {confidence}; it lies between 0 and 1.')
  record.check_delta(delta)
  scores, unseen = _checked(scores, 4), _checked(unseen_scores, 4)
  level = (1 - confidence) / 2

  def bound(members, others, threshold):
    hits, alarms = (members > threshold).sum(), (others > threshold).sum()
    true = _clopper_pearson(hits, len(members), level)[0]
    false = _clopper_pearson(alarms, len(others), level)[1]
    return math.log((true - delta) / false) if true > delta else 0.0

  values = np.unique(np.concatenate([scores[::2], unseen[::2]]))
  choice = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
  threshold = max(choice, key=lambda t: bound(scores[::2], unseen[::2], t))
  return max(0.0, bound(scores[1::2], unseen[1::2], threshold))


def _clopper_pearson(successes, trials, level):
  """Returns bounds of a rate, each of which fails with probability `level`."""
  k, n = int(successes), trials
  low = special.betaincinv(k, n - k + 1, level) if k else 0.0
  high = special.betaincinv(k + 1, n - k, 1 - level) if k < n else 1.0
  return float(low), float(high)


def _checked(scores, least=2):
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 1 or len(scores) < least or not np.isfinite(scores).all():
    raise ValueError(
      f'Auditing needs at least {least} finite scores; found an array of shape '
      f'{scores.shape}.'
    )
  return scores
