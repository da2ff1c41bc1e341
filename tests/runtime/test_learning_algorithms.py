"""Tests of the local runtime on TFF's learning algorithms."""

from __future__ import annotations

import collections
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tests.runtime import regression
from tests.runtime.parity import assert_parity, assert_same, mark_slow

# If a computation went to TFF's runtime, it would be compared with itself.
pytestmark = pytest.mark.filterwarnings('error:A computation goes to TFF')

_algorithms = tff.learning.algorithms
_optimizers = tff.learning.optimizers


def _dense(units, seed, **options):
  return tf.keras.layers.Dense(
    units,
    kernel_initializer=tf.keras.initializers.GlorotUniform(seed=seed),
    **options,
  )


def _keras_model(*, batch_norm=False):
  return tf.keras.Sequential(
    [
      tf.keras.layers.InputLayer([3]),
      *([tf.keras.layers.BatchNormalization()] if batch_norm else []),
      _dense(2, 1, activation='tanh'),
      _dense(1, 2),
    ]
  )


def _metrics():
  return [
    tf.keras.metrics.MeanAbsoluteError(),
    # Its result is not the ratio of two of its variables.
    tf.keras.metrics.RootMeanSquaredError(),
  ]


def _variables():
  return tff.learning.models.from_keras_model(
    _keras_model(),
    loss=tf.keras.losses.MeanSquaredError(),
    input_spec=regression.SPEC,
    metrics=_metrics(),
  )


def _batch_norm():
  return tff.learning.models.from_keras_model(
    _keras_model(batch_norm=True),
    loss=tf.keras.losses.MeanSquaredError(),
    input_spec=regression.SPEC,
    metrics=_metrics(),
  )


def _functional():
  return tff.learning.models.functional_model_from_keras(
    _keras_model,
    tf.keras.losses.MeanSquaredError(),
    regression.SPEC,
    metrics_constructor=lambda: collections.OrderedDict(
      mae=tf.keras.metrics.MeanAbsoluteError()
    ),
  )


def _reconstructed():
  inputs = tf.keras.Input([3])
  shared, own = _dense(2, 1), _dense(1, 2)
  return tff.learning.models.ReconstructionModel.from_keras_model_and_layers(
    keras_model=tf.keras.Model(inputs, own(shared(inputs))),
    global_layers=[shared],
    local_layers=[own],
    input_spec=regression.SPEC,
  )


def _datasets(round_num):
  return [regression.dataset(3 + 2 * i, [round_num, i]) for i in range(3)]


def _sgd(momentum=None):
  return _optimizers.build_sgdm(0.1, momentum)


def _schedule(round_num):
  return 0.1 / (1.0 + tf.cast(round_num, tf.float32))


# Other options of the same code, or another model.
_SLOW = {
  'fed_avg_batch_norm',
  'eval_batch_norm',
  'recon',
  'fed_avg_schedule',
  'fed_prox_variables',
  'mime_lite_schedule',
  'fed_sgd',
  'mime_lite',
  'recon_eval',
}


