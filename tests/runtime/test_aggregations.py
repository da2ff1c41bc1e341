"""TFF's aggregators on the local runtime, compared with TFF's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tests.runtime.parity import assert_parity, mark_slow

# If a computation went to TFF's runtime, it would be compared with itself.
pytestmark = pytest.mark.filterwarnings('error:A computation goes to TFF')

_dp = tff.aggregators.DifferentiallyPrivateFactory


_WEIGHTS = tff.StructWithPythonType(
  [
    tff.TensorType(np.float32, [3, 2]),
    tff.TensorType(np.float32, [2]),
  ],
  tuple,
)


def _updates(round_num):
  generator = np.random.default_rng(round_num)
  return [
    tuple(
      generator.normal(size=part.shape).astype(np.float32) for part in _WEIGHTS
    )
    for _ in range(4)
  ]


def _aggregation(factory):
  """Returns an aggregation as a process of a state and clients' values."""
  if not isinstance(factory, tff.aggregators.UnweightedAggregationFactory):
    process = factory.create(_WEIGHTS, tff.TensorType(np.float32))
  else:
    process = factory.create(_WEIGHTS)
  weighted = len(process.next.type_signature.parameter) == 3

  @tff.tensorflow.computation(_WEIGHTS)
  def weight_of(value):
    return tf.abs(value[1][0])

  @tff.federated_computation(
    process.initialize.type_signature.result,
    tff.FederatedType(_WEIGHTS, tff.CLIENTS),
  )
  def next_fn(state, value):
    weight = [tff.federated_map(weight_of, value)] if weighted else []
    output = process.next(state, value, *weight)
    return output.state, tff.federated_zip((output.result, output.measurements))

  return tff.templates.IterativeProcess(process.initialize, next_fn)


def _record_specs():
  return tuple(tf.TensorSpec(part.shape, tf.float32) for part in _WEIGHTS)


# None has noise.
# Other options of the same code.
_SLOW = {'tree_adaptive', 'hadamard', 'robust_unweighted'}
_AGGREGATORS = {
  'robust': lambda: tff.learning.robust_aggregator(),
  'robust_unweighted': lambda: tff.learning.robust_aggregator(weighted=False),
  'gaussian_fixed': lambda: _dp.gaussian_fixed(0.0, 4, 0.3),
  'gaussian_adaptive': lambda: _dp.gaussian_adaptive(
    0.0, 4, clipped_count_stddev=0.0
  ),
  'tree': lambda: _dp.tree_aggregation(0.0, 4, 0.3, _record_specs()),
  'tree_adaptive': lambda: _dp.tree_adaptive(
    0.0, 4, _record_specs(), clipped_count_stddev=0.0
  ),
  'compression': lambda: tff.learning.compression_aggregator(),
  'secure': lambda: tff.learning.secure_aggregator(),
  'secure_fixed': lambda: tff.aggregators.UnweightedMeanFactory(
    tff.aggregators.SecureSumFactory(1.0, -1.0)
  ),
  'hadamard': lambda: tff.aggregators.MeanFactory(
    tff.aggregators.HadamardTransformFactory()
  ),
  'fourier': lambda: tff.aggregators.UnweightedMeanFactory(
    tff.aggregators.DiscreteFourierTransformFactory()
  ),
  'concatenated': lambda: tff.aggregators.MeanFactory(
    tff.aggregators.concat_factory(tff.aggregators.SumFactory())
  ),
  'quantile': lambda: tff.aggregators.clipping_factory(
    tff.aggregators.PrivateQuantileEstimationProcess.no_noise(
      0.5, target_quantile=0.5, learning_rate=0.5
    ),
    tff.aggregators.MeanFactory(),
  ),
}


@pytest.mark.parametrize('name', mark_slow(_AGGREGATORS, _SLOW))
def test_an_aggregator_gives_what_tffs_runtime_gives(contexts, name):
  assert_parity(contexts, _aggregation(_AGGREGATORS[name]()), _updates)


def test_modular_sums_wrap_around(contexts):
  factory = tff.aggregators.SecureModularSumFactory(8)
  process = factory.create(tff.TensorType(np.int32, [2]))

  @tff.federated_computation(
    process.initialize.type_signature.result,
    tff.FederatedType(tff.TensorType(np.int32, [2]), tff.CLIENTS),
  )
  def next_fn(state, value):
    output = process.next(state, value)
    return output.state, output.result

  _, local = contexts
  tff.framework.set_default_context(local)
  _, total = next_fn(
    process.initialize(),
    [np.array([7, 3], np.int32), np.array([2, 1], np.int32)],
  )
  np.testing.assert_array_equal(total, [1, 4])


@pytest.mark.parametrize(
  'build',
  [
    lambda: _dp.gaussian_fixed(0.5, 4, 1.0),
    lambda: _dp.tree_aggregation(0.5, 4, 1.0, _record_specs()),
  ],
  ids=['gaussian', 'tree'],
)
def test_noise_has_its_scale_and_differs_each_time(contexts, build):
  _, local = contexts
  tff.framework.set_default_context(local)
  process = _aggregation(build())
  zeros = [tuple(np.zeros(part.shape, np.float32) for part in _WEIGHTS)] * 4
  results = []
  for _ in range(2):
    state = process.initialize()
    for _ in range(40):
      # The first round of the tree, each from a seed of its own.
      _, (result, _) = process.next(state, zeros)
      results.append(np.concatenate([part.ravel() for part in result]))
      state = process.initialize()
  noise = np.array(results)
  assert len(np.unique(noise, axis=0)) == len(noise)
  # Half the clip norm, over four clients; 640 draws: within five deviations.
  assert noise.std() == pytest.approx(0.125, rel=5 / math.sqrt(2 * noise.size))
  assert abs(noise.mean()) < 5 * 0.125 / math.sqrt(noise.size)


def test_lossy_compression_is_unbiased(contexts):
  _, local = contexts
  tff.framework.set_default_context(local)
  process = _aggregation(
    tff.aggregators.MeanFactory(
      tff.aggregators.EncodedSumFactory.quantize_above_threshold(
        quantization_bits=4, threshold=1
      )
    )
  )
  updates = _updates(0)
  weights = [abs(float(update[1][0])) for update in updates]
  exact = np.average([update[0] for update in updates], axis=0, weights=weights)
  state = process.initialize()
  found = []
  for _ in range(60):
    state, (result, _) = process.next(state, updates)
    found.append(result[0])
  assert np.std(found, axis=0).max() > 0
  np.testing.assert_allclose(
    np.mean(found, axis=0),
    exact,
    atol=5 * np.std(found, axis=0).max() / math.sqrt(60),
  )


@pytest.mark.slow
def test_discrete_noise_with_secure_sums_stays_near_the_mean(contexts):
  _, local = contexts
  tff.framework.set_default_context(local)
  process = _aggregation(
    tff.learning.ddp_secure_aggregator(1e-3, 4, zeroing=False)
  )
  updates = [tuple(0.02 * part for part in update) for update in _updates(0)]
  state = process.initialize()
  _, (result, _) = process.next(state, updates)
  for ours, parts in zip(result, zip(*updates)):
    np.testing.assert_allclose(ours, np.mean(parts, axis=0), atol=2e-3)
