"""Epsilon of mixtures of Gaussians by Monte Carlo, with a stated confidence.

A client whose rounds are drawn at random turns the release of a matrix
mechanism into a mixture P of Gaussians, one for each choice of rounds; without
the client it is the Gaussian Q around zero (Choquette-Choo et al. 2024, arXiv
2410.06266). The delta at an epsilon is the mean of a number between 0 and 1,
which is estimated by sampling. Differs from the paper: samples are drawn where
the privacy loss is large, and weighted accordingly, so that fewer of them
resolve a small delta. Their weights are bounded. So Chernoff's bound with the
Kullback-Leibler divergence gives an upper bound on the mean that holds with the
stated confidence for any number of samples.

If C has no negative entry, a client costs most when all its updates are the
same unit vector. This follows from Kahane's inequality (1986). The likelihood
ratio is a sum over means m of weights times e^(<m, z> - |m|^2 / 2). The mean of
a convex function of it, and so delta in both directions, grows with each inner
product of two means. Those are sums of products of entries of C with inner
products of updates, which are at most 1. Updates may depend on earlier
releases: row by row, from the last one, the conditional mean is a convex
function of the terms of the sum, and its mixed second derivatives are not
negative, as the inequality requires.
"""

from __future__ import annotations

import functools
import math
from typing import Optional, Protocol

import numpy as np
from scipy import special

# The confidence of one figure, or jointly of the few tries of a calibration.
CONFIDENCE = 0.999
_FAILURE = (1 - CONFIDENCE) / 10
_SEED = 2410_06266
# How many numbers are drawn at once.
_CHUNK = 2**18
# The probability where an extrapolated tail begins.
_WIDE_TAIL = 0.3


