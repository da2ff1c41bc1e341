"""Tests of the local runtime on TFF's learning algorithms and aggregators."""

from __future__ import annotations

import collections
import math
import warnings
from typing import Any

import attrs
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import runtime

# If a computation went to TFF's runtime, it would be compared with itself.
pytestmark = pytest.mark.filterwarnings('error:A computation goes to TFF')

_SPEC = (
  tf.TensorSpec([None, 3], tf.float32),
  tf.TensorSpec([None, 1], tf.float32),
)
_algorithms = tff.learning.algorithms
_optimizers = tff.learning.optimizers
_dp = tff.aggregators.DifferentiallyPrivateFactory


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
    input_spec=_SPEC,
    metrics=_metrics(),
  )


def _batch_norm():
  return tff.learning.models.from_keras_model(
    _keras_model(batch_norm=True),
    loss=tf.keras.losses.MeanSquaredError(),
    input_spec=_SPEC,
    metrics=_metrics(),
  )


def _functional():
  return tff.learning.models.functional_model_from_keras(
    _keras_model,
    tf.keras.losses.MeanSquaredError(),
    _SPEC,
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
    input_spec=_SPEC,
  )


def _dataset(size, seed):
  x = np.random.default_rng(seed).normal(size=[size, 3]).astype(np.float32)
  y = x.sum(axis=1, keepdims=True) ** 2
  return tf.data.Dataset.from_tensor_slices((x, y)).batch(4)


def _datasets(round_num):
  return [_dataset(3 + 2 * i, [round_num, i]) for i in range(3)]


def _sgd(momentum=None):
  return _optimizers.build_sgdm(0.1, momentum)


def _schedule(round_num):
  return 0.1 / (1.0 + tf.cast(round_num, tf.float32))


def _assert_same(ours: Any, theirs: Any, path='', rtol=1e-4, atol=1e-5):
  """Compares nested values and the Python types at every level."""

  def each(keys, pairs):
    for key, (one, other) in zip(keys, pairs):
      _assert_same(one, other, f'{path}.{key}', rtol, atol)

  assert type(ours) is type(theirs), path
  if isinstance(ours, dict):
    assert list(ours) == list(theirs), path
    each(ours, zip(ours.values(), theirs.values()))
  elif attrs.has(type(ours)):
    names = [field.name for field in attrs.fields(type(ours))]
    each(names, [(getattr(ours, n), getattr(theirs, n)) for n in names])
  elif isinstance(ours, (list, tuple)):
    assert len(ours) == len(theirs), path
    each(range(len(ours)), zip(ours, theirs))
  elif isinstance(ours, tf.data.Dataset):
    assert ours.element_spec == theirs.element_spec, path
    one, other = (list(data.as_numpy_iterator()) for data in (ours, theirs))
    _assert_same(one, other, path, rtol, atol)
  elif isinstance(ours, (np.ndarray, np.generic)):
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, path
    if math.isinf(rtol):
      return
    if ours.dtype.kind == 'f':
      np.testing.assert_allclose(
        np.asarray(ours), np.asarray(theirs), rtol, atol, err_msg=path
      )
    else:
      np.testing.assert_array_equal(ours, theirs, err_msg=path)
  else:
    assert ours == theirs, path


@pytest.fixture(scope='module')
def contexts():
  return runtime.set_tff_context(), runtime.set_local_context(num_threads=2)


def _assert_parity(contexts, process, datasets=_datasets, rounds=2):
  """Runs a process on both runtimes from TFF's initial state.

  Some initial states contain the time, as the seed of random draws.
  """
  reference, local = contexts
  tff.framework.set_default_context(reference)
  states = [process.initialize()]
  expected = []
  for round_num in range(rounds):
    expected.append(process.next(states[-1], datasets(round_num)))
    states.append(expected[-1][0])
  tff.framework.set_default_context(local)
  # Its values may differ because of the time, but not its types.
  _assert_same(process.initialize(), states[0], rtol=math.inf, atol=math.inf)
  state = states[0]
  for round_num in range(rounds):
    output = process.next(state, datasets(round_num))
    _assert_same(output, expected[round_num])
    state = output[0]
  return state, states[0]


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
  'tree_adaptive',
  'hadamard',
  'robust_unweighted',
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


def _mark_slow(names):
  return [
    pytest.param(name, marks=[pytest.mark.slow] * (name in _SLOW))
    for name in names
  ]


