"""Embeddings of positions in a sentence."""

from __future__ import annotations

import math
from typing import Any, Dict, Optional

import tensorflow as tf

from si_federated.layers import activations, normalization
from si_federated.layers.configuration import constructor_arguments

KINDS = ('sinusoidal', 'learned')


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class PositionEmbedding(tf.keras.layers.Layer):
  """Adds an embedding of its position to each token.

  Sinusoidal embeddings (Vaswani et al. 2017, arXiv 1706.03762) have no weights:
  sin and cos of position / 10000^(2i/D) at features 2i and 2i + 1.

  Args:
    kind: `sinusoidal` or `learned`.
    max_length: Longest sequence, for learned embeddings only.
    scale_inputs: Whether to multiply the inputs by √D first, as the paper does
      with word embeddings.
    normalize: Whether learned embeddings are normalised to mean zero and
      variance one, so that they don't depend on the weights' scale.
    **kwargs: The arguments of `tf.keras.layers.Layer`.

  Call arguments:
    inputs: `[B, T, D]`.

  Raises:
    ValueError: If an argument is out of range, or the input is longer than
      learned embeddings allow.
  """

  def __init__(
    self,
    kind: str = 'sinusoidal',
    max_length: Optional[int] = None,
    scale_inputs: bool = False,
    normalize: bool = False,
    **kwargs: Any,
  ) -> None:
    super().__init__(**kwargs)
    if kind not in KINDS:
      raise ValueError(
        f'The kind of positions must be {" or ".join(KINDS)}, but it is '
        f'{kind!r}: choose one of these.'
      )
    if kind == 'learned' and (max_length is None or max_length < 1):
      raise ValueError(
        f'Learned positions need max_length, but it is {max_length!r}: give '
        'the length of the longest sequence.'
      )
    self.kind = kind
    self.max_length = max_length
    self.scale_inputs = scale_inputs
    self.normalize = normalize
    self.supports_masking = True

  def build(self, input_shape: Any) -> None:
    """Creates the weights for inputs `[B, T, D]`."""
    if self.kind == 'learned':
      self.embeddings = self.add_weight(
        name='embeddings',
        shape=(self.max_length, tf.TensorShape(input_shape)[-1]),
        initializer='uniform',
      )
    super().build(input_shape)

  def call(self, inputs: tf.Tensor) -> tf.Tensor:
    """Adds the embeddings of positions 0..T-1."""
    length, size = inputs.shape[1], inputs.shape[2]
    if self.scale_inputs:
      inputs *= tf.constant(size**0.5, inputs.dtype)
    if self.kind == 'sinusoidal':
      return inputs + _sinusoids(tf.shape(inputs)[1], size, inputs.dtype)
    if length is not None and length > self.max_length:
      raise ValueError(
        f'A sequence of {length} tokens is longer than max_length='
        f'{self.max_length} of the learned positions: cut it or raise '
        'max_length.'
      )
    used = self.embeddings[: tf.shape(inputs)[1]]
    if self.normalize:
      used = normalization.normalize(used)
    return inputs + tf.cast(used, inputs.dtype)

  def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
    """Returns the shape of the inputs."""
    return tf.TensorShape(input_shape)

  def get_config(self) -> Dict[str, Any]:
    """Returns the constructor's arguments."""
    return {
      **super().get_config(),
      **constructor_arguments(self, PositionEmbedding),
    }


def _sinusoids(length: tf.Tensor, size: int, dtype: tf.DType) -> tf.Tensor:
  """Returns `[T, D]` in the layout of the paper."""
  features = tf.range(size)
  even = tf.cast(features // 2 * 2, tf.float32)
  frequency = tf.exp(-math.log(10000.0) / size * even)
  # cos(x) = sin(x + pi/2).
  phase = tf.cast(features % 2, tf.float32) * (math.pi / 2)
  positions = tf.cast(tf.range(length), tf.float32)[:, tf.newaxis]
  return tf.cast(tf.sin(positions * frequency + phase), dtype)
