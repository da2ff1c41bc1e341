"""Tests of the CIFG and SI-CIFG cells and layers."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated import layers

CELLS = {'cifg': layers.CIFGCell, 'si_cifg': layers.SICIFGCell}
LAYERS = {'cifg': layers.CIFG, 'si_cifg': layers.SICIFG}
BOTH = pytest.mark.parametrize('name', list(LAYERS))
BATCH, STEPS, FEATURES, UNITS = 3, 6, 4, 5


def _inputs(seed=0):
  generator = np.random.default_rng(seed)
  return generator.normal(size=(BATCH, STEPS, FEATURES)).astype('float32')


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _maxn(x):
  largest = np.max(np.abs(x))
  return x / largest if largest else np.zeros_like(x)


def _reference(x, weights, invariant, invariant_output, projected):
  """Computes the equations in float64, one example and step at a time."""
  weights = [np.asarray(w, np.float64) for w in weights]
  kernel, recurrent, bias = weights[:3]

  def gate(v):
    return _maxn(np.maximum(v, 0)) if invariant else _sigmoid(v)

  def candidate(v):
    return _maxn(v) if invariant else np.tanh(v)

  def squash(v):
    return _maxn(v) if invariant_output else np.tanh(v)

  units = recurrent.shape[1] // 3
  outputs = np.zeros((x.shape[0], x.shape[1], recurrent.shape[0]))
  for example in range(x.shape[0]):
    h, c = np.zeros(recurrent.shape[0]), np.zeros(units)
    for t in range(x.shape[1]):
      z = x[example, t] @ kernel + h @ recurrent + bias
      f = gate(z[:units])
      g = candidate(z[units : 2 * units])
      o = gate(z[2 * units :])
      c = f * c + (1 - f) * g
      h = o * squash(c)
      if projected:
        h = h @ weights[3] + weights[4]
      outputs[example, t] = h
  return outputs


@BOTH
@pytest.mark.parametrize('projection_units', [None, 2])
def test_equations(name, projection_units):
  tf.keras.utils.set_random_seed(1)
  layer = LAYERS[name](
    UNITS,
    projection_units=projection_units,
    return_sequences=True,
    bias_initializer=tf.keras.initializers.RandomNormal(seed=3),
  )
  x = _inputs()
  actual = layer(x)
  expected = _reference(
    x,
    layer.get_weights(),
    name == 'si_cifg',
    name == 'si_cifg',
    projection_units,
  )
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_output_activation_can_stay_tanh():
  tf.keras.utils.set_random_seed(2)
  layer = layers.SICIFG(
    UNITS, scale_invariant_output=False, return_sequences=True
  )
  x = _inputs()
  actual = layer(x)
  expected = _reference(x, layer.get_weights(), True, False, None)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


@BOTH
def test_weights_have_the_documented_shapes_and_biases(name):
  layer = LAYERS[name](UNITS, projection_units=2, unit_forget_bias=True)
  layer(_inputs())
  cell = layer.cell
  assert [
    (w.name.split('/')[-1].split(':')[0], tuple(w.shape)) for w in layer.weights
  ] == [
    ('kernel', (FEATURES, 3 * UNITS)),
    ('recurrent_kernel', (2, 3 * UNITS)),
    ('bias', (3 * UNITS,)),
    ('projection_kernel', (UNITS, 2)),
    ('projection_bias', (2,)),
  ]
  np.testing.assert_array_equal(cell.bias, [1.0] * UNITS + [0.0] * 2 * UNITS)


def test_forget_bias_defaults():
  for name, expected in (('cifg', 1.0), ('si_cifg', 0.0)):
    layer = LAYERS[name](UNITS)
    layer(_inputs())
    np.testing.assert_array_equal(
      layer.cell.bias, [expected] * UNITS + [0.0] * 2 * UNITS
    )


def test_first_step_is_invariant_to_the_scale_of_the_weights():
  layer = layers.SICIFG(64, use_bias=False)
  x = _inputs()[:, :1]
  before = layer(x)
  for scale in (1e-6, 1e6):
    other = layers.SICIFG(64, use_bias=False)
    other(x)
    other.set_weights([scale * w for w in layer.get_weights()])
    np.testing.assert_allclose(other(x), before, atol=1e-5)


@BOTH
def test_dropout_is_the_cells_and_only_in_training(name):
  tf.keras.utils.set_random_seed(4)
  layer = LAYERS[name](
    UNITS, dropout=0.3, recurrent_dropout=0.4, return_sequences=True
  )
  x = _inputs()
  layer(x)
  in_keras = tf.keras.layers.RNN(layer.cell, return_sequences=True)
  np.testing.assert_allclose(layer(x), in_keras(x), atol=1e-5)
  results = []
  # Of Keras 3.
  generator = getattr(layer.cell, 'seed_generator', None)
  start = generator and generator.state.numpy()
  for function in (layer, in_keras):
    tf.random.set_seed(7)
    if generator:
      generator.state.assign(start)
    with tf.GradientTape() as tape:
      y = function(x, training=True)
      loss = tf.reduce_sum(tf.sin(y))
    results.append([y, *tape.gradient(loss, layer.trainable_variables)])
  for fused, stepwise in zip(*results):
    np.testing.assert_allclose(fused, stepwise, atol=1e-5)
  assert np.abs(results[0][0] - layer(x)).max() > 1e-3


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'units': 0}, 'units must be a positive'),
    ({'units': 4, 'projection_units': 0}, 'projection_units must be'),
    ({'units': 4, 'dead_gate_slope': -1.0}, 'dead_gate_slope must not'),
    ({'units': 4, 'dead_gate_slope': float('nan')}, 'dead_gate_slope must not'),
    ({'units': 4, 'activation': 'tanhh'}, 'tanhh'),
  ],
)
def test_bad_arguments_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    layers.SICIFG(**options)


def _train_dead_output_gate(slope):
  """Returns the loss before and after training from a dead output gate."""
  tf.keras.utils.set_random_seed(5)
  layer = layers.SICIFG(4, dead_gate_slope=slope)
  x = _inputs()
  layer(x)
  kernel, recurrent, bias = layer.get_weights()
  bias[8:] = -10.0
  layer.set_weights([kernel, recurrent, bias])
  assert not np.any(layer(x))
  target = tf.constant([[0.5, -0.5, 0.25, -0.25]])

  @tf.function
  def step():
    with tf.GradientTape() as tape:
      loss = tf.reduce_mean((layer(x) - target) ** 2)
    gradients = tape.gradient(loss, layer.trainable_variables)
    for variable, gradient in zip(layer.trainable_variables, gradients):
      variable.assign_sub(10.0 * tf.clip_by_norm(gradient, 0.1))
    return loss

  losses = [float(step()) for _ in range(200)]
  return losses[0], losses[-1]


def test_a_dead_gate_revives_with_a_slope_and_never_without():
  before, after = _train_dead_output_gate(0.0)
  assert after == before
  before, after = _train_dead_output_gate(0.1)
  assert after < before


def test_a_gradient_step_never_kills_a_gate_of_one_row():
  # The gradient is orthogonal to the rectified row, so some positive entry
  # stays positive for any step size.
  generator = np.random.default_rng(6)
  for _ in range(200):
    x = tf.constant(generator.normal(size=(1, 3)))
    if float(tf.reduce_max(x)) <= 0:
      continue
    upstream = tf.constant(generator.normal(size=(1, 3)))
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = layers.si_sigmoid(x)
    gradient = tape.gradient(y, x, output_gradients=upstream)
    for rate in (0.1, 10.0, 1000.0):
      assert float(tf.reduce_max(x - rate * gradient)) > 0
