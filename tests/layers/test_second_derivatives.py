"""Second derivatives are correct, or raise an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from si_federated import layers

_LAYERS: dict[str, Callable[..., Any]] = {
  'SICIFG': lambda slope: layers.SICIFG(
    3, return_sequences=True, dead_gate_slope=slope, dtype='float64'
  ),
  'SIGRU': lambda slope: layers.SIGRU(
    3, return_sequences=True, dead_gate_slope=slope, dtype='float64'
  ),
  'SILSTM': lambda slope: layers.SILSTM(
    3, return_sequences=True, dead_gate_slope=slope, dtype='float64'
  ),
  'cell': lambda slope: tf.keras.layers.RNN(
    layers.SICIFGCell(3, dead_gate_slope=slope, dtype='float64'),
    return_sequences=True,
    dtype='float64',
  ),
  'ConformerBlock': lambda slope: layers.ConformerBlock(
    intermediate_dim=4,
    num_heads=1,
    scale_invariant=True,
    dead_gate_slope=slope,
    dtype='float64',
  ),
}


def _squared_gradient(layer, x):
  """Returns the sum of (d sum h^3 / dx)^2."""
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = tf.reduce_sum(layer(x) ** 3)
  return tf.reduce_sum(tape.gradient(y, x) ** 2)


def _derivative(layer, x):
  with tf.GradientTape() as tape:
    tape.watch(x)
    value = _squared_gradient(layer, x)
  return tape.gradient(value, x)


@pytest.mark.parametrize('kind', _LAYERS)
def test_without_a_dead_slope_they_equal_finite_differences(kind):
  layer = _LAYERS[kind](0.0)
  generator = np.random.default_rng(3)
  x = generator.normal(size=[1, 2, 4])
  layer(tf.constant(x))
  # Positive on average, so that no gate is dead.
  layer.set_weights(
    [
      generator.normal(2.0 * (weight.ndim == 1), size=weight.shape)
      for weight in layer.get_weights()
    ]
  )
  got = _derivative(layer, tf.constant(x)).numpy()
  step = 1e-6
  expected = np.zeros_like(x)
  for index in np.ndindex(*x.shape):
    values = []
    for sign in (1, -1):
      moved = x.copy()
      moved[index] += sign * step
      values.append(float(_squared_gradient(layer, tf.constant(moved))))
    expected[index] = (values[0] - values[1]) / (2 * step)
  assert np.abs(expected).max() > 1e-3
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('kind', _LAYERS)
def test_with_a_dead_slope_they_are_refused(kind):
  layer = _LAYERS[kind](0.1)
  x = tf.random.stateless_normal([1, 2, 4], [0, 0], dtype=tf.float64)
  # The first derivative exists, also for each example.
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = layer(x)
  assert np.isfinite(tape.gradient(y, x)).all()
  with pytest.raises(NotImplementedError, match='dead_gate_slope=0'):
    _derivative(layer, x)


def test_the_documented_example():
  def of(slope, layer_of):
    layer = layer_of(slope)
    x = tf.constant([[[1.0]]], tf.float64)
    layer(x)
    layer.set_weights(
      [
        np.array([[-1.0, -2, 3, 1, 2, 1]]),
        np.zeros([2, 6]),
        np.array([0.0, 0, 0, 0.5, 0, 0.7]),
      ]
    )
    return layer, x

  def fused(slope):
    return layers.SICIFG(2, dead_gate_slope=slope, dtype='float64')

  def stepwise(slope):
    cell = layers.SICIFGCell(2, dead_gate_slope=slope, dtype='float64')
    return tf.keras.layers.RNN(cell, dtype='float64')

  for kind in (fused, stepwise):
    layer, x = of(0.0, kind)
    np.testing.assert_allclose(_derivative(layer, x), [[[-0.2272]]], atol=5e-5)
    with pytest.raises(NotImplementedError):
      _derivative(*of(0.1, kind))
