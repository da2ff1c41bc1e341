"""Empirical lower bounds on epsilon from canaries in one training run.

Canaries are clients whose updates are independent random directions (Andrew et
al. 2023, arXiv 2302.03098). An independent fair coin decides whether a canary
is a member of the run; the others take part in no round. The score of a canary
measures how much of its direction is in the released models.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special, stats

from si_federated.privacy import accounting, record

# The fractions of canaries about which a guess is made.
_GUESSED = (1.0, 0.5, 0.25, 0.125)


def estimate_epsilon(
  scores: np.ndarray, is_member: np.ndarray, delta: float
) -> float:
  """Estimates epsilon from two normal distributions fitted to scores.

  Algorithm 1 of Andrew et al. 2023. The estimate has no confidence level; its
  error shrinks with the number of canaries.

  Args:
    scores: The scores of all canaries, shape `[canaries]`.
    is_member: Whether each took part, of the same shape.
    delta: In (0, 1).

  Returns:
    The estimate, which may be infinite.

  Raises:
    ValueError: If there are too few scores of a kind.
  """
  inside, outside = _split(scores, is_member, 2)
  return normal_epsilon(
    float(outside.mean()),
    float(outside.std(ddof=1)),
    float(inside.mean()),
    float(inside.std(ddof=1)),
    delta,
  )


def one_run_epsilon(
  scores: np.ndarray,
  is_member: np.ndarray,
  delta: float,
  *,
  confidence: float = 0.95,
) -> float:
  """Returns a lower bound on epsilon at a confidence level.

  One-run auditing of Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846): the
  auditor guesses that the canaries with the highest scores are members, and
  that equally many with the lowest are not. So many right guesses are unlikely
  for any mechanism with a smaller epsilon; this assumes only fair coins. The
  best of four numbers of guesses counts, each at a fourth of the error
  probability.

  Differs from the paper: the error probability is divided among the numbers.

  Args:
    scores: The scores of all canaries, shape `[canaries]`.
    is_member: Whether each took part, by independent coins.
    delta: In (0, 1).
    confidence: In (0, 1).

  Returns:
    The bound, not negative. With m canaries it is at most about log(m).

  Raises:
    ValueError: If arguments are out of range, or there are too few scores.
  """
  record.check_delta(delta)
  scores, is_member = _checked(scores), np.asarray(is_member, bool)
  _split(scores, is_member, 1)
  level = (1 - _check_confidence(confidence)) / len(_GUESSED)
  # The order of equal scores must not depend on membership.
  order = np.argsort(scores, kind='stable')
  best = 0.0
  for fraction in _GUESSED:
    half = int(len(scores) * fraction) // 2
    if not half:
      continue
    right = int(
      is_member[order[-half:]].sum() + (~is_member[order[:half]]).sum()
    )

    def is_plausible(epsilon, half=half, right=right):
      p = one_run_p_value(len(scores), 2 * half, right, epsilon, delta)
      return p > level

    if not is_plausible(0.0):
      found = record.least_enough(is_plausible, limit=1e3, tolerance=1e-9)
      best = max(best, found)
  return best


def one_run_p_value(
  canaries: int, guesses: int, right: int, epsilon: float, delta: float
) -> float:
  """Returns an upper bound on the probability of so many right guesses.

  The main theorem of arXiv 2305.08846, as its appendix computes it.

  Args:
    canaries: The number of canaries, members and others.
    guesses: The number of canaries about which a guess was made.
    right: The number of right guesses, or more.
    epsilon: The epsilon of the mechanism.
    delta: The delta of the mechanism.

  Returns:
    A bound on the probability under any mechanism with that guarantee.
  """
  chance = special.expit(epsilon)
  below = stats.binom.pmf(np.arange(right)[::-1], guesses, chance)
  # The worst case over the number of failures that delta allows.
  spread = np.cumsum(below) / np.arange(1, right + 1)
  worst = spread.max(initial=0.0)
  tail = stats.binom.sf(right - 1, guesses, chance)
  return float(min(tail + 2 * canaries * delta * worst, 1.0))


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
    # exp(epsilon) may overflow even if its product with in_q does not.
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
  is_member: np.ndarray,
  delta: float,
  *,
  confidence: float = 0.95,
  gaussian: bool = False,
) -> float:
  """Returns a lower bound on epsilon from independent scores.

  Half of the scores choose the threshold that best separates members from
  others. On the other half, Clopper-Pearson bounds of the true and false
  positive rates give epsilon >= log((TPR - delta) / FPR). For a Gaussian
  mechanism they bound mu, and so epsilon, far more tightly (Nasr et al. 2023,
  arXiv 2302.07956). As in one-shot auditing with many dimensions, canaries of
  one run count as independent: given the released models, the scores of those
  that did not take part are.

  Args:
    scores: The scores of all canaries, in random order, shape `[canaries]`.
    is_member: Whether each took part.
    delta: In (0, 1).
    confidence: In (0, 1).
    gaussian: Whether the mechanism is Gaussian, with unknown noise.

  Raises:
    ValueError: If arguments are out of range, or there are fewer than four
      scores of a kind.
  """
  record.check_delta(delta)
  level = (1 - _check_confidence(confidence)) / 2
  inside, outside = _split(scores, is_member, 4)

  def bound(members, others, threshold):
    hits, alarms = (members > threshold).sum(), (others > threshold).sum()
    true = _clopper_pearson(hits, len(members), level)[0]
    false = _clopper_pearson(alarms, len(others), level)[1]
    if gaussian:
      return float(special.ndtri(true) - special.ndtri(false))
    return math.log((true - delta) / false) if true > delta else 0.0

  values = np.unique(np.concatenate([inside[::2], outside[::2]]))
  choice = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
  threshold = max(choice, key=lambda t: bound(inside[::2], outside[::2], t))
  found = max(0.0, bound(inside[1::2], outside[1::2], threshold))
  if gaussian and found:
    return accounting.gaussian_epsilon(1 / found, delta)
  return found


def _clopper_pearson(successes, trials, level):
  """Returns bounds of a rate; each fails with probability `level`."""
  k, n = int(successes), trials
  low = special.betaincinv(k, n - k + 1, level) if k else 0.0
  high = special.betaincinv(k + 1, n - k, 1 - level) if k < n else 1.0
  return float(low), float(high)


def _split(scores, is_member, least):
  """Returns the scores of members, and of others."""
  scores, is_member = _checked(scores), np.asarray(is_member, bool)
  if is_member.shape != scores.shape:
    raise ValueError(
      f'scores has shape {scores.shape}, but is_member has shape '
      f'{is_member.shape}; give one of each for each canary.'
    )
  inside, outside = scores[is_member], scores[~is_member]
  if min(len(inside), len(outside)) < least:
    raise ValueError(
      f'Auditing needs at least {least} canaries that took part and as many '
      f'that did not; found {len(inside)} and {len(outside)}.'
    )
  return inside, outside


def _checked(scores):
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 1 or not np.isfinite(scores).all():
    raise ValueError(
      f'Auditing needs finite scores; found an array of shape {scores.shape}.'
    )
  return scores


def _check_confidence(confidence):
  if not 0 < confidence < 1:
    raise ValueError(f'confidence is {confidence}; it must be in (0, 1).')
  return confidence
