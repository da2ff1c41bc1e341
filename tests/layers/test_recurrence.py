"""The fused recurrence against Keras's loop over the cell, gradients too."""

from __future__ import annotations

from typing import Any, Dict, List

import numpy as np
import pytest
import tensorflow as tf

from si_federated import layers
from si_federated.layers import legacy_keras

PAIRS = {
  'lstm': layers.LSTM,
  'cifg': layers.CIFG,
  'si_cifg': layers.SICIFG,
  'si_lstm': layers.SILSTM,
  'gru': layers.GRU,
  'si_gru': layers.SIGRU,
}
# Layers whose output, without a projection, is their whole state.
ONE_STATE = ('gru', 'si_gru')
BATCH, STEPS, FEATURES, UNITS = 4, 7, 5, 6
MASK = np.array(
  [
    [1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 0, 0, 0, 0],
    [0, 0, 1, 1, 0, 1, 1],
    [0, 0, 0, 0, 0, 0, 0],
  ],
  bool,
)


def _run(function, variables, x, **arguments):
  x = tf.convert_to_tensor(x)
  with tf.GradientTape() as tape:
    tape.watch(x)
    outputs = tf.nest.flatten(function(x, **arguments))
    loss = 0.0
    for index, output in enumerate(outputs):
      phase = tf.reshape(
        tf.range(tf.size(output), dtype=tf.float32), output.shape
      )
      loss += tf.reduce_sum(tf.sin((index + 1) * output + phase))
  return outputs + tape.gradient(loss, [x, *variables])


LAYERS = [
  ('si_cifg', None),
  ('si_cifg', False),
  ('lstm', None),
  ('cifg', False),
  ('si_lstm', None),
  ('gru', False),
  ('si_gru', None),
]
# The first three reach the paths in which the layers differ.
OPTIONS: List[Dict[str, Any]] = [
  {'projection_units': 3, 'masked': True},
  {'masked': True, 'initial': True, 'go_backwards': True},
  {'activation': 'softsign', 'masked': True, 'projection_units': 3},
  {},
  {'masked': True, 'go_backwards': True, 'return_sequences': False},
  {'projection_units': 3, 'initial': True},
  {'masked': True, 'zero_output_for_mask': True},
  {'use_bias': False, 'projection_units': 3},
]


@pytest.mark.parametrize(
  ('name', 'unroll', 'options'),
  [
    pytest.param(
      *layer,
      options,
      marks=[pytest.mark.slow] if i >= 2 and j >= 3 else [],
      id=f'{layer}-{options}',
    )
    for i, layer in enumerate(LAYERS)
    for j, options in enumerate(OPTIONS)
  ],
)
def test_equals_the_cell_in_keras(name, unroll, options):
  tf.keras.utils.set_random_seed(0)
  options = {'return_sequences': True, **options}
  masked, initial = options.pop('masked', False), options.pop('initial', False)
  layer = PAIRS[name](
    UNITS,
    return_state=True,
    unroll=unroll,
    bias_initializer=tf.keras.initializers.RandomNormal(seed=1),
    **options,
  )
  x = np.random.default_rng(2).normal(size=(BATCH, STEPS, FEATURES))
  x = x.astype('float32')
  layer(x)
  loop = tf.keras.layers.RNN(
    layer.cell,
    return_state=True,
    **{
      key: options[key]
      for key in ('return_sequences', 'go_backwards', 'zero_output_for_mask')
      if key in options
    },
  )
  arguments = {}
  if masked:
    arguments['mask'] = tf.constant(MASK)
  if initial:
    arguments['initial_state'] = [
      tf.random.normal([BATCH, size]) for size in layer.cell.state_size
    ]
  variables = layer.trainable_variables
  expected = _run(loop, variables, x, **arguments)
  fused = tf.function(lambda x: _run(layer, variables, x, **arguments))(x)
  for actual, wanted in zip(fused, expected):
    scale = 1 + np.abs(wanted).max()
    np.testing.assert_allclose(actual / scale, wanted / scale, atol=1e-5)


