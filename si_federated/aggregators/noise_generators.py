"""Streams of correlated noise C^-1 z, a row a round, in TensorFlow.

A generator is called with the seed, the round t (from 0 on), its buffers and
the variables' shapes, and returns the noise of the round and its new buffers.
It has `num_buffers` buffers of the size of the model, all zero at first: one
tensor of shape `[num_buffers, ...]` for each variable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Optional, Union

import numpy as np
import tensorflow as tf

from si_federated.aggregators import keyed_noise, noise_rows
from si_federated.privacy import strategies

# More buffers than this take more memory and disk than their speed is worth.
_MAX_KEPT_ROWS = 15

Tensors = list[tf.Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Regenerated:
  """Makes all the rows of z anew that a round's noise is of.

  No memory but two model sizes while it runs; time grows with the length of the
  rows, which for banded and dense strategies is the number of the round, and
  for a tree up to twice that number.
  """

  rows: noise_rows.NoiseRows
  num_buffers: int = 0

  def __call__(
    self,
    seed: tf.Tensor,
    t: tf.Tensor,
    buffers: Tensors,
    shapes: Sequence[tf.TensorShape],
  ) -> tuple[Tensors, Tensors]:
    """See the module."""
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
      # Else rows of several steps are in memory at once.
      parallel_iterations=1,
    )
    return noise, buffers


@dataclasses.dataclass(frozen=True, eq=False)
class Banded:
  """Keeps the noise of the last `bands - 1` rounds, and solves C y = z for y.

  Attributes:
    weights: Of the noises kept, oldest first, for each round; of a single row
      if they are the same in all. Shape `[rounds or 1, bands - 1]`.
    divisors: The diagonal of C, shape `[rounds or 1]`.
  """

  weights: np.ndarray
  divisors: np.ndarray

  @classmethod
  def from_strategy(cls, strategy: strategies.Strategy) -> Banded:
    """Returns the generator of a square strategy."""
    assert not isinstance(strategy, strategies.Tree)
    kept = strategy.bands - 1
    count = strategy.rounds
    # A Toeplitz row serves all rounds, as what is before the first is zero.
    rounds = (
      [count - 1]
      if isinstance(strategy, strategies.Toeplitz)
      else list(range(count))
    )
    weights = np.zeros((len(rounds), kept), np.float32)
    divisors = np.zeros(len(rounds), np.float32)
    for i, t in enumerate(rounds):
      row, divisors[i] = strategy.forward_row(t)
      weights[i, kept - len(row) :] = row
    return cls(weights, divisors)

  @property
  def num_buffers(self) -> int:
    """The number of noises kept."""
    return self.weights.shape[1]

  def __call__(
    self,
    seed: tf.Tensor,
    t: tf.Tensor,
    buffers: Tensors,
    shapes: Sequence[tf.TensorShape],
  ) -> tuple[Tensors, Tensors]:
    """See the module."""
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
class Buffered:
  """The stream of a BLT strategy: algorithm 3 of arXiv 2408.08868.

  Attributes:
    decay: Of each buffer, shape `[num_buffers]`.
    scale: Of each buffer, shape `[num_buffers]`.
  """

  decay: np.ndarray
  scale: np.ndarray

  @property
  def num_buffers(self) -> int:
    """The number of buffers."""
    return len(self.decay)

  def __call__(
    self,
    seed: tf.Tensor,
    t: tf.Tensor,
    buffers: Tensors,
    shapes: Sequence[tf.TensorShape],
  ) -> tuple[Tensors, Tensors]:
    """See the module."""
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
class TreeBuffered:
  """Keeps the estimates of the tree's nodes that the prefix sum is made up of.

  As TensorFlow Privacy's tree queries do, one for each height of nodes: what a
  round makes of z is two rows on average, and one more than the tree is high at
  most, but for the virtual rounds of a tree that is completed.
  """

  rows: noise_rows.TreeRows

  @property
  def num_buffers(self) -> int:
    """The number of heights of nodes that others replace."""
    return self.rows.kept.shape[1]

  def __call__(
    self,
    seed: tf.Tensor,
    t: tf.Tensor,
    buffers: Tensors,
    shapes: Sequence[tf.TensorShape],
  ) -> tuple[Tensors, Tensors]:
    """See the module."""
    fresh, _ = Regenerated(self.rows.fresh)(seed, t, [], shapes)
    # The weights in the new estimate, and in the noise.
    tables = np.stack(
      [self.rows.kept, self.rows.kept - self.rows.replaced], axis=1
    )
    used = tables.any(axis=1) * np.arange(1, self.num_buffers + 1)
    # Levels past the last that is used are not read, which are all in half of
    # the rounds.
    count = tf.gather(tf.constant(used.max(axis=1)), t)
    weights = tf.gather(tf.constant(tables), t)[:, :count]
    # A slice of a length known only in its round loses the shape.
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


Generator = Union[Regenerated, Banded, Buffered, TreeBuffered]


def for_strategy(
  strategy: strategies.Strategy, *, keep_rows: Optional[bool] = None
) -> Generator:
  """Returns the generator of a strategy's noise.

  Args:
    strategy: Any.
    keep_rows: Whether noise of rounds before is kept, or made anew from all of
      z, in a time that grows with the round. For banded strategies the last
      `bands - 1` rows are kept, by default up to 16 bands; for trees an
      estimate of each height of nodes, by default always. BLT has its buffers.
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
  if keep_rows is None:
    keep_rows = kept <= _MAX_KEPT_ROWS
  if keep_rows and kept:
    return Banded.from_strategy(strategy)
  return Regenerated(noise_rows.for_strategy(strategy))
