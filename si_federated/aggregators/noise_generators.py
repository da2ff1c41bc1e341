"""Streams of correlated noise C^-1 z, one row per round, in TensorFlow."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Optional

import numpy as np
import tensorflow as tf

from si_federated.aggregators import keyed_noise, noise_rows
from si_federated.privacy import strategies

# The memory and disk space of more buffers outweigh their speed.
_MAX_KEPT_ROWS = 15

Tensors = list[tf.Tensor]


class Generator(abc.ABC):
  """Makes the noise of each round.

  Attributes:
    num_buffers: The number of its buffers, each of the size of the model.
  """

  num_buffers: int

  @abc.abstractmethod
  def __call__(
    self,
    seed: tf.Tensor,
    t: tf.Tensor,
    buffers: Tensors,
    shapes: Sequence[tf.TensorShape],
  ) -> tuple[Tensors, Tensors]:
    """Returns the noise of a round and the new buffers.

    Args:
      seed: Shape `[2]`, int64.
      t: The round, from 0 on.
      buffers: A tensor of shape `[num_buffers, ...]` for each variable, all
        zero at first.
      shapes: The variables' shapes.
    """


@dataclasses.dataclass(frozen=True, eq=False)
class Regenerated(Generator):
  """Regenerates all rows of z that a round's noise depends on.

  It needs only temporary memory, of twice the model's size. Its time grows with
  the length of the rows: the number of the round for banded and dense
  strategies, up to twice that number for a tree.
  """

  rows: noise_rows.NoiseRows
  num_buffers: int = 0

  def __call__(self, seed, t, buffers, shapes):
    """See `Generator`."""
    begin = tf.gather(tf.constant(self.rows.begins, tf.int64), t)
    end = tf.gather(tf.constant(self.rows.ends, tf.int64), t)
    weights = tf.constant(self.rows.weights, tf.float32)
    columns = self.rows.columns

    def add_row(i, totals):
      if columns is None:
        row = t + 1 - (end - i)
      else:
        row = tf.gather(tf.constant(columns, tf.int64), i)
      weight = tf.gather(weights, i)
      z = keyed_noise.standard_normals(seed, row, shapes)
      return i + 1, [total + weight * part for total, part in zip(totals, z)]

    _, noise = tf.while_loop(
      lambda i, _: i < end,
      add_row,
      (begin, [tf.zeros(shape) for shape in shapes]),
      # Parallel steps would need several rows in memory at once.
      parallel_iterations=1,
    )
    return noise, buffers


@dataclasses.dataclass(frozen=True, eq=False)
class Banded(Generator):
  """Keeps the noise of the last `bands - 1` rounds, and solves C y = z for y.

  Attributes:
    weights: The weights of the stored noises, oldest first, shape
      `[rounds or 1, bands - 1]`; one row if all rounds have the same weights.
    divisors: The diagonal of C, shape `[rounds or 1]`.
  """

  weights: np.ndarray
  divisors: np.ndarray

  @classmethod
  def from_strategy(cls, strategy: strategies.Strategy) -> Banded:
    """Returns the generator of a square strategy."""
    assert not isinstance(strategy, strategies.Tree)
    # One Toeplitz row is enough, since buffers are zero before the first round.
    rounds = range(strategy.rounds)
    if isinstance(strategy, strategies.Toeplitz):
      rounds = rounds[-1:]
    weights = np.zeros((len(rounds), strategy.bands - 1), np.float32)
    divisors = np.zeros(len(rounds), np.float32)
    for i, t in enumerate(rounds):
      row, divisors[i] = strategy.forward_row(t)
      weights[i, strategy.bands - 1 - len(row) :] = row
    return cls(weights, divisors)

  @property
  def num_buffers(self) -> int:  # type: ignore[override]
    """The number of stored noises."""
    return self.weights.shape[1]

  def __call__(self, seed, t, buffers, shapes):
    """See `Generator`."""
    i = tf.minimum(t, len(self.weights) - 1)
    weights = tf.gather(tf.constant(self.weights), i)
    divisor = tf.gather(tf.constant(self.divisors), i)
    z = keyed_noise.standard_normals(seed, t, shapes)
    noise = [
      (part - tf.tensordot(weights, kept, 1)) / divisor
      for part, kept in zip(z, buffers)
    ]
    return noise, [
      tf.concat([kept[1:], part[tf.newaxis]], 0)
      for part, kept in zip(noise, buffers)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class Buffered(Generator):
  """The stream of a BLT strategy: algorithm 3 of arXiv 2408.08868.

  The noise is `y = z - sum_j scale_j B_j` with buffers B_j, which begin at 0
  and become `decay_j B_j + y`.

  Attributes:
    decay: The decay of each buffer, shape `[num_buffers]`.
    scale: The scale of each buffer, shape `[num_buffers]`.
  """

  decay: np.ndarray
  scale: np.ndarray

  @property
  def num_buffers(self) -> int:  # type: ignore[override]
    """The number of buffers."""
    return len(self.decay)

  def __call__(self, seed, t, buffers, shapes):
    """See `Generator`."""
    decay = tf.constant(self.decay, tf.float32)
    scale = tf.constant(self.scale, tf.float32)
    z = keyed_noise.standard_normals(seed, t, shapes)
    noise = [
      part - tf.tensordot(scale, kept, 1) for part, kept in zip(z, buffers)
    ]
    return noise, [
      tf.reshape(decay, [-1] + [1] * part.shape.rank) * kept + part
      for part, kept in zip(noise, buffers)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class TreeBuffered(Generator):
  """Stores the estimates of the nodes whose sum is the current prefix sum.

  There is one estimate for each height of nodes, as in TensorFlow Privacy's
  tree queries. A round makes two rows of z on average, and at most the height
  of the tree plus one, apart from the virtual rounds that complete a tree.
  """

  rows: noise_rows.TreeRows

  @property
  def num_buffers(self) -> int:  # type: ignore[override]
    """The number of heights of nodes that others replace."""
    return self.rows.kept.shape[1]

  def __call__(self, seed, t, buffers, shapes):
    """See `Generator`."""
    fresh, _ = Regenerated(self.rows.fresh)(seed, t, [], shapes)
    # The weights in the new estimate, and in the noise.
    tables = np.stack(
      [self.rows.kept, self.rows.kept - self.rows.replaced], axis=1
    )
    used = tables.any(axis=1) * np.arange(1, self.num_buffers + 1)
    # Reads no levels above the last used one; half of the rounds read none.
    count = tf.gather(tf.constant(used.max(axis=1)), t)
    weights = tf.gather(tf.constant(tables), t)[:, :count]
    # A slice of dynamic length loses the shape.
    sums = [
      tf.ensure_shape(tf.tensordot(weights, kept[:count], 1), [2, *shape])
      for kept, shape in zip(buffers, shapes)
    ]
    noise = [part + both[1] for part, both in zip(fresh, sums)]
    slot = tf.gather(tf.constant(self.rows.slots), t)

    def keep():
      return [
        tf.tensor_scatter_nd_update(
          kept, [[slot]], (part + both[0])[tf.newaxis]
        )
        for kept, part, both in zip(buffers, fresh, sums)
      ]

    return noise, tf.cond(slot >= 0, keep, lambda: buffers)


def for_strategy(
  strategy: strategies.Strategy, *, keep_rows: Optional[bool] = None
) -> Generator:
  """Returns the generator of a strategy's noise.

  Args:
    strategy: Any strategy.
    keep_rows: Whether to store the noise of earlier rounds, instead of
      regenerating it in a time that grows with the round. Banded strategies
      store the last `bands - 1` rows, by default up to 16 bands; trees store an
      estimate for each height of nodes, by default always. By default BLT
      stores its buffers, and strategies with a banded inverse store nothing,
      because their rows of C^-1 are short.
  """
  if isinstance(strategy, strategies.Tree):
    if keep_rows is None or keep_rows:
      rows = noise_rows.for_tree(strategy)
      # In trees of a single round no node ever replaces another.
      if rows.kept.shape[1]:
        return TreeBuffered(rows)
    return Regenerated(noise_rows.for_strategy(strategy))
  if isinstance(strategy, strategies.Blt) and keep_rows is None:
    return Buffered(strategy.decay, strategy.scale)
  kept = strategy.bands - 1
  if isinstance(strategy, strategies.BandedInverse) and keep_rows is None:
    keep_rows = False
  if keep_rows is None:
    keep_rows = kept <= _MAX_KEPT_ROWS
  if keep_rows and kept:
    return Banded.from_strategy(strategy)
  return Regenerated(noise_rows.for_strategy(strategy))
