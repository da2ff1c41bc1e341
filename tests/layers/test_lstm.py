"""The LSTM against Keras's own."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated import layers


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('go_backwards', [False, True])
def test_equals_keras_lstm(masked, go_backwards):
  tf.keras.utils.set_random_seed(0)
  options = {
    'units': 6,
    'return_sequences': True,
    'return_state': True,
    'go_backwards': go_backwards,
  }
  keras_layer = tf.keras.layers.LSTM(**options)
  layer = layers.LSTM(**options)
  x = tf.random.normal([4, 7, 5])
  mask = tf.sequence_mask([7, 1, 0, 4], 7) if masked else None
  results = []
  for candidate in (keras_layer, layer):
    candidate(x)
    candidate.set_weights(keras_layer.get_weights())
    with tf.GradientTape() as tape:
      outputs = candidate(x, mask=mask)
      loss = tf.reduce_sum(tf.sin(outputs[0] * 3)) + tf.reduce_sum(outputs[2])
    results.append(
      [*outputs, *tape.gradient(loss, candidate.trainable_variables)]
    )
  for expected, actual in zip(*results):
    np.testing.assert_allclose(actual, expected, atol=2e-6, rtol=1e-5)


def test_fresh_weights_are_those_of_keras():
  x = tf.zeros([1, 2, 3])
  weights = []
  for layer_class in (tf.keras.layers.LSTM, layers.LSTM):
    tf.keras.utils.set_random_seed(1)
    layer = layer_class(4)
    layer(x)
    weights.append(layer.get_weights())
  for expected, actual in zip(*weights):
    np.testing.assert_array_equal(actual, expected)


def test_projection_enters_the_recurrence():
  layer = layers.LSTM(4, projection_units=2, return_state=True)
  output, h, c = layer(tf.ones([3, 5, 6]))
  assert output.shape == h.shape == (3, 2)
  assert c.shape == (3, 4)
  assert layer.cell.recurrent_kernel.shape == (2, 16)