class Direction(Protocol):
  """Samples the privacy loss of one distribution against another.

  Sampling is shifted towards large losses by a tilt, t below, which is a
  function of a shift: usually the shift is the same in standard deviations.

  Attributes:
    shifts: The shifts to try.
    limit: How the mean is bounded: `'range'`, by the largest value of a sample;
      `'square'`, by a bound on the mean of its square; or `'tail'`, if losses
      are minus a convex function of Gaussians: these are sampled without tilt,
      and shifts are probabilities of tails.
  """

  shifts: tuple[float, ...]
  limit: str

  def tilt(self, shift: float) -> float:
    """Returns the tilt of a shift."""

  def log_limit(self, tilt: float, epsilon: float) -> float:
    """Returns the logarithm of the limit.

    Args:
      tilt: The tilt t.
      epsilon: The least loss to consider.

    Returns:
      For `'range'`, that of the largest weight times e^(t loss); for
      `'square'`, that of a bound on the mean square of weight times
      (1 - e^(epsilon - loss))+, which decreases in epsilon.
    """

  def sample(
    self, generator: np.random.Generator, count: int, tilt: float
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns losses and the logarithms of their weights."""


class Mixture(Protocol):
  """A mixture of Gaussians of covariance 1 that can be sampled."""

  @property
  def most(self) -> float:
    """The largest square norm of a mean."""

  @property
  def width(self) -> int:
    """How many numbers a sample takes, which limits samples at once."""

  @property
  def samples(self) -> int:
    """The number of samples that takes a second or a few."""

  def directions(self) -> tuple[tuple[Direction, ...], ...]:
    """Returns ways to sample, for a client that is removed, and one added."""


class Sampled:
  """Upper bounds on a mixture's epsilon, each with the confidence `CONFIDENCE`.

  They hold both for adding and for removing a client. Equal mixtures have equal
  bounds. Samples are kept, so further figures take little time.
  """

  def __init__(self, mixture: Mixture, samples: Optional[int] = None):
    """Initializes the bounds.

    Args:
      mixture: The release with the client; without it, it has mean zero.
      samples: The number of samples; fewer give larger bounds at the same
        confidence. None for as many as take seconds.
    """
    self.mixture = mixture
    self._directions = mixture.directions()
    self._count = samples or mixture.samples
    # For each direction and shift, one from pilot samples and one from others.
    self._bounds: dict[tuple, _Bound] = {}

  def epsilon(self, delta: float) -> float:
    """Returns an upper bound on epsilon; infinite if none was found.

    Args:
      delta: In (0, 1).
    """
    found = [
      self._bound(*self._choice(index, delta)).epsilon(delta)
      for index in range(2)
    ]
    return max(found)

  def estimate(self, delta: float) -> float:
    """Estimates the result of `epsilon` from separate samples, which is faster.

    Choosing arguments by this estimate does not affect the confidence.

    Args:
      delta: In (0, 1).
    """
    found = [
      self._bound(*self._choice(index, delta), pilot=True).epsilon(
        delta, count=self._count
      )
      for index in range(2)
    ]
    return max(found)

  def deltas(self, epsilons: np.ndarray) -> np.ndarray:
    """Returns upper bounds on deltas that hold jointly.

    Args:
      epsilons: Numbers that are not negative.

    Returns:
      A delta for each epsilon.
    """
    failure = _FAILURE / len(epsilons)
    deltas = np.zeros(len(epsilons))
    for index in range(2):
      bound = self._bound(*self._choice(index, 1e-3))
      part = [bound.delta(epsilon, failure) for epsilon in epsilons]
      deltas = np.maximum(deltas, part)
    return np.minimum(deltas, 1.0)

  def _choice(self, index, delta):
    # Choose by pilot samples, which are independent of the bound's. Compare
    # their bounds, since means are too small if samples are shifted too far.
    return min(
      (
        (direction, shift)
        for direction in self._directions[index]
        for shift in direction.shifts
      ),
      key=lambda choice: self._bound(*choice, pilot=True).epsilon(delta),
    )

  def _bound(self, direction, shift, *, pilot=False):
    if (direction, shift, pilot) not in self._bounds:
      anchors = None
      if direction.limit == 'tail' and not pilot:
        found = self._bound(direction, shift, pilot=True).anchors
        anchors = found or (math.inf, math.inf)
      self._bounds[direction, shift, pilot] = _Bound(
        direction,
        shift,
        max(1, _CHUNK // self.mixture.width),
        self._count // 16 if pilot else self._count,
        stream=int(pilot),
        anchors=anchors,
      )
    return self._bounds[direction, shift, pilot]


class _Bound:
  """Bounds delta, and thus epsilon, by samples with one shift."""

  def __init__(self, direction, shift, size, drawn, stream, anchors=None):
    """Initializes the bound.

    Args:
      direction: The direction to sample.
      shift: The shift; see `Direction`.
      size: The number of samples to draw at once.
      drawn: The number of samples.
      stream: The number of the random stream.
      anchors: Two losses beyond which the tail is extrapolated, from a bound of
        another stream; None takes them from this bound.
    """
    self._drawn = drawn
    self._limit = direction.limit
    self._tilt = tilt = direction.tilt(shift)
    self._log_limit = functools.partial(direction.log_limit, tilt)
    generator = np.random.default_rng([_SEED, stream])
    parts = [
      direction.sample(generator, min(size, drawn - start), tilt)
      for start in range(0, drawn, size)
    ]
    loss, log_weights = (np.concatenate(part) for part in zip(*parts))
    # Largest losses first: two running sums then give the sum of weight times
    # (1 - e^(epsilon - loss)) over all losses above an epsilon.
    order = np.argsort(-loss)[: np.count_nonzero(loss > 0)]
    self._falling = -loss[order]
    log_weights = log_weights[order]
    self._scale = float(log_weights.max(initial=-math.inf))
    weights = np.exp(log_weights - self._scale)
    self._weights = np.cumsum(weights)
    self._offsets = np.cumsum(weights * np.exp(self._falling))
    self.anchors = anchors
    if direction.limit == 'tail' and anchors is None:
      places = [int(part * drawn) for part in (shift, _WIDE_TAIL)]
      if places[-1] < len(order):
        self.anchors = tuple(-self._falling[places])

  def delta(self, epsilon, failure=_FAILURE, count=None):
    """Returns the upper bound on delta at an epsilon.

    Args:
      epsilon: A number that is not negative.
      failure: The probability that the bound does not hold.
      count: For an estimate: the number of samples to assume in the bound.
    """
    count = count or self._drawn
    # Each direction gets half of the failure probability.
    limit = math.log(2 / failure) / count
    if self._limit == 'tail':
      return self._tail(epsilon, limit + math.log(3) / count)
    if self._limit == 'square':
      mean = self._mean(epsilon) * math.exp(min(self._scale, 700.0))
      spread = math.exp(min(self._log_limit(epsilon), 700.0))
      return mean + math.sqrt(2 * spread * limit)
    tilt = self._tilt
    # A sample's value is largest at the maximum of (1 - e^(epsilon - loss))
    # e^(-t loss).
    log_most = self._log_limit(epsilon) - tilt * epsilon - math.log1p(tilt)
    if tilt:
      log_most += tilt * math.log(tilt / (1 + tilt))
    mean = self._mean(epsilon)
    if mean:
      mean *= math.exp(min(self._scale - log_most, 700.0))
    return math.exp(min(log_most, 700.0)) * _kl_upper(mean, limit)

  def _mean(self, epsilon):
    """Returns the mean over samples, relative to the largest weight."""
    above = int(np.searchsorted(self._falling, -epsilon))
    if not above:
      return 0.0
    total = self._weights[above - 1]
    total -= math.exp(epsilon) * self._offsets[above - 1]
    return max(float(total), 0.0) / self._drawn

  def _tail(self, epsilon, limit):
    """Bounds delta where losses are minus a convex function of Gaussians.

    By Ehrhard's inequality, the normal quantile of the probability that the
    loss is at least x is then concave in -x. So beyond two anchors it lies
    below the line through them. delta is the integral of e^(epsilon - x) times
    that probability, for which the line gives a Gaussian integral.
    """
    far, near = self.anchors or (math.inf, math.inf)
    if epsilon < far:
      return _kl_upper(self._mean(epsilon), limit)
    parts = [
      np.searchsorted(self._falling, -anchor, side='right') / self._drawn
      for anchor in (far, near)
    ]
    high = float(special.ndtri(_kl_upper(parts[0], limit)))
    low = float(special.ndtri(1 - _kl_upper(1 - parts[1], limit)))
    if low <= high or far <= near:
      return 1.0
    slope = (low - high) / (far - near)
    start = slope * (epsilon - far) - high
    log_rest = 1 / (2 * slope**2) + start / slope
    log_rest += float(special.log_ndtr(-start - 1 / slope))
    return max(float(special.ndtr(-start)) - math.exp(log_rest), 0.0)

  def epsilon(self, delta, count=None):
    """Returns the least epsilon whose bound is at most delta."""

    def too_small(epsilon):
      return self.delta(epsilon, count=count) > delta

    if not too_small(0.0):
      return 0.0
    low, high = 0.0, 1.0
    # Means and ranges both decrease in epsilon, and so does the bound: it fails
    # for the result only if it fails at the true epsilon.
    while too_small(high):
      low, high = high, 2 * high
      if high > 500:
        return math.inf
    while high - low > 1e-5 * high:
      middle = (low + high) / 2
      if too_small(middle):
        low = middle
      else:
        high = middle
    return high


def _kl_upper(mean, limit):
  """Returns the largest number whose divergence from a mean is the limit.

  If the mean is that of `count` numbers between 0 and 1, this is an upper bound
  on their expectation with probability 1 - e^(-count limit) (Hoeffding 1963).
  """
  if mean >= 1:
    return 1.0
  low, high = mean, 1.0
  for _ in range(60):
    middle = (low + high) / 2
    if _divergence(mean, middle) > limit:
      high = middle
    else:
      low = middle
    if high - low <= 1e-6 * high:
      break
  return high


def _divergence(p, q):
  if q >= 1:
    return math.inf
  found = (1 - p) * (math.log1p(-p) - math.log1p(-q))
  if p > 0:
    found += p * math.log(p / q)
  return found
