"""Tests that skipping padding changes nothing but the work."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated import algorithms, models
from si_federated.algorithms import packed_tokens

_VOCAB, _END = 11, 10
# Padding inside a sentence, a cut sentence, an empty one.
_IDS = np.array(
  [[9, 3, 0, 4, 5], [9, 1, 2, _END, 0], [9, 8, 7, 6, 5], [0, 0, 0, 0, 0]],
  np.int32,
)
_POSITIONS = [0, 1, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14]


def _recurrent(name, **options):
  return models.MODELS[name](_VOCAB, units=5, embedding_size=4, **options)


def _mixing():
  """A model whose last layer looks at other positions too."""
  ids = tf.keras.Input([None], dtype=tf.int32)
  hidden = tf.keras.layers.Embedding(_VOCAB, 4)(ids)
  outputs = tf.keras.layers.Conv1D(_VOCAB, 3, padding='causal')(hidden)
  return tf.keras.Model(ids, outputs)


_MODELS = {
  'tied': lambda: _recurrent('si_cifg'),
  'untied': lambda: _recurrent('lstm', tied_embeddings=False),
  'projected': lambda: _recurrent('cifg', projection_units=4),
  'mixing': _mixing,
}


@pytest.mark.parametrize('name', _MODELS)
def test_logits_and_gradients_are_those_of_the_padded_computation(name):
  tf.keras.utils.set_random_seed(1)
  model = _MODELS[name]()
  packed = packed_tokens.pack_tokens(model, end_of_sentence=_END)
  factors = tf.random.stateless_normal([len(_POSITIONS), _VOCAB], [0, 1])
  with tf.GradientTape(persistent=True) as tape:
    positions, logits = packed(_IDS)
    padded = tf.gather(tf.reshape(model(_IDS), [-1, _VOCAB]), _POSITIONS)
    value, padded_value = (
      tf.reduce_sum(tf.square(x) * factors) for x in (logits, padded)
    )
  np.testing.assert_array_equal(positions, _POSITIONS)
  np.testing.assert_allclose(logits, padded, rtol=1e-5, atol=1e-6)
  weights = packed.trainable_variables
  assert [w.ref() for w in weights] == [
    w.ref() for w in model.trainable_variables
  ]
  for gradient, expected in zip(
    tape.gradient(value, weights), tape.gradient(padded_value, weights)
  ):
    np.testing.assert_allclose(
      tf.convert_to_tensor(gradient),
      tf.convert_to_tensor(expected),
      rtol=1e-4,
      atol=1e-6,
    )


def test_a_batch_of_padding_has_no_tokens():
  packed = packed_tokens.pack_tokens(_recurrent('cifg'), end_of_sentence=_END)
  positions, logits = packed(np.zeros([2, 5], np.int32))
  assert positions.shape == (0,)
  assert logits.shape == (0, _VOCAB)


def test_the_head_runs_on_tokens_only():
  rows = []

  class Counting(tf.keras.layers.Layer):
    is_position_wise = True

    def call(self, inputs):
      if tf.executing_eagerly():
        rows.append(inputs.shape)
      return inputs

  ids = tf.keras.Input([None], dtype=tf.int32)
  hidden = tf.keras.layers.Embedding(_VOCAB, 4)(ids)
  hidden = tf.keras.layers.Conv1D(4, 3, padding='causal')(hidden)
  logits = tf.keras.layers.Dense(_VOCAB)(Counting()(hidden))
  packed = packed_tokens.pack_tokens(
    tf.keras.Model(ids, logits), end_of_sentence=_END
  )
  packed(_IDS)
  assert rows == [(len(_POSITIONS), 4)]


def test_accuracy_breaks_ties_as_argmax_does():
  constant = tf.keras.initializers.Constant
  # Every id has the same logits: classes 2 and 4 share the maximum.
  table = np.tile(np.eye(6)[2] + np.eye(6)[4], [6, 1])
  spec = (tf.TensorSpec([None, 3], tf.int32),) * 2

  def keras_model():
    ids = tf.keras.Input([None], dtype=tf.int32)
    table_layer = tf.keras.layers.Embedding(
      6, 6, embeddings_initializer=constant(table)
    )
    return tf.keras.Model(ids, table_layer(ids))

  class Loss(tf.keras.losses.Loss):
    def __call__(self, y_true, y_pred, sample_weight=None):
      return tf.reduce_sum(y_pred) * 0

  model = algorithms.build_functional_model(
    keras_model, loss=Loss(), element_spec=spec, end_of_sentence=5
  )
  x, y = np.array([[1, 2, 3]], np.int32), np.array([[4, 2, 3]], np.int32)
  initialize, update, finalize = (
    model.initialize_metrics_state,
    model.update_metrics_state,
    model.finalize_metrics,
  )
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    weights = tuple(tf.constant(w) for w in model.initial_weights[0])
    output = model.predict_on_batch((weights, ()), x, False)

    class Output:
      predictions = output
      loss = tf.constant(0.0)

    metrics = session.run(
      finalize(update(initialize(), tf.constant(y), Output))
    )
  assert metrics['accuracy'] == pytest.approx(1 / 3)