_PROCESSES = {
  'fed_avg': lambda: _algorithms.build_unweighted_fed_avg(
    _functional(), _sgd(), _optimizers.build_adam(0.01)
  ),
  'fed_avg_batch_norm': lambda: _algorithms.build_weighted_fed_avg(
    _batch_norm, _sgd(0.9)
  ),
  'fed_avg_schedule': lambda: (
    _algorithms.build_weighted_fed_avg_with_optimizer_schedule(
      _functional(), _schedule, _optimizers.build_sgdm
    )
  ),
  'fed_prox': lambda: _algorithms.build_weighted_fed_prox(
    _functional(), 0.5, _sgd()
  ),
  'fed_prox_variables': lambda: _algorithms.build_unweighted_fed_prox(
    _variables, 0.5, _sgd()
  ),
  'fed_sgd': lambda: _algorithms.build_fed_sgd(_functional(), _sgd()),
  'fed_sgd_batch_norm': lambda: _algorithms.build_fed_sgd(_batch_norm, _sgd()),
  'mime_lite': lambda: _algorithms.build_weighted_mime_lite(
    _functional(), _sgd(0.9)
  ),
  'mime_lite_variables': lambda: _algorithms.build_unweighted_mime_lite(
    _batch_norm, _sgd(0.9)
  ),
  'mime_lite_schedule': lambda: (
    _algorithms.build_mime_lite_with_optimizer_schedule(
      _variables, _schedule, _sgd(0.9)
    )
  ),
  'eval': lambda: _algorithms.build_fed_eval(_functional()),
  'eval_batch_norm': lambda: _algorithms.build_fed_eval(_batch_norm),
  'recon': lambda: _algorithms.build_fed_recon(
    _reconstructed,
    loss_fn=tf.keras.losses.MeanSquaredError,
    metrics_fn=_metrics,
  ),
  'recon_eval': lambda: _algorithms.build_fed_recon_eval(
    _reconstructed,
    loss_fn=tf.keras.losses.MeanSquaredError,
    metrics_fn=_metrics,
  ),
}


@pytest.mark.parametrize('name', mark_slow(_PROCESSES, _SLOW))
def test_an_algorithm_gives_what_tffs_runtime_gives(contexts, name):
  process = _PROCESSES[name]()
  state, _ = assert_parity(contexts, process, _datasets)
  _, local = contexts
  tff.framework.set_default_context(local)
  # Weights are read and set without change.
  weights = process.get_model_weights(state)
  changed = tf.nest.map_structure(lambda weight: weight + 1, weights)
  again = process.get_model_weights(process.set_model_weights(state, changed))
  assert_same(again, changed, atol=0, rtol=0)


def test_k_means_gives_what_tffs_runtime_gives(contexts):
  def points(round_num):
    return [
      regression.dataset(5 + i, [round_num, i]).unbatch().map(lambda x, _: x)
      for i in range(3)
    ]

  process = _algorithms.build_fed_kmeans(2, (3,), random_seed=(1, 2))
  state, start = assert_parity(contexts, process, points)
  # The seed is that of a stateless generator: the same on every runtime.
  assert_same(
    process.get_model_weights(process.initialize()),
    process.get_model_weights(start),
  )
  assert not np.allclose(
    process.get_model_weights(state), process.get_model_weights(start)
  )


@pytest.mark.filterwarnings('default')
def test_personalization_goes_to_tff_with_one_warning(contexts):
  """It has one result, but a round that can be lowered has two."""

  @tf.function
  def evaluate(model, dataset):
    def add(total, batch):
      return total + model.forward_pass(batch, training=False).loss

    return collections.OrderedDict(
      loss=dataset.batch(2).reduce(tf.constant(0.0), add)
    )

  def build_personalize():
    @tf.function
    def personalize(model, train_data, test_data):
      del train_data
      return evaluate(model, test_data)

    return personalize

  compute = _algorithms.build_personalization_eval_computation(
    _variables, collections.OrderedDict(none=build_personalize), evaluate
  )
  reference, local = contexts
  weights = tff.learning.models.ModelWeights.from_model(_variables())
  weights = tf.nest.map_structure(lambda weight: weight.numpy(), weights)
  clients = [
    collections.OrderedDict(
      train_data=regression.dataset(4, i).unbatch(),
      test_data=regression.dataset(5, i).unbatch(),
    )
    for i in range(2)
  ]
  tff.framework.set_default_context(reference)
  expected = compute(weights, clients)
  tff.framework.set_default_context(local)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    results = [compute(weights, clients) for _ in range(2)]
  messages = [str(w.message) for w in caught]
  messages = [text for text in messages if 'goes to TFF' in text]
  assert len(messages) == 1
  assert 'two values' in messages[0]
  for result in results:
    assert list(result) == list(expected) == ['baseline_metrics', 'none']
    for name in expected:
      # The clients come in any order.
      np.testing.assert_allclose(
        np.sort(result[name]['loss']),
        np.sort(expected[name]['loss']),
        rtol=1e-4,
      )
