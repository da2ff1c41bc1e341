"""FedProx, FedSGD and MimeLite: our builders around TFF's."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.aggregators import build_gaussian, build_mean
from si_federated.algorithms import (
  ALGORITHMS,
  OPTIMIZERS,
  StartedProcess,
  leave_out_values,
)
from si_federated.runtime import set_local_context
from tests.algorithms import mean_loss

_RATE = 0.1


@pytest.fixture(autouse=True, scope='module')
def _runtime():
  set_local_context()


def _model():
  """One matrix and the mean of squares."""

  @tf.function
  def predict(weights, x, training=True):
    del training
    return tf.matmul(x, weights[0][0])

  return tff.learning.models.FunctionalModel(
    initial_weights=((np.array([[1.0], [-1.0]], np.float32),), ()),
    predict_on_batch_fn=predict,
    loss_fn=lambda output, label, sample_weight=None: tf.reduce_mean(
      tf.square(output - label)
    ),
    metrics_fns=mean_loss.metrics_fns(),
    input_spec=(
      tf.TensorSpec([None, 2], tf.float32),
      tf.TensorSpec([None, 1], tf.float32),
    ),
  )


def _data(client, rows):
  generator = np.random.default_rng(client)
  x = generator.normal(size=[rows, 2]).astype(np.float32)
  return x, generator.normal(size=[rows, 1]).astype(np.float32)


_ROWS = (4, 2)


def _clients():
  return [
    tf.data.Dataset.from_tensor_slices(_data(i, rows)).batch(2)
    for i, rows in enumerate(_ROWS)
  ]


def _gradient(weights, x, y):
  return 2 * x.T @ (x @ weights - y) / len(x)


def _initial():
  return _model().initial_weights[0][0].astype(np.float64)


def _build(name, factory=None, client_optimizer=None, model=None, **options):
  return ALGORITHMS[name](
    model=model or _model(),
    server_optimizer=OPTIMIZERS['sgd'](learning_rate=1.0),
    aggregation_factory=factory or tff.aggregators.MeanFactory(),
    **(
      {}
      if name == 'fed_sgd'
      else {
        'client_optimizer': client_optimizer
        or OPTIMIZERS['sgd'](learning_rate=_RATE)
      }
    ),
    **options,
  )


def _private(total_rounds=3):
  return build_gaussian(
    clip_norm=1e3,
    noise_multiplier=0.0,
    clients_per_round=2,
    total_rounds=total_rounds,
  ).factory


def _next(process):
  output = process.next(process.initialize(), _clients())
  return output.state.global_model_weights.trainable[0]


def _fed_sgd():
  gradients = [_gradient(_initial(), *_data(i, n)) for i, n in enumerate(_ROWS)]
  weighted = sum(n * g for n, g in zip(_ROWS, gradients)) / sum(_ROWS)
  return _initial() - weighted, _initial() - sum(gradients) / 2


def _fed_prox(strength):
  updates = []
  for client, rows in enumerate(_ROWS):
    x, y = _data(client, rows)
    weights = _initial()
    for i in range(0, rows, 2):
      gradient = _gradient(weights, x[i : i + 2], y[i : i + 2])
      gradient = gradient + strength * (weights - _initial())
      weights = weights - _RATE * gradient
    updates.append(_initial() - weights)
  weighted = sum(n * u for n, u in zip(_ROWS, updates)) / sum(_ROWS)
  return _initial() - weighted, _initial() - sum(updates) / 2


def test_fed_sgd_averages_gradients_at_the_servers_model():
  weighted, uniform = _fed_sgd()
  np.testing.assert_allclose(_next(_build('fed_sgd')), weighted, rtol=1e-5)
  np.testing.assert_allclose(
    _next(_build('fed_sgd', _private())), uniform, rtol=1e-5
  )


def test_fed_sgd_refuses_uniform_weights():
  with pytest.raises(ValueError, match='weights clients by their number'):
    _build('fed_sgd', client_weighting='uniform')


def test_fed_prox_keeps_clients_near_the_servers_model():
  weighted, uniform = _fed_prox(3.0)
  np.testing.assert_allclose(
    _next(_build('fed_prox', proximal_strength=3.0)), weighted, rtol=1e-5
  )
  np.testing.assert_allclose(
    _next(_build('fed_prox', _private(), proximal_strength=3.0)),
    uniform,
    rtol=1e-5,
  )
  # A strength of zero is federated averaging.
  np.testing.assert_allclose(
    _next(_build('fed_prox', proximal_strength=0)),
    _next(_build('fed_avg')),
    rtol=1e-6,
  )


def test_fed_prox_refuses_a_negative_strength():
  with pytest.raises(ValueError, match='proximal_strength must be at least 0'):
    _build('fed_prox', proximal_strength=-1.0)


def _mime_lite(rounds, momentum, weights_of):
  """MimeLite with momentum, in numpy."""
  velocity, server = np.zeros([2, 1]), _initial()
  for _ in range(rounds):
    updates, gradients = [], []
    for client, rows in enumerate(_ROWS):
      x, y = _data(client, rows)
      gradients.append(_gradient(server, x, y))
      weights = server
      for i in range(0, rows, 2):
        gradient = _gradient(weights, x[i : i + 2], y[i : i + 2])
        weights = weights - _RATE * (momentum * velocity + gradient)
      updates.append(server - weights)
    velocity = momentum * velocity + _mean(gradients, weights_of)
    server = server - _mean(updates, weights_of)
  return server


def _mean(values, weights):
  return sum(w * v for w, v in zip(weights, values)) / sum(weights)


@pytest.mark.parametrize(
  'is_private', [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_mime_lite_steps_with_the_servers_momentum(is_private):
  factory = _private() if is_private else build_mean(zeroing=False).factory
  process = _build(
    'mime_lite',
    factory,
    OPTIMIZERS['sgdm'](learning_rate=_RATE, momentum=0.9),
    gradient_aggregation_factory=factory,
  )
  state = process.initialize()
  for _ in range(3):
    state = process.next(state, _clients()).state
  np.testing.assert_allclose(
    state.global_model_weights.trainable[0],
    _mime_lite(3, 0.9, (1, 1) if is_private else _ROWS),
    rtol=1e-4,
  )


def test_mime_lite_leaves_out_a_client_that_is_not_finite():
  x, y = _data(1, 2)
  spoiled = tf.data.Dataset.from_tensor_slices((x * np.nan, y)).batch(2)
  factory = build_mean(zeroing=False).factory
  process = _build(
    'mime_lite',
    factory,
    OPTIMIZERS['sgdm'](learning_rate=_RATE, momentum=0.9),
    gradient_aggregation_factory=factory,
  )

  def two_rounds(clients):
    state = process.initialize()
    for _ in range(2):
      state = process.next(state, clients).state
    return state.global_model_weights.trainable[0]

  np.testing.assert_allclose(
    two_rounds([_clients()[0], spoiled]), two_rounds(_clients()[:1]), rtol=1e-6
  )


@pytest.mark.parametrize(
  'name', ['fed_avg', pytest.param('mime_lite', marks=pytest.mark.slow)]
)
def test_deferred_weights_train_to_the_same_bits(name):
  options = {}
  if name == 'mime_lite':
    options['gradient_aggregation_factory'] = tff.aggregators.MeanFactory()
  held = _build(name, **options)
  bare = _build(name, model=leave_out_values(_model()), **options)
  started = StartedProcess(bare, _model().initial_weights)
  states = [process.initialize() for process in (held, started)]
  zeros = bare.get_model_weights(bare.initialize()).trainable[0]
  np.testing.assert_array_equal(zeros, np.zeros([2, 1]))
  for _ in range(2):
    expected, found = (tf.nest.flatten(state) for state in states)
    assert len(expected) == len(found)
    for one, other in zip(expected, found):
      np.testing.assert_array_equal(one, other)
    states = [
      process.next(state, _clients()).state
      for process, state in zip((held, started), states)
    ]


def test_initial_weights_are_not_embedded_in_graphs():
  model = _model()
  large = np.random.default_rng(0).normal(size=[2, 10_000])

  def initialize_bytes(process):
    return tff.framework.serialize_computation(process.initialize).ByteSize()

  def with_weights(columns):
    return tff.learning.models.FunctionalModel(
      initial_weights=((large[:, :columns].astype(np.float32),), ()),
      predict_on_batch_fn=model._predict_on_batch_fn,
      loss_fn=model.loss,
      input_spec=model.input_spec,
    )

  sizes = [
    initialize_bytes(_build('fed_avg', model=leave_out_values(with_weights(n))))
    for n in (1, 10_000)
  ]
  # The weights have eighty thousand bytes; the difference is the shape's text.
  assert sizes[1] < sizes[0] + 1_000
