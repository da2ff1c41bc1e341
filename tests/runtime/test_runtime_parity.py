"""Every runtime gives the same weights for the same process."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import models, runtime
from tests.runtime import regression

# If a computation went to TFF's runtime, it would be compared with itself.
pytestmark = pytest.mark.filterwarnings('error:A computation goes to TFF')

# `test_learning_algorithms.py` and `test_aggregations.py` also compare such
# processes, without Ray, and `test_ray.py` with it.
_SLOW = [pytest.mark.slow]
_LOCAL = {'local': lambda: runtime.set_local_context(num_threads=2)}
_ALL = {**_LOCAL, 'ray': lambda: runtime.set_ray_context(num_actors=2)}


def _dense_model():
  return tff.learning.models.functional_model_from_keras(
    regression.network, tf.keras.losses.MeanSquaredError(), regression.SPEC
  )


_dense_data = regression.datasets


def _cifg():
  tf.keras.utils.set_random_seed(0)
  return models.MODELS['cifg'](vocab_size=12, units=8, embedding_size=4)


def _cifg_model():
  return tff.learning.models.functional_model_from_keras(
    _cifg,
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    # Not in alphabetical order, to show that none are confused.
    collections.OrderedDict(
      y=tf.TensorSpec([None, 5], tf.int32), x=tf.TensorSpec([None, 5], tf.int32)
    ),
  )


def _cifg_data(round_num):
  def dataset(size, seed):
    ids = np.random.default_rng(seed).integers(1, 12, [size, 6])
    ids = ids.astype(np.int32)
    return tf.data.Dataset.from_tensor_slices(
      collections.OrderedDict(y=ids[:, 1:], x=ids[:, :-1])
    ).batch(3)

  return [dataset(2 + 2 * i, [round_num, i]) for i in range(4)]


def _adam(model):
  return tff.learning.algorithms.build_weighted_fed_avg(
    model,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
    server_optimizer_fn=tff.learning.optimizers.build_adam(0.05),
  )


def _tree_without_noise(model):
  return tff.learning.algorithms.build_unweighted_fed_avg(
    model,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
    server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0, 0.9),
    model_aggregator=(
      tff.aggregators.DifferentiallyPrivateFactory.tree_aggregation(
        noise_multiplier=0.0,
        clients_per_round=5.0,
        l2_norm_clip=0.1,
        record_specs=tuple(
          tf.TensorSpec(weight.shape, weight.dtype)
          for weight in model.initial_weights[0]
        ),
      )
    ),
  )


def _mime_lite(model):
  return tff.learning.algorithms.build_weighted_mime_lite(
    model, base_optimizer=tff.learning.optimizers.build_sgdm(0.1, 0.9)
  )


def _three_rounds(process, data):
  state = process.initialize()
  for round_num in range(3):
    output = process.next(state, data(round_num))
    state = output.state
  return process.get_model_weights(state).trainable, output.metrics


@pytest.mark.parametrize(
  ('build', 'model', 'data', 'runtimes'),
  [
    pytest.param(build, model, data, runtimes, id=name, marks=marks)
    for name, build, model, data, runtimes, marks in [
      ('adam', _adam, _dense_model, _dense_data, _ALL, _SLOW),
      ('tree', _tree_without_noise, _dense_model, _dense_data, _ALL, _SLOW),
      ('mime_lite', _mime_lite, _dense_model, _dense_data, _ALL, _SLOW),
      ('cifg', _adam, _cifg_model, _cifg_data, _LOCAL, []),
      ('cifg_ray', _adam, _cifg_model, _cifg_data, _ALL, _SLOW),
    ]
  ],
)
def test_three_rounds_give_the_same_weights(build, model, data, runtimes):
  process = build(model())
  runtime.set_tff_context()
  initial = process.get_model_weights(process.initialize()).trainable
  expected, expected_metrics = _three_rounds(process, data)
  assert any(
    np.abs(weight - before).max() > 1e-3
    for weight, before in zip(expected, initial)
  )
  for set_runtime in runtimes.values():
    set_runtime()
    weights, metrics = _three_rounds(process, data)
    for ours, theirs in zip(weights, expected):
      assert type(ours) is type(theirs)
      # Relative to a tensor's largest weight, since small ones cancel.
      scale = np.abs(theirs).max()
      np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * scale)
    tf.nest.map_structure(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      metrics,
      expected_metrics,
    )


def test_two_local_runs_give_the_same_bits():
  process = _adam(_dense_model())
  results = []
  for num_threads in (1, 2, 2):
    runtime.set_local_context(num_threads=num_threads)
    results.append(_three_rounds(process, _dense_data)[0])
  for result in results[1:]:
    for one, other in zip(result, results[0]):
      np.testing.assert_array_equal(one, other)
