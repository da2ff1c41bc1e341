"""Packing of the valid tokens of a batch, so that padding costs nothing."""

from __future__ import annotations

from typing import Any, Optional

import tensorflow as tf

from si_federated.layers.static_graphs import shapes_are_static


class Packing:
  """Converts between `[B, T, D]` and the `[M, D]` of the M valid tokens.

  Sentences are padded to a common length. Position-wise layers, most of the
  work of a Transformer, need not compute the padding. Within `static_shapes`
  all B*T tokens are kept, and only `unpack` makes the padding zero.

  Args:
    inputs: `[B, T, D]`.
    mask: `[B, T]` booleans, false for padding; all is valid if `None`.
  """

  def __init__(self, inputs: tf.Tensor, mask: Optional[tf.Tensor]) -> None:
    shape = tf.shape(inputs)
    self.batch: Any = shape[0]
    self.length: Any = shape[1]
    self._static = inputs.shape[:2]
    self.mask = mask if mask is None else tf.cast(mask, tf.bool)
    self._rows = None
    self._valid = None
    if mask is not None and shapes_are_static():
      self._valid = tf.reshape(self.mask, [-1, 1])
    elif mask is not None:
      valid = tf.where(tf.reshape(self.mask, [-1]))[:, 0]
      self._rows = tf.cast(valid, tf.int32)

  def rows(self) -> tf.Tensor:
    """Returns the numbers of the M tokens among the B*T, `[M]` int32."""
    if self._rows is None:
      return tf.range(self.batch * self.length)
    return self._rows

  def pack(self, x: tf.Tensor) -> tf.Tensor:
    """Converts `[B, T, D]` to `[M, D]`."""
    size = x.shape[-1]
    x = tf.reshape(x, [-1, size])
    return x if self._rows is None else tf.gather(x, self._rows)

  def unpack(self, x: tf.Tensor) -> tf.Tensor:
    """Converts `[M, D]` to `[B, T, D]`, zero at padding."""
    size = x.shape[-1]
    if self._rows is not None:
      shape = [self.batch * self.length, size]
      x = tf.scatter_nd(self._rows[:, tf.newaxis], x, shape)
    if self._valid is not None:
      # Not a product: padding can contain anything, NaN included.
      x = tf.where(self._valid, x, tf.zeros_like(x))
    x = tf.reshape(x, [self.batch, self.length, size])
    return tf.ensure_shape(x, [*self._static, size])
