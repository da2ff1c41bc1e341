"""A regression on three inputs, to compare runtimes: networks and data."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

SPEC = (
  tf.TensorSpec([None, 3], tf.float32),
  tf.TensorSpec([None, 1], tf.float32),
)


def _dense(units: int, seed: int, **options: Any) -> tf.keras.layers.Layer:
  return tf.keras.layers.Dense(
    units,
    kernel_initializer=tf.keras.initializers.GlorotUniform(seed=seed),
    **options,
  )


def linear() -> tf.keras.Model:
  """Returns one dense layer, always with the same weights."""
  return tf.keras.Sequential([tf.keras.layers.InputLayer([3]), _dense(1, 2)])


def network() -> tf.keras.Model:
  """Returns two dense layers, always with the same weights."""
  return tf.keras.Sequential(
    [
      tf.keras.layers.InputLayer([3]),
      _dense(4, 1, activation='tanh'),
      _dense(1, 2),
    ]
  )


def dataset(size: int, seed: Any) -> tf.data.Dataset:
  """Returns a client's examples in batches of four."""
  generator = np.random.default_rng(seed)
  x = generator.normal(size=[size, 3]).astype(np.float32)
  y = x.sum(axis=1, keepdims=True) ** 2
  return tf.data.Dataset.from_tensor_slices((x, y)).batch(4)


def datasets(round_num: int) -> list[tf.data.Dataset]:
  """Returns the data of a round's five clients, of unequal sizes."""
  return [dataset(3 + 2 * i, [round_num, i]) for i in range(5)]
