"""Tests of clients that fail, have no data or send NaN."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import runtime
from si_federated.training import sampling
from tests.runtime import regression

pytestmark = pytest.mark.filterwarnings('error:A computation goes to TFF')


def _dataset(size, seed=0):
  x = np.random.default_rng(seed).normal(size=[size, 3]).astype(np.float32)
  return tf.data.Dataset.from_tensor_slices(
    (x, x.sum(axis=1, keepdims=True))
  ).batch(4)


def _slices(*arrays):
  return tf.data.Dataset.from_tensor_slices(arrays).batch(2)


def _constant(value):
  return _slices(
    np.full([4, 3], value, np.float32), np.zeros([4, 1], np.float32)
  )


@pytest.fixture(scope='module')
def process():
  return tff.learning.algorithms.build_weighted_fed_avg(
    tff.learning.models.functional_model_from_keras(
      regression.linear, tf.keras.losses.MeanSquaredError(), regression.SPEC
    ),
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
    # The other kind of loop instantiates its body for every client.
    loop_implementation=tff.learning.LoopImplementation.DATASET_ITERATOR,
  )


@pytest.fixture(scope='module')
def local():
  """One context for all rounds, so that a failed one could affect others."""
  return runtime.set_local_context(num_threads=2)


@pytest.fixture
def state(process, local):
  return process.initialize()


def _assert_same_weights(process, one, other, rtol=0.0):
  for a, b in zip(
    process.get_model_weights(one).trainable,
    process.get_model_weights(other).trainable,
  ):
    np.testing.assert_allclose(a, b, rtol=rtol)


def _raises_in_the_middle(words):
  good = _dataset(8)
  return good.concatenate(
    good.map(lambda x, y: (tf.debugging.check_numerics(x / 0.0, words), y))
  )


def _generator_that_raises(words):
  def generate():
    yield np.zeros([4, 3], np.float32), np.zeros([4, 1], np.float32)
    raise ValueError(words)

  return tf.data.Dataset.from_generator(
    generate, output_signature=regression.SPEC
  )


@pytest.mark.parametrize(
  'make', [_raises_in_the_middle, _generator_that_raises]
)
def test_data_that_raise_in_the_middle_name_the_client(process, state, make):
  cohort = sampling.Cohort(
    [0, 1, 2, 3],
    lambda i: make('row 17 is garbled') if i == 2 else _dataset(5, i),
    lambda i: f'client{i}',
  )
  with pytest.raises(runtime.ClientError) as raised:
    process.next(state, cohort)
  message = str(raised.value)
  assert "'client2'" in message
  assert 'row 17 is garbled' in message
  assert '\n' not in message
  assert 'node' not in message


def test_clients_of_a_list_are_named_by_position(process, state):
  with pytest.raises(runtime.ClientError, match='number 1 of the cohort'):
    process.next(state, [_dataset(3), _raises_in_the_middle('x')])


def test_the_round_after_a_failed_one_is_as_without_it(process, local, state):
  def client_threads():
    return {t for t in threading.enumerate() if t.name.startswith('client')}

  clients = [_dataset(5, i) for i in range(6)]
  expected = process.next(state, clients).state
  threads = client_threads()
  for _ in range(3):
    with pytest.raises(runtime.ClientError):
      process.next(state, [*clients[:3], _generator_that_raises('x')] * 5)
  _assert_same_weights(process, process.next(state, clients).state, expected)
  assert client_threads() <= threads


def test_a_failure_ends_the_other_clients(process, state):
  """Otherwise this test would take hours."""
  endless = _dataset(4).repeat(10**9)
  with pytest.raises(runtime.ClientError, match='number 1'):
    process.next(state, [endless, _raises_in_the_middle('x'), endless])


@pytest.mark.parametrize(
  ('dataset', 'found'),
  [
    (_slices(np.zeros([4, 3]), np.zeros([4, 1], np.float32)), 'float64[?,3]'),
    (
      _slices(np.zeros([4, 5], np.float32), np.zeros([4, 1], np.float32)),
      'float32[?,5]',
    ),
    (_dataset(4).unbatch(), '<float32[3],float32[1]>'),
    (_dataset(4).map(lambda x, _: x), 'float32[?,3].'),
    (_dataset(4).map(lambda x, y: {'a': x, 'b': y}), '<a=float32[?,3]'),
    (3, 'int'),
  ],
)
def test_an_error_shows_the_expected_type_of_data(
  process, state, dataset, found
):
  with pytest.raises(runtime.ClientError) as raised:
    process.next(state, [_dataset(4), dataset])
  message = str(raised.value)
  assert 'number 1 ' in message
  assert '<float32[?,3],float32[?,1]>' in message
  assert found in message
  assert '\n' not in message


def test_unknown_shapes_are_accepted(process, state):
  unknown = tf.data.Dataset.from_generator(
    lambda: iter(_dataset(5)), output_types=(tf.float32, tf.float32)
  )
  _assert_same_weights(
    process,
    process.next(state, [unknown]).state,
    process.next(state, [_dataset(5)]).state,
  )


def test_one_dataset_is_not_a_cohort(process, state):
  with pytest.raises(TypeError, match=r'clients must be a list.*Dataset'):
    process.next(state, _dataset(4))


def test_an_error_shows_the_expected_shape_of_a_state(process, state):
  weights = process.get_model_weights(state)
  wrong = tff.learning.models.ModelWeights(
    (np.zeros([4, 1], np.float32), weights.trainable[1]), ()
  )
  with pytest.raises((TypeError, ValueError), match=r'float32\[3,1\]'):
    process.next(process.set_model_weights(state, wrong), [_dataset(4)])


@pytest.mark.parametrize(
  'clients',
  [
    [],
    [_dataset(4).take(0)],
    [_dataset(4).take(0)] * 3,
    [_dataset(5), _dataset(4).take(0), _dataset(7, 1)],
    [_dataset(5), _constant(np.nan)],
    [_constant(np.inf), _dataset(5)],
    [_constant(np.nan)] * 2,
    # Finite numbers whose sum of squares is infinite.
    [_dataset(5), _constant(1e30)],
  ],
  ids=[
    'no_clients',
    'one_empty',
    'all_empty',
    'some_empty',
    'nan',
    'infinity',
    'all_nan',
    'overflow',
  ],
)
def test_empty_and_non_finite_clients_are_treated_as_by_tff(
  process, local, clients
):
  runtime.set_tff_context()
  expected = process.next(process.initialize(), clients)
  # The fixture's, compiled once.
  tff.framework.set_default_context(local)
  start = process.initialize()
  output = process.next(start, clients)
  _assert_same_weights(process, output.state, expected.state, rtol=1e-5)
  tf.nest.map_structure(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4),
    output.metrics,
    expected.metrics,
  )
  good = [client for client in clients if _is_good(client)]
  if not good:
    _assert_same_weights(process, output.state, start)
  else:
    without = process.next(start, good).state
    _assert_same_weights(process, output.state, without, rtol=1e-5)


def _is_good(client):
  total = sum(float(tf.reduce_sum(x**2)) for x, _ in client)
  return 0 < total < np.inf


def test_memory_has_a_window_of_clients_not_the_cohort(process, local, state):
  """Here for datasets, in the next test for updates."""
  alive: weakref.WeakSet = weakref.WeakSet()
  most, drawn, lock = 0, 0, threading.Lock()

  class Cohort(sampling.Cohort):
    def __getitem__(self, position):
      nonlocal most, drawn
      dataset = super().__getitem__(position)
      with lock:
        alive.add(dataset)
        drawn += 1
        most = max(most, len(alive))
      return dataset

  gc.collect()
  process.next(
    state, Cohort(range(400), lambda i: _dataset(1, i), lambda i: f'{i}')
  )
  assert drawn == 400
  # Two threads, four waiting updates for each, and those being dropped.
  assert most <= 2 * 4 + 2


def test_a_slow_client_bounds_the_waiting_updates(process, state):
  """Updates wait for their turn, since the first client finishes last."""
  drawn, lock, release = 0, threading.Lock(), threading.Event()

  class Cohort(sampling.Cohort):
    def __getitem__(self, position):
      nonlocal drawn
      if position == 0:
        release.wait(60)
      else:
        with lock:
          drawn += 1
      return super().__getitem__(position)

  at_release = []

  def watch():
    # Waits until the other thread makes no progress.
    before = -1
    while drawn != before or drawn == 0:
      before = drawn
      time.sleep(0.5)
    at_release.append(drawn)
    release.set()

  watcher = threading.Thread(target=watch)
  watcher.start()
  process.next(
    state, Cohort(range(100), lambda i: _dataset(1, i), lambda i: f'{i}')
  )
  watcher.join()
  assert 0 < at_release[0] <= 2 * 4
  assert drawn == 99
