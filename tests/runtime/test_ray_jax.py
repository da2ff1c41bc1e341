"""Groups of clients run by JAX on actors, compared with other runtimes."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import ray
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import experiment, runtime
from si_federated.runtime import jax_process, ray_actors
from tests import tiny

pytestmark = pytest.mark.filterwarnings('error:A computation goes to TFF')

_SLOW = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def _end_ray():
  yield
  ray.shutdown()
  runtime.set_local_context()


def _next_round():
  """Returns a round that sums the server's value times clients' sines."""
  sequence_type = tff.SequenceType(tff.TensorType(np.float32, [2]))

  @tff.tensorflow.computation(np.float32, sequence_type)
  def work(server, data):
    return data.reduce(
      tf.zeros([2]), lambda total, pair: total + server * tf.sin(pair)
    )

  @tff.federated_computation(
    tff.FederatedType(np.float32, tff.SERVER),
    tff.FederatedType(sequence_type, tff.CLIENTS),
  )
  def next_round(state, data):
    at_clients = tff.federated_broadcast(state)
    return state, tff.federated_sum(tff.federated_map(work, (at_clients, data)))

  return next_round


def _clients():
  generator = np.random.default_rng(0)
  rows = [generator.normal(size=[1 + n % 3, 2]) for n in range(20)]
  data = [
    tf.data.Dataset.from_tensor_slices(part.astype(np.float32)) for part in rows
  ]
  return data, sum(np.sin(part).sum(axis=0) for part in rows)


@_SLOW
def test_killed_actors_and_devices_change_no_bit():
  context = runtime.set_ray_context(
    num_actors=2, worker='jax', clients_per_group=2
  )
  next_round = _next_round()
  data, sines = _clients()
  _, expected = next_round(3.0, data)
  np.testing.assert_allclose(expected, 3 * sines, rtol=1e-5)
  actors = context._actors._running
  while len(actors) < 2:  # the second one may start after the round
    context._actors.wait()
  # The process that owns a device, then an actor.
  device = ray.get(actors[0].handle.process_id.remote())
  os.kill(device, signal.SIGKILL)
  _, total = next_round(3.0, data)
  np.testing.assert_array_equal(total, expected)
  ray.kill(context._actors._running[0].handle)
  _, total = next_round(3.0, data)
  np.testing.assert_array_equal(total, expected)
  # Nor does the number of actors change it. A round without clients sums none.
  runtime.set_ray_context(num_actors=1, worker='jax', clients_per_group=2)
  _, total = next_round(3.0, data)
  np.testing.assert_array_equal(total, expected)
  _, total = next_round(3.0, [])
  np.testing.assert_array_equal(total, [0, 0])


@_SLOW
def test_training_equals_that_of_the_local_runtime():
  results = []
  for name in ('local', 'ray:worker=jax,num_actors=2,clients_per_group=2'):
    built = experiment.build(
      tiny.tiny_config(
        runtime=name,
        clients_per_round=5,
        sequence_length=5,
        server_optimizer='sgd',
        server_learning_rate=1.0,
        client_learning_rate=0.1,
      )
    )
    state = built.process.initialize()
    for round_num in (1, 2):
      state = built.process.next(state, built.sample_cohort(round_num)).state
    results.append(built.process.get_model_weights(state).trainable)
  local, on_actors = results
  scale = max(np.abs(array).max() for array in local)
  for one, other in zip(on_actors, local):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * scale)


class _FullDevice:
  """A process whose device has no memory for a program."""

  facts = {'platform': 'cpu'}

  def ask(self, message, arrays=()):
    if message['command'] == 'add':
      raise jax_process.OutOfMemoryError('RESOURCE_EXHAUSTED: 3 GiB')
    return {}, []


def test_an_actor_says_that_its_device_is_full(monkeypatch):
  monkeypatch.setattr(jax_process, 'Process', lambda *_: _FullDevice())
  worker = ray_actors.GroupWorker(None, None)
  monkeypatch.setattr(ray, 'get', lambda reference: reference)
  answer = worker.run(
    [{'program': b'1'}], [([], [])], [('program', [np.zeros(2)])]
  )
  assert answer == ray_actors.OutOfMemory('RESOURCE_EXHAUSTED: 3 GiB')


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'worker': 'torch'}, "worker='torch' is not one of tensorflow, jax"),
    ({'clients_per_group': 8}, 'clients_per_group.*options of worker=jax'),
  ],
)
def test_options_out_of_range(options, message):
  with pytest.raises(ValueError, match=message):
    runtime.set_ray_context(**options)


def test_which_runtimes_need_static_shapes():
  assert runtime.needs_static_shapes('jax', {})
  assert runtime.needs_static_shapes('ray', {'worker': 'jax'})
  assert not runtime.needs_static_shapes('ray', {'num_actors': 2})
