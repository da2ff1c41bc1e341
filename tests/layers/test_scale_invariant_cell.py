"""Invariance of the scale-invariant recurrent layers to their weights' scale.

All activations of these cells normalise. So outputs don't change if kernel,
recurrent kernel and bias are multiplied by a number, and the gradient is
orthogonal to these weights.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated import layers

LAYERS = {
  'si_lstm': layers.SILSTM,
  'si_cifg': layers.SICIFG,
  'si_gru': layers.SIGRU,
}
BLOCKS = {'si_lstm': 4, 'si_cifg': 3, 'si_gru': 3}
ALL = pytest.mark.parametrize('name', list(LAYERS))
BATCH, STEPS, FEATURES, UNITS = 4, 6, 5, 16


def _layer(name, **options):
  tf.keras.utils.set_random_seed(0)
  layer = LAYERS[name](
    UNITS,
    return_sequences=True,
    bias_initializer=tf.keras.initializers.RandomNormal(stddev=0.3, seed=1),
    **options,
  )
  x = tf.random.normal([BATCH, STEPS, FEATURES])
  layer(x)
  return layer, x


def _scale(layer, weights, factor):
  layer.set_weights([factor * w for w in weights[:3]] + weights[3:])


@ALL
@pytest.mark.parametrize('projection_units', [None, 3])
def test_outputs_ignore_the_scale_of_the_weights(name, projection_units):
  layer, x = _layer(name, projection_units=projection_units)
  weights = layer.get_weights()
  mask = tf.sequence_mask([6, 3, 0, 5], STEPS)
  expected = layer(x, mask=mask)
  for factor in (1e-4, 1e-2, 3.0, 1e2, 1e4):
    _scale(layer, weights, factor)
    np.testing.assert_allclose(layer(x, mask=mask), expected, atol=1e-5)
  for exponent in (-13, -1, 1, 13):
    _scale(layer, weights, 2.0**exponent)
    np.testing.assert_array_equal(layer(x, mask=mask), expected)


@pytest.mark.parametrize('name', ['lstm', 'cifg', 'gru'])
def test_plain_layers_are_not_invariant(name):
  plain = {'lstm': layers.LSTM, 'cifg': layers.CIFG, 'gru': layers.GRU}[name]
  layer = plain(UNITS)
  x = tf.random.normal([BATCH, STEPS, FEATURES], seed=2)
  before = layer(x)
  _scale(layer, layer.get_weights(), 3.0)
  assert np.abs(layer(x) - before).max() > 0.1


@ALL
@pytest.mark.parametrize('factor', [1e-4, 1.0, 1e4])
@pytest.mark.parametrize('unroll', [None, False])
def test_gradient_is_orthogonal_to_the_weights_of_each_block(
  name, factor, unroll
):
  # The slope of dead gates is not part of the true gradient.
  layer, x = _layer(name, dead_gate_slope=0.0, unroll=unroll)
  _scale(layer, layer.get_weights(), factor)
  target = tf.random.normal([BATCH, STEPS, UNITS], seed=3)
  with tf.GradientTape() as tape:
    loss = tf.reduce_mean((layer(x) - target) ** 2)
  gradients = tape.gradient(loss, layer.trainable_variables)
  # A gate's rows: contributions of input, state and biases.
  for block in range(BLOCKS[name]):
    columns = slice(block * UNITS, (block + 1) * UNITS)
    w, g = (
      np.concatenate(
        [np.reshape(v, [-1, v.shape[-1]])[:, columns] for v in values]
      ).astype('float64')
      for values in (layer.get_weights(), gradients)
    )
    assert np.linalg.norm(g) > 0
    cosine = np.sum(w * g) / np.linalg.norm(w) / np.linalg.norm(g)
    assert abs(cosine) < 1e-5


@ALL
def test_gradient_shrinks_as_the_weights_grow(name):
  layer, x = _layer(name, dead_gate_slope=0.0)
  weights = layer.get_weights()
  gradients = []
  for factor in (1.0, 2.0**10):
    _scale(layer, weights, factor)
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum(tf.sin(layer(x)))
    gradients.append(tape.gradient(loss, layer.trainable_variables))
  for small, large in zip(*gradients):
    np.testing.assert_array_equal(2.0**10 * large, small)


@pytest.mark.parametrize('scale_invariant_output', [True, False])
def test_one_step_of_si_lstm_by_hand(scale_invariant_output):
  cell = layers.SILSTMCell(2, scale_invariant_output=scale_invariant_output)
  cell.build((1, 1))
  # Column blocks: input, forget, candidate, output.
  weights = [
    [[1.0, 2.0, 4.0, -1.0, -4.0, 1.0, 1.0, 2.0]],
    [[0.0] * 8, [0.0, 0.0, 0.0, -2.0, 0.0, 0.0, 0.0, 0.0]],
    [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
  ]
  cell.set_weights([np.array(w) for w in weights])
  # From h = (1/2, -1) and c = (2, -1): i = (1/2, 1); forget (4, 1), so
  # f = (1, 1/4); candidate (-4, 2), so g = (-1, 1/2); o = (1/2, 1).
  h, [_, c] = cell(
    tf.constant([[1.0]]), [tf.constant([[0.5, -1.0]]), tf.constant([[2.0, -1]])]
  )
  np.testing.assert_array_equal(c, [[1.5, 0.25]])
  first, second = (1.0, 1 / 6)
  if not scale_invariant_output:
    first, second = np.tanh([1.5, 0.25])
  np.testing.assert_allclose(h, [[0.5 * first, second]], rtol=1e-6)


@pytest.mark.parametrize('unit_forget_bias', [False, True])
def test_forget_bias_of_si_lstm(unit_forget_bias):
  cell = layers.SILSTMCell(2, unit_forget_bias=unit_forget_bias)
  cell.build((1, 3))
  forget = float(unit_forget_bias)
  np.testing.assert_array_equal(cell.bias, [0, 0, forget, forget, 0, 0, 0, 0])


def _columns(name, group, num_groups):
  """Returns the columns of a group of units, in all blocks."""
  width = UNITS // num_groups
  units = np.arange(group * width, (group + 1) * width)
  return np.concatenate([UNITS * b + units for b in range(BLOCKS[name])])


@ALL
def test_each_group_of_units_ignores_the_scale_of_its_own_weights(name):
  layer, x = _layer(name, num_groups=4, dead_gate_slope=0.0)
  weights = layer.get_weights()
  expected = layer(x)
  scaled = [w.copy() for w in weights]
  for w in scaled:
    w[..., _columns(name, 1, 4)] *= 8
  layer.set_weights(scaled)
  np.testing.assert_array_equal(layer(x), expected)
  # With a single group the same change alters the function.
  single, _ = _layer(name)
  single.set_weights(weights)
  before = single(x)
  single.set_weights(scaled)
  assert np.abs(single(x) - before).max() > 0.05

  with tf.GradientTape() as tape:
    loss = tf.reduce_sum(tf.sin(layer(x)))
  gradients = tape.gradient(loss, layer.trainable_variables)
  for group in range(4):
    columns = _columns(name, group, 4)
    w, g = (
      np.concatenate([np.ravel(v[..., columns]) for v in values])
      for values in (scaled, [g.numpy() for g in gradients])
    )
    assert np.linalg.norm(g) > 0
    cosine = np.sum(w * g) / np.linalg.norm(w) / np.linalg.norm(g)
    assert abs(cosine) < 1e-5


def test_groups_of_units_by_hand():
  cell = layers.SICIFGCell(4, num_groups=2)
  cell.build((1, 1))
  # Column blocks: forget, candidate, output.
  kernel = [4, 2, 1, -3, -4, 1, 5, 10, 2, 1, -1, -2]
  cell.set_weights([np.array([kernel]), np.zeros([4, 12]), np.zeros([12])])
  h, [_, c] = cell(tf.constant([[1.0]]), [tf.zeros([1, 4])] * 2)
  # f = (1, 1/2, 1, 0), g = (-1, 1/4, 1/2, 1); o = (1, 1/2, 0, 0).
  np.testing.assert_array_equal(c, [[0, 0.125, 0, 1]])
  np.testing.assert_array_equal(h, [[0, 0.5, 0, 0]])


def test_groups_of_units_are_part_of_the_configuration():
  layer = layers.SIGRU(6, num_groups=3)
  assert type(layer).from_config(layer.get_config()).cell.num_groups == 3
  with pytest.raises(ValueError, match='num_groups=4 does not divide units=6'):
    layers.SICIFG(6, num_groups=4)
  with pytest.raises(ValueError, match='num_groups must be a positive'):
    layers.SILSTM(6, num_groups=0)
