"""Dropout whose masks are functions of a key, not of a generator's state.

So a client that repeats a round sends the same update. Integer arithmetic
computes the masks, so that they are the same in TensorFlow and in JAX, to which
graphs are converted. Without a key, layers drop as in Keras.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from typing import Any, Iterator, Optional

import tensorflow as tf

from si_federated.layers import activations, legacy_keras, tracing
from si_federated.layers.token_packing import Packing

# An odd number near 2^32 divided by the golden ratio: consecutive multiples
# differ in many bits.
_GOLDEN = 0x9E3779B9


@dataclasses.dataclass
class _Key:
  """The key in use.

  Attributes:
    value: A number, uint32.
    num_masks: How many masks have been drawn from it.
    packing: How rows of matrices are packed, if they are.
  """

  value: tf.Tensor
  num_masks: int = 0
  packing: Optional[Packing] = None


_key: contextvars.ContextVar[Optional[_Key]] = contextvars.ContextVar(
  'dropout_key', default=None
)


@contextlib.contextmanager
def keyed_dropout(words: tf.Tensor) -> Iterator[None]:
  """Draws the dropout masks of layers from a key.

  The masks within a scope differ from each other. Two scopes with equal words
  have equal masks if the same layers are called.

  Args:
    words: `[N]` int32, such as a seed, a client and a step.
  """
  value = tf.constant(0, tf.uint32)
  for word in tf.unstack(tf.bitcast(words, tf.uint32)):
    value = _mixed(tf.bitwise.bitwise_xor(value, word) + _word(_GOLDEN))
  token = _key.set(_Key(value))
  try:
    yield
  finally:
    _key.reset(token)


@contextlib.contextmanager
def of_packed_rows(packing: Packing) -> Iterator[None]:
  """Draws masks of matrices `[M, D]` by the tokens' places in `[B, T]`.

  So masks do not depend on whether padding is left out.

  Args:
    packing: How the M rows are packed.
  """
  key = _key.get()
  if key is None:
    yield
    return
  before, key.packing = key.packing, packing
  try:
    yield
  finally:
    key.packing = before


def is_keyed(inputs: Any, training: Any) -> bool:
  """Returns whether to draw from a key now.

  Args:
    inputs: The layer's input.
    training: The layer's argument of this name.
  """
  return (
    _key.get() is not None
    and training is True
    and not hasattr(inputs, '_keras_history')
  )


def mask(like: tf.Tensor, rate: float) -> tf.Tensor:
  """Draws factors 0 (with probability `rate`) or 1 / (1 - rate).

  Args:
    like: The tensor that they will multiply.
    rate: The probability, at least 0 and below 1, in steps of 2^-24.

  Returns:
    Factors of the shape and type of `like`.
  """
  key = _key.get()
  assert key is not None
  key.num_masks += 1
  value = _mixed(
    tf.bitwise.bitwise_xor(key.value, _word(key.num_masks * _GOLDEN))
  )
  if key.packing is not None and like.shape.rank == 2:
    size = like.shape[1]
    numbers = key.packing.rows()[:, tf.newaxis] * size + tf.range(size)
  else:
    numbers = tf.reshape(tf.range(tf.size(like)), tf.shape(like))
  bits = _mixed(
    tf.bitwise.bitwise_xor(_mixed(tf.cast(numbers, tf.uint32)), value)
  )
  # 24 bits, which fit in signed integers.
  drawn = tf.cast(tf.bitwise.right_shift(bits, _word(8)), tf.int32)
  kept = drawn >= round(rate * 2**24)
  factors = tf.cast(kept, like.dtype) * tf.constant(1 / (1 - rate), like.dtype)
  factors.set_shape(like.shape)
  return factors


def _word(number: int) -> tf.Tensor:
  return tf.constant(number % 2**32, tf.uint32)


def _mixed(x: tf.Tensor) -> tf.Tensor:
  """Mixes the bits of 32-bit numbers, one to one.

  C. Wellons, "Prospecting for Hash Functions", 2018 (`lowbias32`).
  """
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, _word(shift)))
    x *= _word(factor)
  return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, _word(16)))


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class Dropout(tf.keras.layers.Dropout):
  """Keras's dropout, drawn from the key within `keyed_dropout`.

  Args:
    rate: The fraction to drop.
    **kwargs: The arguments of `tf.keras.layers.Dropout`.
  """

  def __init__(self, rate: float, **kwargs: Any) -> None:
    super().__init__(rate, **{**legacy_keras.STATEFUL_GENERATOR, **kwargs})

  def call(self, inputs: tf.Tensor, training: Any = None) -> tf.Tensor:
    """Drops in training."""
    if tracing.is_building_in_graph(inputs):
      return tf.identity(inputs)
    if self.rate and is_keyed(inputs, training):
      return inputs * mask(inputs, self.rate)
    return super().call(inputs, training=training)
