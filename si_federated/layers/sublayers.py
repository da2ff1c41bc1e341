"""Layers inside other layers, built with all of their weights at once."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from si_federated.layers.dropout_masks import Dropout
from si_federated.layers.normalization import LayerNormalization


def build(layer: tf.keras.layers.Layer, input_size: int) -> Any:
  """Creates the weights of a layer for inputs `[..., input_size]`.

  Args:
    layer: The layer, whose name becomes part of the weights' names.
    input_size: Features of its input.

  Returns:
    The layer.
  """
  with tf.name_scope(layer.name):
    layer.build((None, input_size))
  return layer


def build_dense(
  size: int,
  input_size: int,
  *,
  name: str,
  policy: Any,
  kernel_initializer: Any,
  **options: Any,
) -> tf.keras.layers.Dense:
  """Builds a dense layer.

  Args:
    size: Features of its output.
    input_size: Features of its input.
    name: The name of the layer.
    policy: The dtype policy of the layer that contains it.
    kernel_initializer: Initializer of the kernel.
    **options: Further arguments of `tf.keras.layers.Dense`.

  Returns:
    The layer with its weights.
  """
  initializer = tf.keras.initializers.get(kernel_initializer)
  layer = tf.keras.layers.Dense(
    size,
    # A copy, since an initializer that is used twice repeats its values.
    kernel_initializer=type(initializer).from_config(initializer.get_config()),
    dtype=policy,
    name=name,
    **options,
  )
  return build(layer, input_size)


def build_dropout(rate: float, policy: Any) -> tf.keras.layers.Layer:
  """Builds a dropout layer.

  Args:
    rate: The fraction to drop.
    policy: The dtype policy of the layer that contains it.

  Returns:
    A layer that can be called with `training`.
  """
  layer = Dropout(rate, dtype=policy)
  layer.built = True
  return layer


def build_norm(
  name: str, size: int, *, policy: Any, epsilon: float, affine: bool
) -> LayerNormalization:
  """Builds a layer normalisation.

  Args:
    name: The name of the layer.
    size: D, the features of its input.
    policy: The dtype policy of the layer that contains it.
    epsilon: Added to variances.
    affine: Whether it has learned gains and offsets.

  Returns:
    The layer with its weights.
  """
  layer = LayerNormalization(
    epsilon=epsilon, center=affine, scale=affine, dtype=policy, name=name
  )
  return build(layer, size)
