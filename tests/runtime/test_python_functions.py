"""Clients' work that calls `tf.numpy_function` and `tf.py_function`."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import runtime

pytestmark = pytest.mark.filterwarnings('error:A computation goes to TFF')


def _round(call):
  @tff.tensorflow.computation(tff.SequenceType(np.int64))
  def work(data):
    # Local functions, which nothing else keeps alive.
    return data.map(
      lambda n: tf.ensure_shape(call(lambda m: np.int64(2 * m), [n]), [])
    ).reduce(np.int64(0), lambda total, n: total + n)

  @tff.federated_computation(
    tff.FederatedType(np.int64, tff.SERVER),
    tff.FederatedType(tff.SequenceType(np.int64), tff.CLIENTS),
  )
  def next_round(state, data):
    return state, tff.federated_sum(tff.federated_map(work, data))

  gc.collect()
  return next_round


def _numpy(function, arguments):
  return tf.numpy_function(function, arguments, tf.int64)


def _eager(function, arguments):
  return tf.py_function(
    lambda n: tf.constant(function(n.numpy())), arguments, tf.int64
  )


@pytest.fixture(autouse=True)
def _local_runtime_afterwards():
  yield
  runtime.set_local_context()


@pytest.mark.parametrize('call', [_numpy, _eager])
def test_python_functions_are_kept_on_the_local_runtime(call):
  runtime.set_local_context(num_threads=2)
  next_round = _round(call)
  for _ in range(2):
    gc.collect()
    clients = [tf.data.Dataset.range(4), tf.data.Dataset.range(3)]
    assert next_round(0, clients)[1] == 2 * (6 + 3)


@pytest.mark.parametrize(
  'name', ['jax', pytest.param('ray', marks=pytest.mark.slow)]
)
def test_python_functions_are_refused_elsewhere(name):
  next_round = _round(_numpy)
  if name == 'jax':
    runtime.set_jax_context()
  else:
    pytest.importorskip('ray')
    runtime.set_ray_context(num_actors=1)
  with pytest.raises(
    runtime.UnsupportedError, match=r'tf.numpy_function.*only in the process'
  ):
    next_round(0, [tf.data.Dataset.range(4)])
