"""The models inside TensorFlow Federated's two model interfaces."""

from __future__ import annotations

from typing import Any, Dict, List

import numpy as np
import pytest
import tensorflow as tf

from si_federated.models import MODELS

tff = pytest.importorskip('tensorflow_federated')

SPEC = (tf.TensorSpec([None, 5], tf.int32), tf.TensorSpec([None, 5], tf.int32))
X = np.array([[7, 1, 2, 3, 4], [7, 5, 9, 0, 0]], np.int32)
Y = np.array([[1, 2, 3, 4, 8], [5, 9, 8, 0, 0]], np.int32)
RECURRENT = ('lstm', 'si_cifg', 'si_gru')
ATTENTION = ('si_transformer', 'si_conformer')
OPTIONS: List[Dict[str, Any]] = [
  {},
  {'tied_embeddings': False},
  {'projection_units': 6, 'num_layers': 2, 'normalize_embedding': True},
]
# Pairs of models and options that reach every path once.
FAST = [
  ('lstm', 1),
  ('si_cifg', 0),
  ('si_gru', 2),
  ('si_transformer', 1),
  ('si_conformer', 0),
]


def _models(*fast):
  slow = pytest.mark.slow
  return pytest.mark.parametrize(
    'name',
    [
      name if name in fast else pytest.param(name, marks=slow)
      for name in (*RECURRENT, *ATTENTION)
    ],
  )


class _Loss(tf.keras.losses.Loss):
  """Mean over labels that aren't padding."""

  def __call__(self, y_true, y_pred, sample_weight=None):
    del sample_weight
    weights = tf.cast(y_true > 0, tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y_true, y_pred)
    return tf.math.divide_no_nan(
      tf.reduce_sum(losses * weights), tf.reduce_sum(weights)
    )


def _model(name, **options):
  tf.keras.utils.set_random_seed(0)
  if name not in ATTENTION:
    return MODELS[name](12, embedding_size=6, units=8, **options)
  options.pop('projection_units', None)
  return MODELS[name](
    12,
    embedding_size=6,
    intermediate_dim=8,
    num_heads=2,
    **{'num_layers': 1, **options},
  )


def _loss_and_gradients(model):
  with tf.GradientTape() as tape:
    loss = _Loss()(Y, model(X, training=True))
  gradients = tape.gradient(loss, model.trainable_variables)
  return [loss, *(tf.convert_to_tensor(g) for g in gradients)]


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    pytest.param(
      name,
      options,
      marks=[] if (name, i) in FAST else [pytest.mark.slow],
      id=f'{name}-{options}',
    )
    for name in (*RECURRENT, *ATTENTION)
    for i, options in enumerate(OPTIONS)
  ],
)
def test_functional_model_equals_keras(name, options):
  model = _model(name, **options)
  expected = _loss_and_gradients(model)
  functional = tff.learning.models.functional_model_from_keras(
    model, _Loss(), SPEC
  )
  trainable, non_trainable = functional.initial_weights
  assert not non_trainable
  assert len(trainable) == len(model.weights)

  with tf.Graph().as_default() as graph:
    weights = tuple(tf.constant(w) for w in trainable)
    with tf.GradientTape() as tape:
      tape.watch(weights)
      logits = functional.predict_on_batch((weights, ()), X, training=True)
      loss = functional.loss(logits, tf.constant(Y))
    gradients = tape.gradient(loss, weights)
    fetches = [loss, *(tf.convert_to_tensor(g) for g in gradients)]
    assert not [op for op in graph.get_operations() if op.type == 'VarHandleOp']
    with tf.compat.v1.Session() as session:
      actual = session.run(fetches)
  # TFF recreates variables in the order of creation, as Keras does.
  for ours, theirs in zip(actual, expected):
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@_models('si_cifg', 'si_transformer')
def test_functional_model_with_dropout(name):
  model = _model(name, dropout=0.5)
  expected = model(X)
  functional = tff.learning.models.functional_model_from_keras(
    model, _Loss(), SPEC
  )
  assert not functional.initial_weights[1]
  with tf.Graph().as_default():
    weights = tuple(tf.constant(w) for w in functional.initial_weights[0])
    logits = [
      functional.predict_on_batch((weights, ()), X, training=training)
      for training in (False, True)
    ]
    with tf.compat.v1.Session() as session:
      plain, dropped = session.run(logits)
  np.testing.assert_allclose(plain, expected, atol=1e-6)
  assert np.abs(plain - dropped).max() > 1e-5


def _client_data():
  return [
    tf.data.Dataset.from_tensor_slices((X, Y)).batch(2).repeat(2),
    tf.data.Dataset.from_tensor_slices((X[:1], Y[:1])).batch(2),
  ]


def _one_round(model_fn):
  process = tff.learning.algorithms.build_weighted_fed_avg(
    model_fn,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.5),
    server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
  )
  state = process.initialize()
  result = process.next(state, _client_data())
  return process.get_model_weights(result.state).trainable


def _expected_round(model):
  """Averages the clients' SGD updates, weighted by examples."""
  start = model.get_weights()
  updates, weights = [], []
  for data in _client_data():
    model.set_weights(start)
    examples = 0
    for x, y in data:
      examples += len(x)
      with tf.GradientTape() as tape:
        loss = _Loss()(y, model(x, training=True))
      gradients = tape.gradient(loss, model.trainable_variables)
      for variable, gradient in zip(model.trainable_variables, gradients):
        variable.assign_sub(0.5 * tf.convert_to_tensor(gradient))
    updates.append([w - s for w, s in zip(model.get_weights(), start)])
    weights.append(examples)
  model.set_weights(start)
  return [
    s + np.average(np.stack(deltas), axis=0, weights=weights)
    for s, *deltas in zip(start, *updates)
  ]


@pytest.mark.parametrize(
  'name', ['si_cifg', pytest.param('lstm', marks=pytest.mark.slow)]
)
def test_a_round_with_a_functional_model(name):
  model = _model(name)
  # First: eager Keras models stop working after TFF has built its graphs.
  expected_weights = _expected_round(model)
  functional = tff.learning.models.functional_model_from_keras(
    model, _Loss(), SPEC
  )
  for actual, expected in zip(_one_round(functional), expected_weights):
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(
  'name', ['cifg', pytest.param('si_cifg', marks=pytest.mark.slow)]
)
def test_a_round_with_from_keras_model(name):
  initial = _model(name)
  weights = initial.get_weights()
  expected_weights = _expected_round(initial)

  def fresh():
    return tff.learning.models.from_keras_model(
      MODELS[name](12, embedding_size=6, units=8),
      loss=_Loss(),
      input_spec=SPEC,
    )

  process = tff.learning.algorithms.build_weighted_fed_avg(
    fresh,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.5),
    server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
  )
  state = process.set_model_weights(
    process.initialize(),
    tff.learning.models.ModelWeights(trainable=weights, non_trainable=[]),
  )
  result = process.next(state, _client_data())
  actual = process.get_model_weights(result.state).trainable
  for ours, expected in zip(actual, expected_weights):
    np.testing.assert_allclose(ours, expected, atol=1e-5)
