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

from si_federated.privacy import (
  monte_carlo,
  schedules,
  sensitivity,
  separated_directions,
)

# The most and the fewest samples of a figure, and the rounds of all of them.
_MOST_SAMPLES, _LEAST_SAMPLES, _WORK = 2**19, 2**15, 2**22


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
    """How many numbers a sample takes, which limits samples at once."""
    # A number for each round would leave few samples at once with many rounds,
    # and the recursion calls NumPy for each round.
    return len(self.squares) // 8 + 1

  @property
  def samples(self) -> int:
    """The number of samples that takes a second or a few."""
    rounds = len(self.squares)
    return min(_MOST_SAMPLES, max(_LEAST_SAMPLES, _WORK // rounds))

  def directions(self) -> tuple[tuple[monte_carlo.Direction, ...], ...]:
    """Returns ways to sample, for a client that is removed, and one added."""
    return separated_directions.directions(self)

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
