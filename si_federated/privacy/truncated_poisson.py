"""Poisson sampling whose cohorts are truncated at random to a maximum size.

A client that is drawn into a full cohort displaces another one, so a truncated
cohort can change by two updates. Condition on the number of other clients that
are drawn. If they do not fill the cohort, this is plain Poisson sampling. If
they do, the client replaces a random member with probability r. The release is
a mixture of the two cases, and reveals no more than the release together with
the case ("Tighter Privacy Analysis for Truncated Poisson Sampling", arXiv
2508.15089, as in dp_accounting 0.6.0, with the same numbers).

Truncated cohorts are compared as if one client's update were replaced by
another's: N(0) with weight 1 - r and N(+-2) with weight r. This is an upper
bound both for adding or removing a client and for zeroing its updates.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import dp_accounting
import numpy as np
from dp_accounting import rdp
from dp_accounting.pld import pld_pmf, privacy_loss_distribution
from scipy import special, stats

# Truncations that are rarer than this are ignored.
_NEGLIGIBLE = 1e-100
# The logarithm of the probability mass that a grid of losses need not resolve,
# as in dp_accounting.
_LOG_TAIL = -50
# The grid of Renyi divergences' integrals, in standard deviations of the noise.
_STEP, _REACH = 0.05, 12.0


@dataclasses.dataclass(frozen=True)
class TruncatedPoissonDpEvent(dp_accounting.DpEvent):
  """A Gaussian sum over a Poisson sample that is truncated to a maximum size.

  Attributes:
    num_clients: The size of the population, including the client in question.
    probability: The probability that a client is drawn.
    max_cohort_size: The most clients in a cohort; if more are drawn, a random
      choice of them.
    noise_multiplier: The standard deviation of the noise over the largest norm
      of one client's part.
  """

  num_clients: int
  probability: float
  max_cohort_size: int
  noise_multiplier: float

  @functools.cached_property
  def cut_probability(self) -> float:
    """The probability that other clients fill a cohort, so one more is cut."""
    found = float(
      stats.binom.sf(
        self.max_cohort_size - 1, self.num_clients - 1, self.probability
      )
    )
    return found if found > _NEGLIGIBLE else 0.0

  @functools.cached_property
  def exchange_probability(self) -> float:
    """The probability that a client is in a cohort that others fill."""
    # The mean, given M >= B, of q B / (M + 1) with M others.
    more = stats.binom.sf(
      self.max_cohort_size, self.num_clients, self.probability
    )
    share = self.max_cohort_size / self.num_clients
    return float(more * share / self.cut_probability)

  def deltas(
    self, epsilons: np.ndarray, *, is_removed: bool = True
  ) -> np.ndarray:
    """Returns upper bounds on the delta of one round.

    Args:
      epsilons: Any numbers, also negative.
      is_removed: Whether the client is removed instead of added.

    Returns:
      A delta for each epsilon.
    """
    found = self._drawn.deltas(epsilons, is_removed)
    if self.cut_probability:
      found = (1 - self.cut_probability) * found + (
        self.cut_probability * self._exchanged.deltas(epsilons)
      )
    return found

  def loss_distribution(
    self, interval: float
  ) -> privacy_loss_distribution.PrivacyLossDistribution:
    """Returns a pessimistic privacy loss distribution of one round.

    Args:
      interval: The spacing of its losses.
    """
    return privacy_loss_distribution.PrivacyLossDistribution(
      self._losses(interval, True), self._losses(interval, False)
    )

  def _losses(self, interval: float, is_removed: bool) -> pld_pmf.PLDPmf:
    low, high = (
      self._drawn.loss(x) for x in (-_far(1.0), self._drawn.shift + _far(1.0))
    )
    if not is_removed:
      low, high = -high, -low
    if self.cut_probability:
      reach = self._exchanged.loss(
        self._exchanged.shift + _far(self.cut_probability)
      )
      low, high = min(low, -reach), max(high, reach)
    first, last = math.floor(low / interval), math.ceil(high / interval)
    deltas = self.deltas(
      interval * np.arange(first, last + 1), is_removed=is_removed
    )
    # Rounding must not make delta increase.
    deltas = np.minimum.accumulate(np.clip(deltas, 0, 1))
    return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(
      interval, first, last, deltas
    )

  def renyi(self, orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns upper bounds on the Renyi divergences of one round.

    Args:
      orders: Numbers above 1.

    Returns:
      The bounds for untruncated cohorts, and for the truncated ones.
    """
    accountant = rdp.RdpAccountant(orders)
    accountant.compose(
      dp_accounting.PoissonSampledDpEvent(
        self.probability, dp_accounting.GaussianDpEvent(self.noise_multiplier)
      )
    )
    plain = accountant.rdp
    if not self.cut_probability:
      return plain, plain
    cut = np.array([self._exchanged.log_moment(order) for order in orders])
    with np.errstate(divide='ignore'):
      log_mean = np.logaddexp(
        np.log(self.cut_probability) + cut,
        np.log1p(-self.cut_probability) + (orders - 1) * plain,
      )
    return plain, log_mean / (orders - 1)

  @functools.cached_property
  def _drawn(self):
    return _Drawn(1 / self.noise_multiplier, self.probability)

  @functools.cached_property
  def _exchanged(self):
    return _Exchanged(2 / self.noise_multiplier, self.exchange_probability)


