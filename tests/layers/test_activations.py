"""Tests of the scale-invariant activations."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated.layers import (
  ConformerBlock,
  activations,
  legacy_keras,
  maxn,
  si_sigmoid,
  si_tanh,
)

ALL = pytest.mark.parametrize('function', [maxn, si_tanh, si_sigmoid])


def _gradient(function, x, upstream):
  x = tf.constant(x)
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = function(x)
  return tape.gradient(y, x, output_gradients=tf.constant(upstream)).numpy()


def test_values_by_hand():
  x = np.array([[-4.0, 1.0, 2.0], [3.0, -1.0, 0.0]])
  np.testing.assert_allclose(
    si_tanh(x), [[-1.0, 0.25, 0.5], [1.0, -1 / 3, 0.0]], rtol=1e-6
  )
  np.testing.assert_allclose(
    si_sigmoid(x), [[0, 0.5, 1.0], [1.0, 0, 0]], rtol=1e-6
  )
  np.testing.assert_allclose(
    maxn(x, axis=0), [[-1.0, 1.0, 1.0], [0.75, -1.0, 0.0]], rtol=1e-6
  )


def test_gradient_by_hand():
  # y = x / x_0, so that dL/dx = (g - e_0 <g, y>) / 4 with <g, y> = 1 + 1.
  np.testing.assert_allclose(
    _gradient(si_tanh, [[4.0, -2.0, 2.0]], [[1.0, -1.0, 1.0]]),
    [[(1 - 2) / 4, -1 / 4, 1 / 4]],
    rtol=1e-6,
  )


@ALL
def test_gradient_equals_finite_differences(function):
  generator = np.random.default_rng(0)
  x = generator.normal(size=(6, 9))
  upstream = generator.normal(size=x.shape)
  numeric = np.zeros_like(x)
  for index in np.ndindex(*x.shape):
    step = np.zeros_like(x)
    step[index] = 1e-6
    difference = (function(x + step) - function(x - step)).numpy()
    numeric[index] = np.sum(difference * upstream) / 2e-6
  np.testing.assert_allclose(
    _gradient(function, x, upstream), numeric, atol=1e-6
  )


@ALL
@pytest.mark.parametrize('tied', [False, True])
def test_gradient_equals_automatic_differentiation(function, tied):
  generator = np.random.default_rng(1)
  x = generator.normal(size=(5, 7)).astype('float32')
  if tied:
    x = np.sign(x) * np.ceil(2 * np.abs(x).clip(0, 1))
  upstream = generator.normal(size=x.shape).astype('float32')

  def plain(x):
    x = tf.nn.relu(x) if function is si_sigmoid else x
    return x / tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)

  np.testing.assert_allclose(
    _gradient(function, x, upstream), _gradient(plain, x, upstream), atol=1e-5
  )


def test_gradient_is_orthogonal_to_the_input_despite_ties():
  x = np.array([[2.0, -2.0, 1.0, 2.0]])
  upstream = np.array([[1.0, 2.0, -3.0, 0.5]])
  assert abs(np.sum(_gradient(si_tanh, x, upstream) * x)) < 1e-12


@ALL
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32', 'float64'])
def test_zero_input_gives_zero_and_zero_gradient(function, dtype):
  x = tf.zeros([2, 4], dtype)
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = function(x)
  gradient = tape.gradient(y, x)
  assert not np.any(tf.cast(y, tf.float32))
  assert not np.any(tf.cast(gradient, tf.float32))


@ALL
@pytest.mark.parametrize('exponent', range(-6, 7, 2))
def test_invariant_to_the_scale_of_the_input(function, exponent):
  x = np.random.default_rng(2).normal(size=(8, 670)).astype('float32')
  scaled = np.float32(10.0**exponent) * x
  np.testing.assert_allclose(function(scaled), function(x), atol=1e-5)


@ALL
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32'])
def test_finite_from_subnormal_to_huge(function, dtype):
  limits = tf.as_dtype(dtype)
  x = np.random.default_rng(3).normal(size=(1, 50))
  for size in (float(limits.max) / 8, 1.0, 1e-3, 6e-5, 1e-7, 1e-20, 1e-40):
    y = tf.cast(tf.constant(size * x), dtype)
    with tf.GradientTape() as tape:
      tape.watch(y)
      output = function(y)
    gradient = tape.gradient(output, y)
    assert np.all(np.isfinite(tf.cast(output, tf.float32)))
    assert np.all(np.abs(tf.cast(output, tf.float32)) <= 1)
    assert np.all(np.isfinite(tf.cast(gradient, tf.float32))), size


def test_dead_rows_have_the_stated_slope():
  x = [[-1.0, -2.0], [1.0, -2.0]]
  upstream = [[3.0, -4.0], [3.0, -4.0]]
  gradient = _gradient(lambda z: si_sigmoid(z, dead_slope=0.5), x, upstream)
  np.testing.assert_allclose(gradient, [[1.5, -2.0], [0.0, 0.0]], atol=1e-6)
  np.testing.assert_array_equal(si_sigmoid(x, dead_slope=0.5)[0], [0, 0])
  assert not np.any(_gradient(si_sigmoid, x[:1], upstream[:1]))


@ALL
def test_found_by_name_and_by_configuration(function):
  name = function.__name__
  assert activations.get(name) is function
  assert activations.get(activations.serialize(function)) is function
  registered = f'si_federated>{name}'
  # Keras 3 finds them only in configurations.
  activation = function if legacy_keras.IS_KERAS_3 else registered
  layer = tf.keras.layers.Dense(3, activation=activation)
  assert layer.activation is function
  again = tf.keras.layers.Dense.from_config(layer.get_config())
  assert again.activation is function


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match='no_such_activation'):
    activations.get('no_such_activation')
  assert activations.get('tanh') is tf.keras.activations.tanh


@pytest.mark.parametrize('slope', [-0.1, float('nan'), float('inf')])
def test_slopes_out_of_range_are_refused(slope):
  with pytest.raises(ValueError, match='dead_slope must not be negative'):
    si_sigmoid(tf.ones([2]), dead_slope=slope)
  with pytest.raises(ValueError, match='dead_gate_slope must not be negative'):
    ConformerBlock(4, num_heads=1, dead_gate_slope=slope)
