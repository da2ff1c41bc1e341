"""The release to a client that pauses after each round, as a mixture.

Under b-min-separation sampling (Dong and Ganesh 2026, arXiv 2602.09338), a
client that is available takes part in a round with probability p, and then
pauses for b - 1 rounds. The release is a mixture of one Gaussian for each set S
of rounds, of mean `m_S`, the sum of the columns `c_t` of C. If C has at most b
bands, the columns of one set are orthogonal, so that the likelihood ratio
against noise is a product of e^(score_t), and its mean over sets is a recursion
from the last round to the first, where L_t is that of a client available at t:

  L_t = (1 - p) L_(t+1) + p e^(score_t) L_(t+b),
  score_t = <c_t, y> - |c_t|^2 / 2.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from si_federated.privacy import schedules, sensitivity


@dataclasses.dataclass(frozen=True, eq=False)
class SeparatedMixture:
  """A mixture over the sets of rounds of b-min-separation sampling.

  Attributes:
    columns: C relative to the noise, lower triangular with at most
      `amplification.groups` bands and no negative entry, shape `[n, n]`.
    amplification: Of the kind `'b_min_sep'`.
    before: The square norm of a mean of its own that all sets have.
  """

  columns: np.ndarray
  amplification: schedules.Amplification
  before: float = 0.0

  def __post_init__(self):
    if np.tril(self.columns, -self.amplification.groups).any():
      raise ValueError(
        f'C has more than {self.amplification.groups} bands, the separation '
        'of rounds; take fewer bands or a larger min_separation.'
      )

  @functools.cached_property
  def squares(self) -> np.ndarray:
    """The square norm of each round's column."""
    return np.einsum('ij,ij->j', self.columns, self.columns)

  @property
  def rate(self) -> float:
    """The probability to take part in a round."""
    amplification = self.amplification
    return float(amplification.probability * amplification.first_available[0])

  @property
  def mean_square(self) -> float:
    """The mean square norm of the means."""
    return self.before + self.rate * float(self.squares.sum())

  @property
  def most(self) -> float:
    """The largest square norm of a mean."""
    separation = self.amplification.groups
    return self.before + float(
      sensitivity.heaviest_pattern(
        self.squares, -(-len(self.squares) // separation), separation
      )
    )

  @property
  def width(self) -> int:
    """The numbers that a sample takes."""
    return len(self.squares) + 1

  @property
  def work(self) -> int:
    """The time that a sample takes, in numbers drawn."""
    return 8 * self.width

  def directions(self) -> tuple[_Removed, _Added]:
    """Returns how to sample, for a client that is removed, and one added."""
    return _Removed(self), _Added(self)

  @functools.cached_property
  def _blocks(self) -> list[tuple[slice, slice, np.ndarray]]:
    """Rounds, the rows of their columns, and the part of C in these."""
    lower = np.nonzero(self.columns)
    bands = int(np.max(lower[0] - lower[1], initial=0)) + 1
    size, n = max(bands, 8), len(self.columns)
    blocks = []
    for start in range(0, n, size):
      own = slice(start, min(start + size, n))
      rows = slice(start, min(start + size + bands - 1, n))
      blocks.append((own, rows, self.columns[rows, own]))
    return blocks

  def release(self, sets: np.ndarray) -> np.ndarray:
    """Returns C applied to each column, shape `[n, count]`."""
    found = np.zeros(sets.shape)
    for own, rows, part in self._blocks:
      found[rows] += part @ sets[own]
    return found

  def products(self, release: np.ndarray) -> np.ndarray:
    """Returns C^T applied to each column, shape `[n, count]`."""
    found = np.empty(release.shape)
    for own, rows, part in self._blocks:
      found[own] = part.T @ release[rows]
    return found

  def suffixes(self, scores: np.ndarray) -> np.ndarray:
    """Returns the logarithms of the means over the sets from each round on.

    Args:
      scores: The logarithm of the factor of each round, shape `[n, count]`;
        overwritten.

    Returns:
      That of L_t in row t, for t up to n + b - 1, shape `[n + b, count]`.
    """
    n, pause = len(scores), self.amplification.groups
    chance = self.amplification.probability
    found = np.zeros((n + pause, *scores.shape[1:]))
    for t in reversed(range(n)):
      one = scores[t]
      one += found[t + pause]
      if chance < 1:
        one -= found[t + 1]
        far = np.maximum(one - 700, 0)
        one -= far
        np.log(1 - chance + chance * np.exp(one), out=one)
        one += far
        one += found[t + 1]
      found[t] = one
    return found

  def log_mean(self, scores: np.ndarray) -> np.ndarray:
    """Returns the logarithms of the means over sets, shape `[count]`.

    Args:
      scores: As for `suffixes`; overwritten.
    """
    found = self.suffixes(scores)[: self.amplification.groups]
    return np.logaddexp.reduce(
      found + _log(self.amplification.first_available)[:, None], axis=0
    )

  def draw(
    self, generator: np.random.Generator, count: int, tilts: np.ndarray
  ) -> np.ndarray:
    """Returns sets, drawn with weights of e^(their sum of tilts).

    Args:
      generator: Draws them.
      count: Their number.
      tilts: Of each round, shape `[n]`; zeros for sets as they are.

    Returns:
      1 for each round of a set, else 0, shape `[n, count]`.
    """
    n, pause = len(tilts), self.amplification.groups
    later = self.suffixes(np.array(tilts, np.float64)[:, None])[:, 0]
    first = _log(self.amplification.first_available) + later[:pause]
    first = np.exp(first - first.max())
    waits = generator.choice(pause, size=count, p=first / first.sum())
    sets = np.zeros((n, count))
    for t in range(n):
      chance = self.amplification.probability * math.exp(
        min(tilts[t] + later[t + pause] - later[t], 700.0)
      )
      joins = (waits <= t) & (generator.random(count) < chance)
      sets[t] = joins
      waits[joins] = t + pause
    return sets


class _Removed:
  """Samples of P: the mean of (1 - e^(epsilon - loss))+ is delta.

  With means longer by a factor 1 + t, and weights of sets of e^(t square norm /
  2) times their own, whose sum is Z, the loss is larger. By Hölder's inequality
  the weight of a sample is at most Z^(1 + t) e^(-t loss).
  """

  def __init__(self, mixture):
    self._mixture = mixture

  def tilt(self, shift):
    return shift / math.sqrt(self._mixture.mean_square)

  def log_range(self, tilt, epsilon):
    del epsilon
    return (1 + tilt) * self._log_total(tilt)

  def _log_total(self, tilt):
    mixture = self._mixture
    found = mixture.log_mean(tilt * mixture.squares[:, None] / 2)
    return float(found[0]) + tilt * mixture.before / 2

  def sample(self, generator, count, tilt):
    mixture = self._mixture
    sets = mixture.draw(generator, count, tilt * mixture.squares / 2)
    release = generator.standard_normal(sets.shape)
    release += (1 + tilt) * mixture.release(sets)
    products = mixture.products(release)
    size = math.sqrt(mixture.before)
    known = size * (generator.standard_normal(count) + (1 + tilt) * size)
    half = mixture.squares[:, None] / 2
    loss = mixture.log_mean(products - half) + known - mixture.before / 2
    if not tilt:
      return loss, np.zeros(count)
    # The exponent of a longer mean, and of the weight of its set.
    products *= 1 + tilt
    products -= ((1 + tilt) ** 2 - tilt) * half
    longer = mixture.log_mean(products) + (1 + tilt) * known
    longer -= ((1 + tilt) ** 2 - tilt) * mixture.before / 2
    return loss, loss - (longer - self._log_total(tilt))


class _Added:
  """Samples of Q; the loss is that of Q over P.

  Samples are shifted by t times the mean of P, against it, as in
  `monte_carlo`, with the same bound of their weight.
  """

  def __init__(self, mixture):
    self._mixture = mixture
    whole = mixture.release(np.full((len(mixture.squares), 1), mixture.rate))
    self._towards = whole
    self._norm = float((whole**2).sum()) + mixture.before

  def tilt(self, shift):
    return shift / math.sqrt(self._norm)

  def log_range(self, tilt, epsilon):
    del epsilon
    return tilt * self._mixture.mean_square / 2 + tilt**2 * self._norm / 2

  def sample(self, generator, count, tilt):
    mixture = self._mixture
    release = generator.standard_normal((len(mixture.squares), count))
    release -= tilt * self._towards
    products = mixture.products(release)
    size = math.sqrt(mixture.before)
    known = size * (generator.standard_normal(count) - tilt * size)
    log_weights = tilt * (mixture.rate * products.sum(axis=0) + known)
    log_weights += tilt**2 * self._norm / 2
    products -= mixture.squares[:, None] / 2
    return -(
      mixture.log_mean(products) + known - mixture.before / 2
    ), log_weights


def _log(values):
  with np.errstate(divide='ignore'):
    return np.log(values)
