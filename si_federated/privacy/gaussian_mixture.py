"""Finite mixtures of Gaussians, such as of the groups of balls in bins.

`monte_carlo` samples them and bounds epsilon.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from si_federated.privacy import monte_carlo

# How many numbers are drawn for a figure.
_WORK = 2**25
_MOST_SAMPLES, _LEAST_SAMPLES = 2**19, 2**16
# Candidates for how far sampling is shifted, in standard deviations.
_SHIFTS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianMixture:
  """A mixture of Gaussians of covariance 1, to compare with one around zero.

  Attributes:
    gram: The inner products of the means, relative to the variance of the
      noise, shape `[components, components]`.
    weights: The weights of the components; the rest, up to 1, is the weight of
      a component around zero.
  """

  gram: np.ndarray
  weights: np.ndarray

  def __post_init__(self):
    size = len(self.weights)
    if self.gram.shape != (size, size):
      raise ValueError(
        f'gram has the shape {self.gram.shape}; {size} weights need '
        f'({size}, {size}).'
      )
    if not (self.weights > 0).all() or self.weights.sum() > 1 + 1e-9:
      raise ValueError(
        'weights of a mixture must be positive and their sum at most 1; it is '
        f'{self.weights.sum()}.'
      )

  @property
  def most(self) -> float:
    """The largest square norm of a mean."""
    return float(np.diag(self.gram).max())

  @property
  def width(self) -> int:
    """How many numbers a sample takes, which limits samples at once."""
    return len(self.weights)

  @property
  def samples(self) -> int:
    """The number of samples that takes a second or a few."""
    return min(_MOST_SAMPLES, max(_LEAST_SAMPLES, _WORK // self.width))

  def directions(self) -> tuple[tuple[monte_carlo.Direction, ...], ...]:
    """Returns ways to sample, for a client that is removed, and one added."""
    return (_Removed(self),), (_Added(self),)


class _Removed:
  """Samples of P: the mean of (1 - e^(epsilon - loss))+ is delta.

  Stretching the means by a factor 1 + t makes the loss larger. By the power
  mean inequality, the weight of a sample is at most
  e^(t (1 + t) most / 2 - t loss). If the component around zero has the weight
  r, the same inequality for the others gives an additional factor
  (1 - r)^t (1 - r e^-loss)^-(1 + t).
  """

  shifts = _SHIFTS
  limit = 'range'

  def __init__(self, mixture):
    self._mixture = mixture
    self._log_weights, self._factor, self._rest = _prepared(mixture)
    self._square = np.diag(mixture.gram)

  def tilt(self, shift):
    return shift / math.sqrt(self._mixture.most)

  def log_limit(self, tilt, epsilon):
    factor = 0.0
    if 0 < self._rest < 1:
      factor = tilt * math.log1p(-self._rest)
      factor -= (1 + tilt) * math.log1p(-self._rest * math.exp(-epsilon))
    return tilt * (1 + tilt) * self._mixture.most / 2 + min(factor, 0.0)

  def sample(self, generator, count, tilt):
    gram = self._mixture.gram
    drawn = generator.choice(
      len(gram) + 1, size=count, p=[*self._mixture.weights, self._rest]
    )
    scores = generator.standard_normal((count, self._factor.shape[1]))
    scores = scores @ self._factor.T
    scores += (1 + tilt) * np.vstack([gram, np.zeros(len(gram))])[drawn]
    loss = self._log_ratio(scores, 0.0)
    if not tilt:
      return loss, np.zeros(count)
    return loss, loss - self._log_ratio(scores, tilt)

  def _log_ratio(self, scores, tilt):
    """Returns the log density ratio of the stretched mixture to Q."""
    exponents = (1 + tilt) * scores
    exponents += self._log_weights - (1 + tilt) ** 2 * self._square / 2
    return _log_sum(exponents, self._rest)


class _Added(_Removed):
  """Samples of Q; the loss is that of Q over P.

  Samples are shifted away from the mean of P, by t times that mean. By Jensen's
  inequality, their weight is at most e^(t (mean square norm) / 2 + t^2 (square
  norm of the mean) / 2 - t loss).
  """

  def __init__(self, mixture):
    super().__init__(mixture)
    self._towards = mixture.gram @ mixture.weights
    self._norm = float(mixture.weights @ self._towards)
    self._mean = float(mixture.weights @ self._square)

  def tilt(self, shift):
    return shift / math.sqrt(self._norm)

  def log_limit(self, tilt, epsilon):
    del epsilon
    return tilt * self._mean / 2 + tilt**2 * self._norm / 2

  def sample(self, generator, count, tilt):
    scores = generator.standard_normal((count, self._factor.shape[1]))
    scores = scores @ self._factor.T - tilt * self._towards
    log_weights = tilt * (scores @ self._mixture.weights)
    log_weights += tilt**2 * self._norm / 2
    return -self._log_ratio(scores, 0.0), log_weights


def _prepared(mixture):
  values, vectors = np.linalg.eigh(mixture.gram)
  kept = values > 1e-12 * max(values[-1], 0.0)
  factor = vectors[:, kept] * np.sqrt(values[kept])
  rest = max(1 - float(mixture.weights.sum()), 0.0)
  return np.log(mixture.weights), factor, rest


def _log_sum(exponents, rest):
  """Returns log(rest + sum(exp(exponents))) by row; overwrites exponents."""
  most = exponents.max(axis=1)
  if rest:
    most = np.maximum(most, 0.0)
  exponents -= most[:, None]
  total = np.exp(exponents, out=exponents).sum(axis=1)
  if rest:
    total += rest * np.exp(-most)
  return most + np.log(total)
