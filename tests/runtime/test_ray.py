from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import ray
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import runtime
from si_federated.training import sampling
from tests.runtime import regression

# If a computation went to TFF's runtime, it would be compared with itself.
pytestmark = pytest.mark.filterwarnings('error:A computation goes to TFF')


@pytest.fixture(scope='module', autouse=True)
def _end_ray():
  yield
  ray.shutdown()
  runtime.set_local_context()


@pytest.fixture(scope='module')
def process():
  model = tff.learning.models.functional_model_from_keras(
    regression.linear, tf.keras.losses.MeanSquaredError(), regression.SPEC
  )
  return tff.learning.algorithms.build_weighted_fed_avg(
    model,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
    server_optimizer_fn=tff.learning.optimizers.build_adam(0.05),
    # Secure sums, simulated, of several kinds.
    model_aggregator=tff.learning.secure_aggregator(),
  )


def _two_rounds(process, cohort):
  state = process.initialize()
  for _ in range(2):
    state = process.next(state, cohort).state
  return process.get_model_weights(state).trainable


@pytest.fixture(scope='module')
def cohort():
  return [regression.dataset(3 + i % 7, i) for i in range(40)]


@pytest.fixture(scope='module')
def expected(process, cohort):
  runtime.set_ray_context(num_actors=2)
  return _two_rounds(process, cohort)


def _assert_same_bits(ours, theirs):
  for a, b in zip(ours, theirs):
    np.testing.assert_array_equal(a, b)


def test_gives_what_the_local_runtime_gives(process, cohort, expected):
  runtime.set_local_context(num_threads=2)
  for ours, theirs in zip(expected, _two_rounds(process, cohort)):
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def _pids(title, environment):
  """Returns the processes with a title and part of an environment."""
  found = []
  for folder in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      if (
        environment.encode() in (folder / 'environ').read_bytes()
        and title in (folder / 'cmdline').read_text()
      ):
        found.append(int(folder.name))
    except OSError:
      pass
  return found


@pytest.mark.slow
def test_killed_actors_change_no_bit(process, cohort, expected):
  runtime.set_ray_context(num_actors=2)
  killed: list[int] = []

  def client_dataset(index):
    if (index == 9 and not killed) or (index == 30 and len(killed) == 1):
      actors = _pids('ray::ClientWorker', f'STARTED_BY={os.getpid()}.')
      assert actors
      # First one of the two, later all.
      for pid in actors if killed else actors[:1]:
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
    return cohort[index]

  lazy = sampling.Cohort(
    list(range(40)), client_dataset, lambda i: f'client{i}'
  )
  _assert_same_bits(_two_rounds(process, lazy), expected)
  assert len(killed) > 1


def test_clients_are_drawn_once_each(process):
  runtime.set_ray_context(num_actors=2)
  drawn = []

  def client_dataset(index):
    drawn.append(index)
    return regression.dataset(2, index)

  lazy = sampling.Cohort(list(range(40)), client_dataset, str)
  state = process.initialize()
  assert not drawn
  process.next(state, lazy)
  assert drawn == list(range(40))


def test_a_client_without_data_and_a_round_without_clients(process):
  runtime.set_ray_context(num_actors=2)
  state = process.initialize()
  weights = process.get_model_weights(state).trainable
  for cohort in ([regression.dataset(4, 0).take(0)], []):
    after = process.next(state, cohort).state
    _assert_same_bits(process.get_model_weights(after).trainable, weights)


@tff.federated_computation(
  tff.FederatedType(np.int64, tff.SERVER),
  tff.FederatedType(tff.SequenceType(np.int64), tff.CLIENTS),
)
def _sum(state, data):
  @tff.tensorflow.computation(tff.SequenceType(np.int64))
  def total(dataset):
    result = dataset.reduce(np.int64(0), lambda x, y: x + y)
    with tf.control_dependencies(
      [tf.debugging.assert_less(result, np.int64(100), 'too much')]
    ):
      return tf.identity(result)

  return state, tff.federated_sum(tff.federated_map(total, data))


def test_an_error_names_the_client():
  runtime.set_ray_context(num_actors=2)

  def client_dataset(index):
    if index == 7:
      raise OSError('the disk is gone')
    return tf.data.Dataset.range(index + 2)

  def cohort(clients):
    return sampling.Cohort(clients, client_dataset, lambda i: f'client{i}')

  # On the actor, and before the data reach it.
  with pytest.raises(runtime.ClientError, match=r"'client20'.*too much"):
    _sum(0, cohort([1, 2, 20, 3]))
  with pytest.raises(runtime.ClientError, match=r"'client7'.*the disk is gone"):
    _sum(0, cohort([3, 7, 8]))
  endless = tf.data.Dataset.range(2).repeat()
  with pytest.raises(runtime.ClientError, match=r'number 1 .*infinite'):
    _sum(0, [[1], endless])
  # The context remains usable.
  assert _sum(5, [[1, 2], [], [3]]) == (5, 6)


# After the others, because it ends the two actors.
@pytest.mark.slow
def test_the_number_of_actors_changes_no_bit(process, cohort, expected):
  context = runtime.set_ray_context(num_actors=1)
  assert context.num_actors == 1
  _assert_same_bits(_two_rounds(process, cohort), expected)


def test_without_ray_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'ray', None)
  monkeypatch.delitem(sys.modules, 'si_federated.runtime.ray', raising=False)
  monkeypatch.delattr(runtime, 'ray', raising=False)
  with pytest.raises(ModuleNotFoundError, match=r'si_federated\[ray\]'):
    runtime.set_ray_context()


def test_bad_settings_raise():
  with pytest.raises(ValueError, match='at least 1, found 0'):
    runtime.set_ray_context(num_actors=0)
  ray.shutdown()
  with pytest.raises(ValueError, match='Ray Client'):
    runtime.set_ray_context(address='ray://head:10001')
  with socket.socket() as unused:
    unused.bind(('localhost', 0))
    address = f'localhost:{unused.getsockname()[1]}'
    # Ray itself would wait for minutes and end the process.
    with pytest.raises(ValueError, match=f'No Ray cluster .*{address}'):
      runtime.set_ray_context(address=address)


_LONG_FOLDER = """
import sys
from si_federated import runtime
try:
  runtime.set_ray_context(num_actors=1)
except ValueError as error:
  sys.exit(str(error))
print('started')
"""


def _start_in(tmp_path, variable):
  folder = tmp_path / ('long' * 25)
  folder.mkdir()
  environment = {k: v for k, v in os.environ.items() if k != 'RAY_TMPDIR'}
  return subprocess.run(
    [sys.executable, '-c', _LONG_FOLDER],
    env={**environment, variable: str(folder)},
    capture_output=True,
    check=False,
    text=True,
  )


@pytest.mark.slow
def test_a_long_tmpdir_is_not_used(tmp_path):
  result = _start_in(tmp_path, 'TMPDIR')
  assert (result.returncode, result.stdout) == (0, 'started\n'), result.stderr


def test_a_long_ray_tmpdir_is_refused(tmp_path):
  result = _start_in(tmp_path, 'RAY_TMPDIR')
  assert result.returncode == 1
  assert 'set RAY_TMPDIR to a folder whose path has at most' in result.stderr