def _far(share: float) -> float:
  """Returns where the tail of a normal of weight `share` becomes negligible."""
  return max(-float(special.ndtri(math.exp(_LOG_TAIL) / (2 * share))), 0.0)


@dataclasses.dataclass(frozen=True)
class _Drawn:
  """A mixture of N(0, 1) with N(shift, 1), and N(0, 1) alone.

  Attributes:
    shift: The shift, positive.
    probability: The weight of the shifted part, in (0, 1].
  """

  shift: float
  probability: float

  @property
  def _logs(self):
    with np.errstate(divide='ignore'):
      return np.log1p(-self.probability), np.log(self.probability)

  def loss(self, x: float) -> float:
    """Returns the privacy loss at x of the mixture over the normal."""
    still, moved = self._logs
    return float(np.logaddexp(still, moved + self.shift * (x - self.shift / 2)))

  def deltas(self, epsilons: np.ndarray, is_removed: bool) -> np.ndarray:
    """Returns exact deltas: of the mixture over the normal if removed."""
    still, moved = self._logs
    losses = np.asarray(epsilons if is_removed else -epsilons, np.float64)
    # The loss decreases to log(1 - probability) as x approaches -inf.
    reached = losses > still
    with np.errstate(divide='ignore', invalid='ignore'):
      gap = np.where(
        reached, losses + np.log(-np.expm1(still - losses)), -np.inf
      )
    x = (gap - moved) / self.shift + self.shift / 2
    if not is_removed:
      left = gap + special.log_ndtr(x)
      right = moved + special.log_ndtr(x - self.shift)
      return np.maximum(np.exp(epsilons + left) - np.exp(epsilons + right), 0)
    left = np.exp(moved + special.log_ndtr(self.shift - x))
    right = np.exp(gap + special.log_ndtr(-x))
    return np.maximum(np.where(reached, left - right, -np.expm1(epsilons)), 0)


@dataclasses.dataclass(frozen=True)
class _Exchanged:
  """Mixtures of N(0, 1) with N(shift, 1), and with N(-shift, 1).

  They are mirror images, so both directions have the same deltas.

  Attributes:
    shift: The shift, positive.
    probability: The weight of the shifted part, in (0, 1).
  """

  shift: float
  probability: float

  def _log_densities(self, x):
    """Returns both log densities, up to the constant of the normal density."""
    still = math.log1p(-self.probability) - x**2 / 2
    moved = math.log(self.probability)
    return (
      np.logaddexp(still, moved - (x - self.shift) ** 2 / 2),
      np.logaddexp(still, moved - (x + self.shift) ** 2 / 2),
    )

  def loss(self, x: float) -> float:
    """Returns the privacy loss at x of the first over the second."""
    first, second = self._log_densities(np.float64(x))
    return float(first - second)

  def deltas(self, epsilons: np.ndarray) -> np.ndarray:
    """Returns the exact delta for each epsilon."""
    still = math.log1p(-self.probability)
    moved = math.log(self.probability)
    # The loss is an odd function of x. It equals epsilon where w = exp(shift x)
    # solves b w^2 - a (exp(epsilon) - 1) w - b exp(epsilon) = 0.
    size = np.abs(epsilons)
    b = moved - self.shift**2 / 2
    with np.errstate(divide='ignore'):
      linear = still + size + np.log(-np.expm1(-size))
    root = np.logaddexp(2 * linear, math.log(4) + size + 2 * b) / 2
    x = np.logaddexp(linear, root) - math.log(2) - b
    x = np.sign(epsilons) * x / self.shift
    rest = still + special.log_ndtr(-x)
    first = np.logaddexp(rest, moved + special.log_ndtr(self.shift - x))
    second = np.logaddexp(rest, moved + special.log_ndtr(-self.shift - x))
    return np.maximum(-np.expm1(epsilons + second - first), 0) * np.exp(first)

  def log_moment(self, order: float) -> float:
    """Returns the Renyi divergence times (order - 1)."""
    most = 2 * order * self.shift + _REACH
    x = np.arange(-self.shift - _REACH, most, _STEP)
    first, second = self._log_densities(x)
    found = special.logsumexp(order * first + (1 - order) * second)
    return float(found + math.log(_STEP) - math.log(2 * math.pi) / 2)
