"""The GRU against Keras's own, and the scale-invariant GRU by its equations."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated import layers

BATCH, STEPS, FEATURES, UNITS = 4, 7, 5, 6


def _results(layer, x, weights, **arguments):
  """Returns outputs and gradients with the weights given."""
  layer(x)
  layer.set_weights(weights)
  with tf.GradientTape() as tape:
    tape.watch(x)
    outputs = tf.nest.flatten(layer(x, **arguments))
    loss = sum(
      tf.reduce_sum(tf.sin((index + 1) * output))
      for index, output in enumerate(outputs)
    )
  return [*outputs, *tape.gradient(loss, [x, *layer.trainable_variables])]


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'masked': True},
    {'go_backwards': True},
    {'masked': True, 'go_backwards': True, 'unroll': False},
    {'masked': True, 'return_sequences': False},
    {'initial': True, 'masked': True},
    {'initial': True, 'unroll': False},
    {'use_bias': False},
    {'activation': 'softsign', 'recurrent_activation': 'hard_sigmoid'},
  ],
  ids=str,
)
def test_equals_keras_gru(options):
  tf.keras.utils.set_random_seed(0)
  options = {'return_sequences': True, 'return_state': True, **options}
  arguments = {}
  if options.pop('masked', False):
    arguments['mask'] = tf.sequence_mask([7, 1, 0, 4], STEPS)
  if options.pop('initial', False):
    arguments['initial_state'] = tf.random.normal([BATCH, UNITS])
  unroll = options.pop('unroll', None)
  keras_layer = tf.keras.layers.GRU(UNITS, **options)
  layer = layers.GRU(UNITS, unroll=unroll, **options)
  x = tf.random.normal([BATCH, STEPS, FEATURES])
  keras_layer(x)
  generator = np.random.default_rng(1)
  weights = [
    generator.normal(size=w.shape).astype('float32')
    for w in keras_layer.get_weights()
  ]
  expected = _results(keras_layer, x, weights, **arguments)
  actual = _results(layer, x, weights, **arguments)
  for ours, theirs in zip(actual, expected):
    np.testing.assert_allclose(ours, theirs, atol=5e-6, rtol=2e-5)


def test_fresh_weights_and_weight_names_are_those_of_keras():
  x = tf.zeros([1, 2, 3])
  made = []
  for layer_class in (tf.keras.layers.GRU, layers.GRU):
    tf.keras.utils.set_random_seed(1)
    layer = layer_class(4)
    layer(x)
    made.append(layer)
  for expected, actual in zip(made[0].weights, made[1].weights):
    assert actual.name.split('/')[-1] == expected.name.split('/')[-1]
    np.testing.assert_array_equal(actual, expected)


def test_state_is_the_output_and_continues_a_sequence():
  tf.keras.utils.set_random_seed(2)
  x = tf.random.normal([BATCH, STEPS, FEATURES])
  layer = layers.SIGRU(UNITS, return_sequences=True, return_state=True)
  whole, last = layer(x)
  np.testing.assert_array_equal(whole[:, -1], last)
  first, state = layer(x[:, :3])
  second, _ = layer(x[:, 3:], initial_state=state)
  np.testing.assert_allclose(
    tf.concat([first, second], axis=1), whole, atol=1e-6
  )


def test_projection_enters_the_recurrence():
  layer = layers.GRU(4, projection_units=2, return_state=True)
  output, h, c = layer(tf.ones([3, 5, 6]))
  assert output.shape == h.shape == (3, 2)
  assert c.shape == (3, 4)
  assert [tuple(w.shape) for w in layer.weights] == [
    (6, 12),
    (2, 12),
    (2, 12),
    (4, 2),
    (2,),
  ]
  np.testing.assert_allclose(
    h,
    c @ layer.cell.projection_kernel + layer.cell.projection_bias,
    atol=1e-6,
  )


def test_one_step_by_hand():
  cell = layers.SIGRUCell(2)
  cell.build((1, 1))
  # Column blocks: update, reset, candidate.
  weights = [
    [[2.0, 1.0, 4.0, 1.0, 1.0, 1.0]],
    [[2.0, 0.0, 0.0, 2.0, 2.0, 2.0], [0.0, 1.0, 0.0, 0.0, 0.0, 1.0]],
    [[0.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0, 0.0, -4.0]],
  ]
  cell.set_weights([np.array(w) for w in weights])
  # From h = (1/2, -1): update (3, 3/2), so u = (1, 1/2); reset (4, 2), so
  # r = (1, 1/2); candidate (1, 1) + r * (1, -4) = (2, -1), so g = (1, -1/2).
  output, [state] = cell(tf.constant([[1.0]]), [tf.constant([[0.5, -1.0]])])
  np.testing.assert_array_equal(output, [[0.5, -0.75]])
  np.testing.assert_array_equal(state, output)


def _maxn(x):
  largest = np.max(np.abs(x))
  return x / largest if largest else np.zeros_like(x)


@pytest.mark.parametrize('projection_units', [None, 3])
def test_scale_invariant_equations(projection_units):
  tf.keras.utils.set_random_seed(3)
  layer = layers.SIGRU(
    UNITS,
    projection_units=projection_units,
    return_sequences=True,
    bias_initializer=tf.keras.initializers.RandomNormal(seed=4),
  )
  x = np.random.default_rng(5).normal(size=(BATCH, STEPS, FEATURES))
  actual = layer(x.astype('float32'))
  kernel, recurrent, bias, *projection = (
    w.astype('float64') for w in layer.get_weights()
  )
  expected = np.zeros(actual.shape)
  for example in range(BATCH):
    h, c = np.zeros(recurrent.shape[0]), np.zeros(UNITS)
    for t in range(STEPS):
      from_input = np.split(x[example, t] @ kernel + bias[0], 3)
      from_state = np.split(h @ recurrent + bias[1], 3)
      u, r = (
        _maxn(np.maximum(from_input[i] + from_state[i], 0)) for i in (0, 1)
      )
      g = _maxn(from_input[2] + r * from_state[2])
      h = c = u * c + (1 - u) * g
      if projection:
        h = c @ projection[0] + projection[1]
      expected[example, t] = h
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def _gradient_at_dead_gates(**options):
  """Returns the gradient of the input bias where both gates are all zero."""
  tf.keras.utils.set_random_seed(6)
  layer = layers.SIGRU(UNITS, **options)
  x = tf.random.normal([BATCH, STEPS, FEATURES])
  layer(x)
  kernel, recurrent, bias = layer.get_weights()
  bias[0, : 2 * UNITS] = -10.0
  layer.set_weights([kernel, recurrent, bias])
  with tf.GradientTape() as tape:
    loss = tf.reduce_sum(layer(x) ** 2)
  return tape.gradient(loss, layer.cell.bias)[0]


def test_gradient_through_dead_gates_needs_a_slope():
  dead = _gradient_at_dead_gates(dead_gate_slope=0.0)
  np.testing.assert_array_equal(dead[: 2 * UNITS], np.zeros(2 * UNITS))
  alive = _gradient_at_dead_gates()
  assert np.all(alive[:UNITS] != 0)
  assert np.all(alive[UNITS : 2 * UNITS] != 0)


@pytest.mark.parametrize(
  ('options', 'error', 'message'),
  [
    ({'units': 0}, ValueError, 'units must be a positive'),
    ({'units': 4, 'projection_units': 1.5}, ValueError, 'projection_units'),
    ({'units': 4, 'dead_gate_slope': -1.0}, ValueError, 'must not be negative'),
    ({'units': 4, 'unit_forget_bias': True}, TypeError, 'unit_forget_bias'),
  ],
)
def test_bad_arguments_are_refused(options, error, message):
  with pytest.raises(error, match=message):
    layers.SIGRU(**options)