@pytest.mark.parametrize('name', list(PAIRS))
def test_eager_equals_compiled(name):
  tf.keras.utils.set_random_seed(1)
  layer = PAIRS[name](UNITS, projection_units=3, return_sequences=True)
  x = tf.random.normal([BATCH, STEPS, FEATURES])
  layer(x)
  variables = layer.trainable_variables
  eager = _run(layer, variables, x, mask=tf.constant(MASK))
  compiled = tf.function(
    lambda x: _run(layer, variables, x, mask=tf.constant(MASK))
  )(x)
  for actual, expected in zip(compiled, eager):
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize('name', list(PAIRS))
def test_gradients_of_the_initial_state(name):
  tf.keras.utils.set_random_seed(2)
  layer = PAIRS[name](UNITS, return_sequences=True)
  x = tf.random.normal([BATCH, STEPS, FEATURES])
  layer(x)
  assert len(layer.cell.state_size) == (1 if name in ONE_STATE else 2)
  state = [tf.random.normal([BATCH, n]) for n in layer.cell.state_size]
  results = []
  for function in (
    layer,
    tf.keras.layers.RNN(layer.cell, return_sequences=True),
  ):
    with tf.GradientTape() as tape:
      tape.watch(state)
      loss = tf.reduce_sum(tf.sin(function(x, initial_state=state)))
    results.append(tape.gradient(loss, state))
  for actual, expected in zip(*results):
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize('name', list(PAIRS))
def test_stateful_continues_the_sequence(name):
  tf.keras.utils.set_random_seed(3)
  x = tf.random.normal([BATCH, 2 * STEPS, FEATURES])
  stateful = PAIRS[name](UNITS, stateful=True, return_sequences=True)
  first = stateful(x[:, :STEPS])
  second = stateful(x[:, STEPS:])
  whole = PAIRS[name](UNITS, return_sequences=True)
  whole(x)
  whole.set_weights(stateful.get_weights()[:3])
  np.testing.assert_allclose(
    tf.concat([first, second], axis=1), whole(x), atol=1e-5
  )
  stateful.reset_states()
  np.testing.assert_allclose(stateful(x[:, :STEPS]), first, atol=1e-6)


@pytest.mark.skipif(legacy_keras.IS_KERAS_3, reason='Keras 3 has none.')
def test_time_major_is_the_transpose():
  tf.keras.utils.set_random_seed(4)
  x = tf.random.normal([BATCH, STEPS, FEATURES])
  layer = layers.SICIFG(UNITS, return_sequences=True)
  expected = layer(x, mask=tf.constant(MASK))
  other = layers.SICIFG(
    UNITS, return_sequences=True, time_major=True, weights=layer.get_weights()
  )
  actual = other(tf.transpose(x, [1, 0, 2]), mask=tf.constant(MASK.T))
  np.testing.assert_allclose(
    tf.transpose(actual, [1, 0, 2]), expected, atol=1e-6
  )


@pytest.mark.skipif(legacy_keras.IS_KERAS_3, reason='Keras 3 takes none.')
def test_ragged_input_equals_masked_input():
  tf.keras.utils.set_random_seed(5)
  x = tf.random.normal([2, 4, FEATURES])
  layer = layers.CIFG(UNITS)
  mask = tf.sequence_mask([4, 2], 4)
  ragged = tf.RaggedTensor.from_tensor(x, lengths=[4, 2])
  np.testing.assert_allclose(layer(ragged), layer(x, mask=mask), atol=1e-5)


def test_unrolling_an_unknown_length_is_refused():
  layer = layers.CIFG(UNITS, unroll=True)
  with pytest.raises(ValueError, match='known number of time steps'):
    tf.function(layer).get_concrete_function(
      tf.TensorSpec([None, None, FEATURES])
    )


def test_long_sequences_use_a_loop():
  layer = layers.CIFG(UNITS)

  def operations(steps):
    traced = tf.function(layer).get_concrete_function(
      tf.TensorSpec([None, steps, FEATURES])
    )
    return len(traced.graph.get_operations())

  layer(tf.zeros([1, 2, FEATURES]))
  assert operations(200) == operations(100) < operations(30)
