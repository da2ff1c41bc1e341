"""Ways to sample the release with a client that pauses after each round.

P is the mixture of `separated_mixture`, Q the noise alone, `m_S` the mean for
the set S of rounds.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from si_federated.privacy import monte_carlo

if TYPE_CHECKING:
  from si_federated.privacy.separated_mixture import SeparatedMixture

# The largest rounds * separation^2 at which `log_pairs` is affordable.
_MOST_PAIRS = 4 * 10**7


def directions(
  mixture: SeparatedMixture,
) -> tuple[tuple[monte_carlo.Direction, ...], ...]:
  """Returns ways to sample, for a client that is removed, and one added."""
  removed: tuple[monte_carlo.Direction, ...] = (_Longer(mixture),)
  if len(mixture.squares) * mixture.amplification.groups**2 <= _MOST_PAIRS:
    removed += (_Shifted(mixture),)
  return removed, (_Added(mixture),)


class _Longer:
  """Samples of P: the mean of (1 - e^(epsilon - loss))+ is delta.

  Stretching the means by a factor 1 + t, and reweighting each set by
  e^(t |m_S|^2 / 2), makes the loss larger. If the new weights sum to Z, the
  weight of a sample is at most Z^(1 + t) e^(-t loss), by Hölder's inequality.
  This suits few rounds, or little noise.
  """

  shifts = (0.0, 1.0, 2.0, 4.0)
  limit = 'range'

  def __init__(self, mixture):
    self._mixture = mixture
    self._log_total = functools.cache(self._log_sum)

  def tilt(self, shift):
    return shift / math.sqrt(self._mixture.mean_square)

  def log_limit(self, tilt, epsilon):
    del epsilon
    return (1 + tilt) * self._log_total(tilt)

  def _log_sum(self, tilt):
    mixture = self._mixture
    found = mixture.log_mean(tilt * mixture.squares[:, None] / 2)
    return float(found[0]) + tilt * mixture.before / 2

  def sample(self, generator, count, tilt):
    mixture = self._mixture
    sets = mixture.draw(generator, count, tilt * mixture.squares / 2)
    products, known = mixture.noisy(generator, sets, 1 + tilt)
    half = mixture.squares[:, None] / 2
    loss = mixture.log_mean(products - half) + known - mixture.before / 2
    if not tilt:
      return loss, np.zeros(count)
    # The exponents of the stretched mean and of the weight of its set.
    products *= 1 + tilt
    products -= ((1 + tilt) ** 2 - tilt) * half
    longer = mixture.log_mean(products) + (1 + tilt) * known
    longer -= ((1 + tilt) ** 2 - tilt) * mixture.before / 2
    return loss, loss - (longer - self._log_total(tilt))


class _Shifted:
  """Samples of P, shifted by s times its mean g.

  Sets are reweighted by e^(s <g, m_S>); let Z be the sum of their weights. The
  weight of a sample is then Z e^(s^2 |g|^2 / 2 - s <g, y>). It is unbounded,
  but the mean square of weight times (1 - e^(epsilon - loss))+ is bounded:
  since (1 - 1/x)+^2 <= c x^k for x = e^(loss - epsilon), it is at most

    Z e^(s^2 |g|^2 / 2) c e^(-k epsilon) E_P[e^(k loss - s <g, y>)].

  The last mean is the mean over k + 1 independent sets of e^(s^2 |g|^2 / 2)
  times the product of e^(<m_i, m_j>) over pairs and of e^(-s <g, m_i>). By
  Finner's inequality, that product's mean is at most the mean over two sets of
  e^(k <m_1, m_2> - s <g, m_1 + m_2>), to the power of (k + 1) / 2. Shifts are
  k, with s = k / 2, which is best for a nearly Gaussian loss: with many rounds
  and much noise.
  """

  shifts = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 18.0)
  limit = 'square'

  def __init__(self, mixture):
    self._mixture = mixture
    rates = np.full(len(mixture.squares), mixture.rate)
    # <g, c_t> for each round.
    self._along = mixture.gram @ rates
    self._square = float(self._along @ rates) + mixture.before
    self._log_moments = functools.cache(self._log_moment)
    self._log_total = functools.cache(self._log_sum)

  def tilt(self, shift):
    return shift / 2

  def _log_sum(self, tilt):
    along = tilt * self._along[:, None]
    found = float(self._mixture.log_mean(along.copy())[0])
    return found + tilt * self._mixture.before

  def _log_moment(self, tilt):
    order = 2 * tilt
    found = self._mixture.log_pairs(order, -tilt * self._along)
    found -= 2 * tilt * self._mixture.before
    found *= (order + 1) / 2
    return found + self._log_total(tilt) + tilt**2 * self._square

  def log_limit(self, tilt, epsilon):
    order = 2 * tilt
    most = 2 * math.log(2 / (order + 2)) + order * math.log(order / (order + 2))
    return most - order * epsilon + self._log_moments(tilt)

  def sample(self, generator, count, tilt):
    mixture = self._mixture
    sets = mixture.draw(generator, count, tilt * self._along)
    products, known = mixture.noisy(generator, sets, 1.0, mixture.rate * tilt)
    log_weights = self._log_total(tilt) + tilt**2 * self._square / 2
    log_weights = log_weights - tilt * (
      mixture.rate * products.sum(axis=0) + known
    )
    products -= mixture.squares[:, None] / 2
    loss = mixture.log_mean(products) + known - mixture.before / 2
    return loss, log_weights


class _Added:
  """Samples of Q; the loss is that of Q over P, which is concave."""

  shifts = (0.001, 0.01, 0.1)
  limit = 'tail'

  def __init__(self, mixture):
    self._mixture = mixture

  def tilt(self, shift):
    del shift
    return 0.0

  def log_limit(self, tilt, epsilon):
    del tilt, epsilon
    return 0.0

  def sample(self, generator, count, tilt):
    del tilt
    mixture = self._mixture
    sets = np.zeros((len(mixture.squares), count))
    products, known = mixture.noisy(generator, sets, 0.0)
    products -= mixture.squares[:, None] / 2
    loss = mixture.before / 2 - known - mixture.log_mean(products)
    return loss, np.zeros(count)
