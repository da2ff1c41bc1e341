"""The release with a client that pauses after each round, as a mixture.

Under b-min-separation sampling (Dong and Ganesh 2026, arXiv 2602.09338), an
available client takes part in a round with probability p, and then pauses for
b - 1 rounds. The release is a mixture with one Gaussian for each set S of
rounds, whose mean `m_S` is the sum of the columns `c_t` of C for these rounds.
If C has at most b bands, the columns of one set are orthogonal. Then the
likelihood ratio against noise alone is a product of e^(score_t), and its mean
over sets is a recursion from the last round to the first, where L_t is the mean
for a client available at t:

  L_t = (1 - p) L_(t+1) + p e^(score_t) L_(t+b),
  score_t = <c_t, y> - |c_t|^2 / 2.

Differs from the paper: samples are drawn where losses are large, and tails are
extrapolated, so that fewer samples suffice.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from si_federated.privacy import monte_carlo, schedules, sensitivity

# Of a figure, and of the rounds of all its samples.
_MOST_SAMPLES, _LEAST_SAMPLES, _WORK = 2**19, 2**15, 2**22
# The largest rounds * separation^2 at which `log_pairs` is affordable.
_MOST_PAIRS = 4 * 10**7


@dataclasses.dataclass(frozen=True, eq=False)
class SeparatedMixture:
  """A mixture over the sets of rounds of b-min-separation sampling.

  Attributes:
    columns: C relative to the noise, lower triangular with at most
      `amplification.groups` bands and no negative entry, shape `[n, n]`.
    amplification: An amplification of kind `'b_min_sep'`.
    before: The square norm of an earlier release's mean, which all sets share.
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
    """The probability that a client takes part in a given round."""
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
    # As if eight rounds were one: a step of the recursion should be worth it.
    return len(self.squares) // 8 + 1

  @property
  def samples(self) -> int:
    """The number of samples that takes a second or a few."""
    rounds = len(self.squares)
    return min(_MOST_SAMPLES, max(_LEAST_SAMPLES, _WORK // rounds))

  def directions(self) -> tuple[tuple[monte_carlo.Direction, ...], ...]:
    """Returns ways to sample, for a client that is removed, and one added."""
    removed: tuple[monte_carlo.Direction, ...] = (_Longer(self),)
    if len(self.squares) * self.amplification.groups**2 <= _MOST_PAIRS:
      removed += (_Shifted(self),)
    return removed, (_Added(self),)

  @functools.cached_property
  def gram(self) -> np.ndarray:
    """The inner products of the columns, shape `[n, n]`."""
    return self.products(self.columns)

  @functools.cached_property
  def _blocks(self) -> list[tuple[slice, slice, np.ndarray]]:
    """Blocks of rounds, the rows of their columns, and that part of C."""
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

  def noisy(
    self,
    generator: np.random.Generator,
    sets: np.ndarray,
    length: float,
    shift: float = 0.0,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns releases, in the directions of the means.

    Args:
      generator: Draws the noise.
      sets: 1 for each round of a set, else 0, shape `[n, count]`.
      length: The factor of the means.
      shift: The factor of the sum of all columns that is added.

    Returns:
      The inner products of the releases with the columns, shape `[n, count]`,
      and with the mean of the earlier release, shape `[count]`.
    """
    release = generator.standard_normal(sets.shape)
    if length or shift:
      release += self.release(length * sets + shift)
    size = math.sqrt(self.before)
    known = generator.standard_normal(sets.shape[1])
    known += (length + shift / self.rate) * size
    return self.products(release), size * known

  def suffixes(self, scores: np.ndarray) -> np.ndarray:
    """Returns the logarithms of L_t, the means over sets from each round on.

    Args:
      scores: The logarithm of the factor of each round, shape `[n, count]`;
        overwritten.

    Returns:
      The logarithm of L_t in row t, for t < n + b, shape `[n + b, count]`.
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

  def log_pairs(self, order: float, tilts: np.ndarray) -> float:
    """Returns the logarithm of a mean over pairs of independent sets.

    The mean is that of e^(order <m_1, m_2> + the tilts of both sets). It is a
    recursion over rounds, whose state is the number of rounds since each set's
    newest one: of each set, only that column can overlap later ones.

    Args:
      order: A number that is not negative.
      tilts: The tilt of each round, shape `[n]`; a set's tilt is their sum.
    """
    pause, chance = self.amplification.groups, self.amplification.probability
    first = self.amplification.first_available
    # Indexed by the rounds since the newest one, 0 after the pause. At first,
    # in the stationary state, both sets are independent.
    chances = np.outer(first, first)
    ages = np.arange(1, pause)
    new = min(1, pause - 1)
    total = order * self.before
    for t, tilt in enumerate(tilts):
      near = np.where(ages <= t, self.gram[t, np.maximum(t - ages, 0)], 0.0)
      both = order * self.gram[t, t] + 2 * tilt
      one = np.concatenate([[0.0], order * near]) + tilt
      top = max(both, float(one.max()), 0.0)
      joins = chances[0] * chance * np.exp(one - top)
      joins[0] *= 1 - chance
      meets = float(chances[0, 0]) * chance**2 * math.exp(both - top)
      chances *= math.exp(-top)
      chances[0] *= 1 - chance
      chances[:, 0] *= 1 - chance
      chances = _aged(_aged(chances).T).T
      joins = _aged(joins)
      chances[new] += joins
      chances[:, new] += joins
      chances[new, new] += meets
      scale = float(chances.sum())
      chances /= scale
      total += math.log(scale) + top
    return total

  def draw(
    self, generator: np.random.Generator, count: int, tilts: np.ndarray
  ) -> np.ndarray:
    """Draws sets with probabilities reweighted by e^(the sum of their tilts).

    Args:
      generator: Draws the sets.
      count: The number of sets.
      tilts: The tilt of each round, shape `[n]`; zeros do not reweight.

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


def _aged(chances):
  """Returns the chances by age one round later, without new participations."""
  if len(chances) == 1:
    return chances
  found = np.zeros_like(chances)
  found[0] = chances[0] + chances[-1]
  found[2:] = chances[1:-1]
  return found


def _log(values):
  with np.errstate(divide='ignore'):
    return np.log(values)