@pytest.mark.filterwarnings('ignore:Batch Normalization')
@pytest.mark.parametrize('name', _mark_slow(_PROCESSES))
def test_an_algorithm_gives_what_tffs_runtime_gives(contexts, name):
  process = _PROCESSES[name]()
  state, _ = _assert_parity(contexts, process)
  _, local = contexts
  tff.framework.set_default_context(local)
  # Weights are read and set without change.
  weights = process.get_model_weights(state)
  changed = tf.nest.map_structure(lambda weight: weight + 1, weights)
  again = process.get_model_weights(process.set_model_weights(state, changed))
  _assert_same(again, changed, atol=0, rtol=0)


def test_k_means_gives_what_tffs_runtime_gives(contexts):
  def points(round_num):
    return [
      _dataset(5 + i, [round_num, i]).unbatch().map(lambda x, _: x)
      for i in range(3)
    ]

  process = _algorithms.build_fed_kmeans(2, (3,), random_seed=(1, 2))
  state, start = _assert_parity(contexts, process, points)
  # The seed is that of a stateless generator: the same on every runtime.
  _assert_same(
    process.get_model_weights(process.initialize()),
    process.get_model_weights(start),
  )
  assert not np.allclose(
    process.get_model_weights(state), process.get_model_weights(start)
  )


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


@pytest.mark.parametrize('name', _mark_slow(_AGGREGATORS))
def test_an_aggregator_gives_what_tffs_runtime_gives(contexts, name):
  _assert_parity(contexts, _aggregation(_AGGREGATORS[name]()), _updates)


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
      train_data=_dataset(4, i).unbatch(), test_data=_dataset(5, i).unbatch()
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


class _Point(collections.namedtuple('_Point', 'x y')):
  pass


@attrs.define
class _Pair:
  first: int
  second: str


_STRUCT = tff.StructWithPythonType(
  [
    (
      'point',
      tff.StructWithPythonType([('x', np.int32), ('y', np.float64)], _Point),
    ),
    ('list', tff.StructWithPythonType([np.bool_, np.str_], list)),
    (
      'named',
      tff.StructWithPythonType([('a', np.uint8)], collections.OrderedDict),
    ),
  ],
  collections.OrderedDict,
)


@tff.tensorflow.computation(_STRUCT)
def _echo(value):
  return value


@tff.tensorflow.computation(tff.SequenceType(np.str_))
def _join(words):
  return words.reduce('', lambda text, word: tf.strings.join([text, word]))


@tff.tensorflow.computation(
  tff.SequenceType(collections.OrderedDict(b=np.int64, a=np.str_))
)
def _read(rows):
  return rows.reduce(np.int64(0), lambda total, row: total + row['b'])


@tff.tensorflow.computation
def _no_parameter():
  return collections.OrderedDict(
    z=tf.constant([1.5, 2.5]), empty=tf.zeros([0, 2], tf.int16), a=()
  )


@tff.tensorflow.computation(tff.TensorType(np.float32, [None]))
def _with_variable(values):
  total = tf.Variable(0.0)
  with tf.control_dependencies([total.assign_add(tf.reduce_sum(values))]):
    return total.read_value(), tf.size(values)


@tff.tensorflow.computation(tff.TensorType(np.str_, [None]))
def _with_table(words):
  table = tf.lookup.StaticHashTable(
    tf.lookup.KeyValueTensorInitializer(['a', 'b'], [1, 2]), -1
  )
  return table.lookup(words)


@tff.tensorflow.computation(np.int64)
def _count_to(number):
  return tf.data.Dataset.range(number)


@pytest.mark.parametrize(
  ('compute', 'arguments'),
  [
    (
      _echo,
      [
        collections.OrderedDict(
          point=_Point(3, 2.5), list=[True, 'word'], named={'a': 7}
        )
      ],
    ),
    (_join, [['a', 'b', 'c']]),
    (_join, [tf.data.Dataset.from_tensor_slices(['a', 'b'])]),
    (
      _read,
      [
        [
          collections.OrderedDict(b=1, a='x'),
          collections.OrderedDict(b=2, a=''),
        ]
      ],
    ),
    (_no_parameter, []),
    (_with_variable, [[1.0, 2.0]]),
    (_with_variable, [np.array([3.0], np.float32)]),
    (_with_table, [['b', 'c', 'a']]),
    (_count_to, [4]),
  ],
)
def test_a_plain_computation_gives_what_tffs_runtime_gives(
  contexts, compute, arguments
):
  reference, local = contexts
  tff.framework.set_default_context(reference)
  expected = compute(*arguments)
  tff.framework.set_default_context(local)
  for _ in range(2):
    _assert_same(compute(*arguments), expected, rtol=0, atol=0)
