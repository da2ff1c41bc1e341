from __future__ import annotations

import collections
import threading

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import runtime
from si_federated.training import sampling
from tests.runtime import regression

# If a computation went to TFF's runtime, it would be compared with itself.
pytestmark = pytest.mark.filterwarnings('error:A computation goes to TFF')


def _variable_model():
  return tff.learning.models.from_keras_model(
    regression.network(),
    loss=tf.keras.losses.MeanSquaredError(),
    input_spec=regression.SPEC,
    metrics=[tf.keras.metrics.MeanAbsoluteError()],
  )


def _functional_model():
  return tff.learning.models.functional_model_from_keras(
    regression.network, tf.keras.losses.MeanSquaredError(), regression.SPEC
  )


def _sgd(rate=0.1):
  return tff.learning.optimizers.build_sgdm(rate)


def _fed_avg(model):
  return tff.learning.algorithms.build_weighted_fed_avg(
    model,
    client_optimizer_fn=_sgd(),
    server_optimizer_fn=tff.learning.optimizers.build_adam(0.05),
  )


def _secure(model):
  return tff.learning.algorithms.build_weighted_fed_avg(
    model,
    client_optimizer_fn=_sgd(),
    model_aggregator=tff.learning.secure_aggregator(),
  )


def _run(build_process, rounds=3):
  process = build_process()
  state = process.initialize()
  for round_num in range(rounds):
    output = process.next(state, regression.datasets(round_num))
    state = output.state
  return process.get_model_weights(state), output


@pytest.mark.parametrize(
  'build_process',
  [
    pytest.param(lambda: _fed_avg(_variable_model), id='variables'),
    pytest.param(
      lambda: _secure(_functional_model()),
      id='secure_sum',
      marks=pytest.mark.slow,
    ),
  ],
)
def test_gives_what_tffs_runtime_gives(build_process):
  runtime.set_local_context(num_threads=2)
  weights, output = _run(build_process)
  runtime.set_tff_context()
  expected_weights, expected = _run(build_process)
  assert type(weights) is type(expected_weights)
  assert type(output) is type(expected)
  for ours, theirs in zip(weights.trainable, expected_weights.trainable):
    assert type(ours) is type(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
  tf.nest.map_structure(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    output.metrics,
    expected.metrics,
  )


def test_an_unknown_device_raises():
  with pytest.raises(ValueError, match=r"'/GPU:77' does not exist.*/CPU:0"):
    runtime.set_local_context(device='/GPU:77')
  with pytest.raises(ValueError, match='does not exist'):
    runtime.set_local_context(device='fast')
  runtime.set_local_context(num_threads=2, device='/CPU:0')
  process = _fed_avg(_functional_model())
  state = process.initialize()
  assert process.next(state, regression.datasets(0)).state is not None


def test_plain_computations_and_their_containers():
  runtime.set_local_context()

  @tff.tensorflow.computation(tff.TensorType(np.int32, [None]), np.float32)
  def compute(a, b):
    return collections.OrderedDict(
      total=tf.reduce_sum(a), pair=(b, tf.constant('word'))
    )

  result = compute([1, 2, 3], 2.5)
  assert list(result) == ['total', 'pair']
  assert result['total'] == 6
  assert result['pair'] == (2.5, b'word')

  @tff.tensorflow.computation(tff.SequenceType(np.int64))
  def count(dataset):
    return dataset.reduce(np.int64(0), lambda x, _: x + 1)

  assert count(tf.data.Dataset.range(5)) == 5
  assert count([1, 2]) == 2


@pytest.mark.filterwarnings('default')
def test_other_computations_go_to_tff_with_a_warning():
  runtime.set_local_context()

  @tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS))
  def mean(values):
    return tff.federated_mean(values)

  with pytest.warns(UserWarning, match="TFF's own runtime"):
    assert mean([1.0, 2.0, 6.0]) == pytest.approx(3.0)


def test_clients_are_drawn_as_they_are_needed():
  runtime.set_local_context(num_threads=2)
  process = _fed_avg(_functional_model())
  held, most, lock = 0, 0, threading.Lock()

  class Counting(sampling.Cohort):
    def __getitem__(self, position):
      nonlocal held, most
      with lock:
        held += 1
        most = max(most, held)
      return super().__getitem__(position)

  cohort = Counting(
    list(range(30)), lambda i: regression.dataset(3, i), lambda i: f'client{i}'
  )
  drawn_before = held
  state = process.next(process.initialize(), cohort).state
  assert drawn_before == 0
  assert held == 30

  listed = process.next(
    process.initialize(), [regression.dataset(3, i) for i in range(30)]
  ).state
  for a, b in zip(
    process.get_model_weights(state).trainable,
    process.get_model_weights(listed).trainable,
  ):
    np.testing.assert_array_equal(a, b)


def test_an_error_names_the_client():
  runtime.set_local_context(num_threads=2)
  process = _fed_avg(_functional_model())

  def client_dataset(index):
    if index == 7:
      raise OSError('the disk is gone')
    return regression.dataset(3, index)

  cohort = sampling.Cohort([3, 7, 8], client_dataset, lambda i: f'client{i}')
  state = process.initialize()
  with pytest.raises(runtime.ClientError, match=r'client7.*the disk is gone'):
    process.next(state, cohort)
  # The context remains usable.
  process.next(state, regression.datasets(0))


def test_a_client_with_nan_has_no_weight():
  runtime.set_local_context(num_threads=2)
  process = _fed_avg(_functional_model())
  bad = tf.data.Dataset.from_tensor_slices(
    (np.full([2, 3], np.nan, np.float32), np.zeros([2, 1], np.float32))
  ).batch(2)
  state = process.initialize()
  with_bad = process.next(state, [*regression.datasets(0), bad]).state
  without = process.next(state, regression.datasets(0)).state
  for a, b in zip(
    process.get_model_weights(with_bad).trainable,
    process.get_model_weights(without).trainable,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_client_without_data_and_a_round_without_clients():
  runtime.set_local_context(num_threads=2)
  process = _fed_avg(_functional_model())
  state = process.initialize()
  empty = regression.dataset(4, 0).take(0)
  weights = process.get_model_weights(state).trainable
  for cohort in ([empty], []):
    after = process.next(state, cohort).state
    for a, b in zip(process.get_model_weights(after).trainable, weights):
      np.testing.assert_array_equal(a, b)
