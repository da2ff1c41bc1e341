"""Gradients of the requested variables, and of no others."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import build_functional_model
from si_federated.algorithms.lazy_gradients import LazyGradients
from si_federated.models import MODELS

_VOCABULARY = 11


def _language_model(name, **options):
  return build_functional_model(
    lambda: MODELS[name](vocab_size=_VOCABULARY, **options),
    loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    element_spec=(
      tf.TensorSpec([None, 4], tf.int32),
      tf.TensorSpec([None, 4], tf.int32),
    ),
    end_of_sentence=_VOCABULARY - 1,
  )


_SMALL = {'embedding_size': 8}
_MODELS = {
  'lstm': {**_SMALL, 'units': 6, 'tied_embeddings': False},
  'si_cifg': {**_SMALL, 'units': 6},
  'si_transformer': {**_SMALL, 'num_heads': 2, 'num_layers': 2},
  'conformer': {**_SMALL, 'num_heads': 2, 'num_layers': 1, 'kernel_size': 2},
}


def _batch():
  ids = np.random.default_rng(0).integers(1, 9, [3, 5])
  return (
    tf.constant(ids[:, :-1], tf.int32),
    tf.constant(ids[:, 1:], tf.int32),
  )


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[] if name == 'si_cifg' else [pytest.mark.slow])
    for name in _MODELS
  ],
)
def test_gradients_are_those_of_a_tape(name):
  tf.keras.utils.set_random_seed(1)
  model = _language_model(name, **_MODELS[name])
  step = LazyGradients(model)
  weights = model.initial_weights

  @tf.function
  def lazily(x, y):
    loss, output, gradients = step(weights, x, y)
    return (
      loss,
      output,
      [
        tf.cond(tf.equal(tf.shape(x)[0], 3), g, lambda w=w: tf.zeros_like(w))
        for g, w in zip(gradients, weights[0])
      ],
    )

  @tf.function
  def at_once(x, y):
    trainable, others = tf.nest.map_structure(tf.constant, weights)
    with tf.GradientTape() as tape:
      tape.watch(trainable)
      output = model.predict_on_batch((trainable, others), x, training=True)
      loss = model.loss(output=output, label=y)
    gradients = tape.gradient(loss, trainable)
    return loss, output, [tf.convert_to_tensor(g) for g in gradients]

  # TFF uses Keras models only in graphs.
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    (loss, output, gradients), (expected_loss, expected_output, expected) = (
      session.run([lazily(*_batch()), at_once(*_batch())])
    )
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
  for mine, theirs in zip(output, expected_output):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
  assert len(gradients) == len(weights[0])
  for mine, theirs in zip(gradients, expected):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
    assert np.abs(theirs).max() > 0


_computed: collections.Counter[str] = collections.Counter()


@tf.custom_gradient
def _times(x, kernel, name):
  """A product that counts computations of the kernel's gradient."""

  def gradient(upstream):
    by_x = tf.matmul(upstream, kernel, transpose_b=True)
    by_kernel = tf.matmul(x, upstream, transpose_a=True)

    # Stateless, like the operations of a gradient.
    counted = tf.numpy_function(
      lambda value, name: (_computed.update([name.decode()]), value)[1],
      [by_kernel, name],
      tf.float32,
      stateful=False,
    )
    return by_x, tf.ensure_shape(counted, by_kernel.shape), None

  return tf.matmul(x, kernel), gradient


def _counting_model():
  @tf.function
  def predict(weights, x, training=True):
    del training
    (first, second), _ = weights
    hidden = _times(x, first, tf.constant('first'))
    return _times(hidden, second, tf.constant('second'))

  return tff.learning.models.FunctionalModel(
    initial_weights=(
      (np.ones([2, 3], np.float32), np.ones([3, 1], np.float32)),
      (),
    ),
    predict_on_batch_fn=predict,
    loss_fn=lambda output, label, sample_weight=None: tf.reduce_mean(
      tf.square(output - label)
    ),
    input_spec=(
      tf.TensorSpec([None, 2], tf.float32),
      tf.TensorSpec([None, 1], tf.float32),
    ),
  )


@pytest.mark.parametrize('trained', [(), ('first',), ('second',)])
def test_a_frozen_variable_costs_no_gradient(trained):
  model = _counting_model()
  step = LazyGradients(model)

  @tf.function
  def run(first, second):
    _, _, gradients = step(
      model.initial_weights, tf.ones([4, 2]), tf.zeros([4, 1])
    )
    return [
      tf.cond(is_trained, gradient, lambda w=weight: tf.zeros(w.shape))
      for is_trained, gradient, weight in zip(
        (first, second), gradients, model.initial_weights[0]
      )
    ]

  _computed.clear()
  run(tf.constant('first' in trained), tf.constant('second' in trained))
  assert _computed == dict.fromkeys(trained, 1)


def test_a_variable_without_effect_has_a_gradient_of_zero():
  @tf.function
  def predict(weights, x, training=True):
    del training
    return x * weights[0][0]

  model = tff.learning.models.FunctionalModel(
    initial_weights=((np.float32(2), np.ones([3], np.float32)), ()),
    predict_on_batch_fn=predict,
    loss_fn=lambda output, label, sample_weight=None: tf.reduce_sum(output),
    input_spec=(tf.TensorSpec([None]), tf.TensorSpec([None])),
  )
  step = LazyGradients(model)

  @tf.function
  def run():
    _, _, gradients = step(model.initial_weights, tf.ones([2]), tf.ones([2]))
    return [gradient() for gradient in gradients]

  used, unused = run()
  assert used == 2
  np.testing.assert_array_equal(unused, np.zeros([3]))
