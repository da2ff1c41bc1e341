"""Tests of classifiers as TFF models, and of tracing Keras models."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated.algorithms import traced_models
from si_federated.algorithms.functional_classifier import (
  build_functional_classifier,
)

_SPEC = (tf.TensorSpec([None, 4], tf.int32), tf.TensorSpec([None], tf.int32))
_LOSS = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _keras_model(dropout=0.0):
  """Has parts that fail in older Keras: plain operations, a nested model."""
  tf.random.set_seed(3)
  inner_ids = tf.keras.layers.Input([None], dtype=tf.int32)
  mask = tf.cast(tf.not_equal(inner_ids, 0), tf.float32)[..., tf.newaxis]
  hidden = tf.keras.layers.Embedding(6, 5, name='embedding')(inner_ids)
  if dropout:
    hidden = tf.keras.layers.Dropout(dropout)(hidden)
  attended = tf.keras.layers.MultiHeadAttention(1, 3, name='attention')(
    hidden * mask, hidden * mask
  )
  inner = tf.keras.Model(inner_ids, attended)
  ids = tf.keras.layers.Input([None], dtype=tf.int32, name='ids')
  frozen = tf.keras.layers.Dense(4, name='frozen', trainable=False)
  first = frozen(inner(ids)[:, 0, :])
  return tf.keras.Model(
    ids, tf.keras.layers.Dense(3, name='logits')(tf.nn.gelu(first))
  )


@pytest.fixture(scope='module')
def models():
  functional = build_functional_classifier(
    lambda: _keras_model(),
    loss=_LOSS,
    element_spec=_SPEC,
    num_classes=3,
  )
  keras_model = _keras_model()
  return functional, keras_model


def _assign(keras_model, functional):
  values = {True: list(functional.initial_weights[0])}
  values[False] = list(functional.initial_weights[1])
  assert len(values[False]) == 2
  # Variables in the order of creation: embedding, attention, frozen, logits.
  for variable in (
    keras_model.layers[1].trainable_variables
    + keras_model.get_layer('logits').trainable_variables
  ):
    variable.assign(values[True].pop(0))
  frozen = keras_model.get_layer('frozen')
  for variable in frozen.variables:
    variable.assign(values[False].pop(0))


_IDS = np.array([[1, 2, 3, 0], [5, 4, 0, 0], [2, 2, 2, 2]], np.int32)
_LABELS = np.array([2, 0, 1], np.int32)


def test_logits_and_gradients_are_keras_own(models):
  functional, keras_model = models
  _assign(keras_model, functional)
  with tf.GradientTape() as tape:
    expected = keras_model(_IDS)
    loss = _LOSS(_LABELS, expected)
  gradients = tape.gradient(
    loss,
    keras_model.layers[1].trainable_variables
    + keras_model.get_layer('logits').trainable_variables,
  )

  def step(weights):
    with tf.GradientTape() as tape:
      tape.watch(weights[0])
      logits = functional.predict_on_batch(weights, _IDS, training=True)
      loss = functional.loss(logits, _LABELS)
    return logits, tape.gradient(loss, weights[0])

  with tf.Graph().as_default():
    weights = tf.nest.map_structure(tf.constant, functional.initial_weights)
    logits, found = tf.function(step)(weights)
    found = [tf.convert_to_tensor(gradient) for gradient in found]
    with tf.compat.v1.Session() as session:
      logits, found = session.run((logits, found))
  np.testing.assert_allclose(logits, expected, atol=1e-6)
  assert len(found) == len(gradients) == 11
  for one, other in zip(found, gradients):
    np.testing.assert_allclose(one, tf.convert_to_tensor(other), atol=1e-6)


def test_names_and_frozen_weights(models):
  functional, _ = models
  assert functional.variable_names[0].startswith('embedding')
  assert functional.variable_names[-1] == 'logits/bias:0'
  assert len(functional.variable_names) == len(functional.initial_weights[0])
  assert [w.shape for w in functional.initial_weights[1]] == [(5, 4), (4,)]


def test_metrics_by_hand(models):
  functional, _ = models
  initialize, update, finalize = (
    functional.initialize_metrics_state,
    functional.update_metrics_state,
    functional.finalize_metrics,
  )

  class Output:
    def __init__(self, guesses, loss):
      self.predictions = tf.one_hot(guesses, 3)
      self.loss = tf.constant(loss)

  state = initialize()
  state = update(state, tf.constant([0, 0, 1]), Output([0, 1, 1], 2.0))
  state = update(state, tf.constant([0]), Output([0], 6.0))
  result = {name: float(v) for name, v in finalize(state).items()}
  # Class 0: 2 right of 3, guessed 2 times; class 1: 1 right of 1, 2 times;
  # class 2 does not occur.
  assert result['loss'] == pytest.approx((3 * 2.0 + 6.0) / 4)
  assert result['accuracy'] == pytest.approx(3 / 4)
  assert result['macro_f1'] == pytest.approx((4 / 5 + 2 / 3) / 2)
  assert result['num_examples'] == 4


def test_dropout_differs_between_runs():
  """The graph does not contain the global seed, which TFF refuses."""
  model = traced_models.functional_model_from_keras(
    lambda: _keras_model(dropout=0.5), _LOSS, _SPEC
  )
  with tf.Graph().as_default():
    weights = tf.nest.map_structure(tf.constant, model.initial_weights)
    training = model.predict_on_batch(weights, _IDS, training=True)
    still = model.predict_on_batch(weights, _IDS, training=False)
    with tf.compat.v1.Session() as session:
      first, second = (session.run((training, still)) for _ in range(2))
  assert not np.array_equal(first[0], second[0])
  np.testing.assert_array_equal(first[1], second[1])


def test_different_variables_in_a_second_build_raise():
  sizes = iter([3, 4, 4, 4])

  def changing():
    ids = tf.keras.layers.Input([4], dtype=tf.int32)
    hidden = tf.cast(ids, tf.float32)
    for _ in range(next(sizes) - 2):
      hidden = tf.keras.layers.Dense(3)(hidden)
    return tf.keras.Model(ids, hidden)

  with pytest.raises((ValueError, IndexError)):
    traced_models.functional_model_from_keras(changing, _LOSS, _SPEC)
