"""The embedding that also computes the logits."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated import layers
from si_federated.layers import legacy_keras

_IDS = np.array([[3, 1, 0], [4, 4, 2]], np.int32)


def _layer(**kwargs):
  tf.keras.utils.set_random_seed(0)
  return layers.TiedEmbedding(5, 2, mask_zero=True, **kwargs)


def _model(**kwargs):
  """Maps ids to logits through the embedding, twice."""
  layer = _layer(**kwargs)
  ids = tf.keras.Input([None], dtype=tf.int32)
  return tf.keras.Model(
    ids, layer(tf.keras.layers.Activation('tanh')(layer(ids)), reverse=True)
  )


def test_logits_are_products_with_the_embeddings():
  layer = _layer()
  embedded = layer(_IDS).numpy()
  (weights,) = layer.get_weights()
  np.testing.assert_array_equal(embedded, weights[_IDS])
  vectors = np.random.default_rng(0).normal(size=[2, 3, 2]).astype('float32')
  np.testing.assert_allclose(
    layer(vectors, reverse=True), vectors @ weights.T, rtol=1e-6
  )


def test_configuration_round_trip():
  layer = _layer(name='some_name')
  expected = layer(_IDS)
  copy = tf.keras.layers.deserialize(tf.keras.layers.serialize(layer))
  assert type(copy) is layers.TiedEmbedding
  assert copy.get_config() == layer.get_config()
  copy(_IDS)
  copy.set_weights(layer.get_weights())
  np.testing.assert_array_equal(copy(_IDS), expected)


def test_shapes_and_mask():
  layer = _layer()
  ids = tf.keras.Input([None], dtype=tf.int32)
  embedded = layer(ids)
  assert tuple(embedded.shape) == (None, None, 2)
  logits = layer(embedded, reverse=True)
  assert tuple(logits.shape) == (None, None, 5)
  eager = layer(layer(_IDS), reverse=True)
  np.testing.assert_array_equal(eager._keras_mask, _IDS != 0)


def test_the_gradient_is_that_of_both_uses():
  model = _model()
  (embeddings,) = model.trainable_variables
  with tf.GradientTape() as tape:
    loss = tf.reduce_sum(model(_IDS)[..., 1] ** 2)
  gradient = tf.convert_to_tensor(tape.gradient(loss, embeddings)).numpy()
  before = embeddings.numpy().astype(np.float64)

  def value(weights):
    return np.sum((np.tanh(weights[_IDS]) @ weights.T)[..., 1] ** 2)

  step = 1e-5
  for index in np.ndindex(*before.shape):
    moved = np.zeros_like(before)
    moved[index] = step
    slope = (value(before + moved) - value(before - moved)) / (2 * step)
    assert gradient[index] == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
  'file_name',
  [
    'model.keras',
    pytest.param(
      'saved_model',
      marks=pytest.mark.skipif(
        legacy_keras.IS_KERAS_3, reason='Keras 3 exports, but loads none.'
      ),
    ),
    'model.h5',
  ],
)
def test_trains_and_is_saved_tied(file_name, tmp_path):
  model = _model()
  before = model.get_weights()[0].copy()
  model.compile(
    'sgd', tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  )
  model.fit(_IDS, _IDS, verbose=0)
  assert np.all(np.any(model.get_weights()[0] != before, axis=1))
  model.save(tmp_path / file_name)
  loaded = tf.keras.models.load_model(tmp_path / file_name)
  assert len(loaded.trainable_variables) == 1
  np.testing.assert_allclose(loaded(_IDS), model(_IDS), atol=1e-6)


@pytest.mark.parametrize('policy', ['mixed_float16', 'mixed_bfloat16'])
def test_mixed_precision(policy):
  exact, model = _model(), _model(dtype=policy)
  model.set_weights(exact.get_weights())
  output = model(_IDS)
  assert output.dtype.name == policy[len('mixed_') :]
  np.testing.assert_allclose(
    tf.cast(output, tf.float32), exact(_IDS), atol=0.05
  )
  assert model.trainable_variables[0].dtype == tf.float32


def test_tensorflow_lite():
  layer = _layer()
  ids = tf.keras.Input([3], batch_size=2, dtype=tf.int32)
  model = tf.keras.Model(
    ids, layer(tf.keras.layers.Activation('tanh')(layer(ids)), reverse=True)
  )
  converted = tf.lite.TFLiteConverter.from_keras_model(model).convert()
  interpreter = tf.lite.Interpreter(model_content=converted)
  interpreter.allocate_tensors()
  interpreter.set_tensor(interpreter.get_input_details()[0]['index'], _IDS)
  interpreter.invoke()
  actual = interpreter.get_tensor(interpreter.get_output_details()[0]['index'])
  np.testing.assert_allclose(actual, model(_IDS), atol=1e-6)
