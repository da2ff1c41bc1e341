"""Clients as one JAX program: results equal to other runtimes', and faults."""

from __future__ import annotations

import collections
import os
import pathlib
import signal
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import runtime
from si_federated.runtime import jax_process, jax_worker
from si_federated.training import sampling
from tests.runtime.jax_runs import round_of_sums

pytestmark = pytest.mark.filterwarnings('error:A computation goes to TFF')

_SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def _local_again():
  """Restores the tests' own runtime for other tests."""
  yield
  runtime.set_local_context()


_PAIRS = tff.SequenceType(tff.TensorType(np.float32, [2]))


def _dataset(*rows):
  return tf.data.Dataset.from_tensor_slices(
    np.array(rows, np.float32).reshape([-1, 2])
  )


def _by_reduction(server, data):
  return data.reduce(
    tf.zeros([2]), lambda total, pair: total * server + tf.sin(pair)
  )


def _by_iterator(server, data):
  @tf.function
  def loop(data):
    total = tf.zeros([2])
    for pair in iter(data):
      total = total * server + tf.sin(pair)
    return total

  return loop(data)


def _expected(server, clients):
  result = np.zeros(2)
  for rows in clients:
    total = np.zeros(2)
    for row in rows:
      total = total * server + np.sin(row)
    result += total
  return result


@pytest.mark.parametrize('client_fn', [_by_reduction, _by_iterator])
def test_loops_over_unequal_clients(client_fn):
  # 1 to 5 elements and none, in groups of 2: steps and clients are padded.
  runtime.set_jax_context(clients_per_group=2)
  generator = np.random.default_rng(0)
  clients = [generator.normal(size=[n, 2]) for n in (3, 1, 5, 0, 2, 3, 3)]
  next_round = round_of_sums(client_fn, _PAIRS)
  _, total = next_round(0.5, [_dataset(*rows) for rows in clients])
  np.testing.assert_allclose(total, _expected(0.5, clients), rtol=1e-6)
  # Another server value and cohort through the same programs.
  _, total = next_round(2.0, [_dataset(*rows) for rows in clients[:4]])
  np.testing.assert_allclose(total, _expected(2.0, clients[:4]), rtol=1e-6)
  _, total = next_round(2.0, [])
  np.testing.assert_array_equal(total, [0, 0])


def test_a_clients_nan_does_not_spread():
  # The second client's value is NaN, and counts as 0 as in TFF's guard.
  def client_fn(server, data):
    total = _by_reduction(server, data)
    is_finite = tf.reduce_all(tf.math.is_finite(total))
    return tf.cond(is_finite, lambda: total, lambda: tf.zeros([2]))

  runtime.set_jax_context(clients_per_group=4)
  next_round = round_of_sums(client_fn, _PAIRS)
  good = [[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6]]]
  _, expected = next_round(0.5, [_dataset(*rows) for rows in good])
  bad = [good[0], [[np.nan, 1.0]], good[1]]
  _, total = next_round(0.5, [_dataset(*rows) for rows in bad])
  np.testing.assert_array_equal(total, expected)


def test_cohorts_that_have_arrays_make_no_datasets():
  def cohort(width):
    return sampling.Cohort(
      [3, 5],
      lambda _: pytest.fail('A dataset was made.'),
      lambda index: f'name{index}',
      lambda index: [np.full([index, width], 0.5, np.float32)],
    )

  runtime.set_jax_context()
  next_round = round_of_sums(_by_reduction, _PAIRS)
  _, total = next_round(0.5, cohort(2))
  expected = _expected(0.5, [np.full([n, 2], 0.5) for n in (3, 5)])
  np.testing.assert_allclose(total, expected, rtol=1e-6)
  with pytest.raises(
    runtime.ClientError, match=r"'name3'.*type float32\[2\] .*float32\(3, 3\)"
  ):
    next_round(0.5, cohort(3))


def test_components_keep_their_names():
  # TensorFlow orders components by name, TFF by position.
  sequence_type = tff.SequenceType(
    collections.OrderedDict(b=np.float32, a=np.float32)
  )

  def client_fn(server, data):
    return data.reduce(
      tf.zeros([]), lambda total, x: total + server * x['b'] - x['a']
    )

  runtime.set_jax_context()
  dataset = tf.data.Dataset.from_tensor_slices(
    collections.OrderedDict(
      b=np.array([1, 2], np.float32), a=np.array([10, 20], np.float32)
    )
  )
  _, total = round_of_sums(client_fn, sequence_type)(100.0, [dataset, dataset])
  assert total == 2 * (300 - 30)


def test_clients_of_plain_tensors():
  runtime.set_jax_context(clients_per_group=2)
  next_round = round_of_sums(
    lambda server, x: server * tf.sin(x), tff.TensorType(np.float32, [2])
  )
  clients = [np.array([i, 2 * i], np.float32) for i in range(5)]
  _, total = next_round(3.0, clients)
  np.testing.assert_allclose(total, 3 * np.sin(clients).sum(axis=0), rtol=1e-6)


def test_an_operation_that_jax_lacks_is_named():
  def client_fn(server, data):
    text = tf.strings.as_string(server)
    number = tf.strings.to_number(text)
    return data.reduce(tf.zeros([2]), lambda total, pair: total + number * pair)

  runtime.set_jax_context()
  with pytest.raises(runtime.UnsupportedError, match=r'AsString.*local'):
    round_of_sums(client_fn, _PAIRS)(1.0, [_dataset([1, 2])])


def test_batches_of_any_size_are_refused_where_rows_of_padding_count():
  sequence_type = tff.SequenceType(tff.TensorType(np.float32, [None, 2]))

  def client_fn(server, data):
    return data.reduce(
      tf.zeros([]), lambda total, x: total + server * tf.reduce_mean(x)
    )

  runtime.set_jax_context()
  with pytest.raises(runtime.UnsupportedError, match='any number of rows'):
    round_of_sums(client_fn, sequence_type)(1.0, [_dataset([1, 2]).batch(2)])


def test_a_client_whose_data_fail_is_named():
  runtime.set_jax_context()
  broken = _dataset([1, 2]).map(
    lambda pair: tf.debugging.check_numerics(pair / 0.0, 'not finite')
  )
  with pytest.raises(runtime.ClientError, match='number 1.*not finite'):
    round_of_sums(_by_reduction, _PAIRS)(1.0, [_dataset([1, 2]), broken])


def test_a_python_that_does_not_exist():
  with pytest.raises(ValueError, match="'/no/python'.*path of a Python"):
    runtime.set_jax_context(python='/no/python')


def test_a_python_without_jax(tmp_path):
  # Isolated from the packages of this environment.
  path = tmp_path / 'python'
  path.write_text(
    f'#!/bin/sh\nexec {pathlib.Path(sys.executable).resolve()} -S "$@"\n'
  )
  path.chmod(0o755)
  with pytest.raises(ValueError, match='Install JAX'):
    runtime.set_jax_context(python=path)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'matmul_precision': 'low'}, "'low' is not one of default, high"),
    ({'clients_per_group': 0}, 'must be 1 or more; got 0'),
    ({'memory_gib': 0.0}, 'memory_gib must be above 0; got 0.0'),
    ({'device': 'abacus'}, 'JAX does not start'),
  ],
)
def test_options_out_of_range(options, message):
  with pytest.raises(ValueError, match=message):
    runtime.set_jax_context(**options)


_WIDE = 4096  # a client's element takes 16 KiB
_WIDE_ROUND = tff.SequenceType(tff.TensorType(np.float32, [_WIDE]))


def _wide_sum(server, data):
  return data.reduce(server, lambda total, row: total + tf.reduce_sum(row))


def _wide_clients():
  return [
    tf.data.Dataset.from_tensor_slices(np.full([1, _WIDE], i, np.float32))
    for i in range(8)
  ]


def _group_sizes(monkeypatch):
  """Returns a list to which the sizes of groups that run are added."""
  sizes: list[int] = []
  ask = jax_process.Process.ask

  def listening(self, message, arrays=()):
    if message['command'] == 'add':
      sizes.append(len(arrays[-1]))
    return ask(self, message, arrays)

  monkeypatch.setattr(jax_process.Process, 'ask', listening)
  return sizes


@pytest.mark.parametrize(
  ('kib', 'expected'),
  # A program takes little more than 16 KiB per client.
  [(1000, [8]), (100, [4, 4]), (48, [2] * 4), (24, [1] * 8)],
)
def test_groups_are_as_large_as_memory_allows(kib, expected, monkeypatch):
  sizes = _group_sizes(monkeypatch)
  runtime.set_jax_context(memory_gib=kib / 2**20)
  _, total = round_of_sums(_wide_sum, _WIDE_ROUND)(1.0, _wide_clients())
  assert sizes == expected
  assert total == 8 + _WIDE * 28


def test_a_client_that_does_not_fit_is_reported():
  runtime.set_jax_context(memory_gib=8 / 2**20)
  with pytest.raises(runtime.UnsupportedError, match='One client does not fit'):
    round_of_sums(_wide_sum, _WIDE_ROUND)(1.0, _wide_clients())


def test_groups_are_halved_when_memory_runs_out(monkeypatch):
  sizes = _group_sizes(monkeypatch)
  ask = jax_process.Process.ask

  def full(self, message, arrays=()):
    answer = ask(self, message, arrays)
    if message['command'] == 'end' and sizes[-1] > 2:
      raise jax_process.OutOfMemoryError('RESOURCE_EXHAUSTED')
    return answer

  monkeypatch.setattr(jax_process.Process, 'ask', full)
  context = runtime.set_jax_context()
  next_round = round_of_sums(_wide_sum, _WIDE_ROUND)
  with pytest.warns(UserWarning, match='out of memory; now with') as warned:
    _, total = next_round(1.0, _wide_clients())
  assert total == 8 + _WIDE * 28
  said = [str(w.message) for w in warned if w.category is UserWarning]
  assert said == [
    f'{context.device} is out of memory; now with {size} clients at once.'
    for size in (4, 2)
  ]
  # The size is remembered.
  del sizes[:]
  next_round(1.0, _wide_clients())
  assert sizes == [2] * 4


def test_a_killed_process_is_reported():
  context = runtime.set_jax_context()
  next_round = round_of_sums(_by_reduction, _PAIRS)
  next_round(1.0, [_dataset([1, 2])])
  os.kill(context.worker_pid, signal.SIGKILL)
  with pytest.raises(runtime.UnsupportedError, match='process has ended'):
    next_round(1.0, [_dataset([1, 2])])


def test_an_interrupted_round_gives_no_answer_to_the_next(monkeypatch):
  runtime.set_jax_context()
  next_round = round_of_sums(_by_reduction, _PAIRS)
  next_round(1.0, [_dataset([1, 2])])

  def interrupted(stream):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(jax_worker, 'receive', interrupted)
    with pytest.raises(KeyboardInterrupt):
      next_round(1.0, [_dataset([1, 2])])
  with pytest.raises(runtime.UnsupportedError, match='process has ended'):
    next_round(1.0, [_dataset([3, 4])])


def test_jax_keeps_compiled_programs_on_disk(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path))
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
  results, kept = [], []
  for _ in range(2):
    runtime.set_jax_context()
    results.append(
      round_of_sums(_by_iterator, _PAIRS)(1.0, [_dataset([1, 2])])[1]
    )
    kept.append({path.name for path in tmp_path.iterdir()})
  # The second process asks for the same programs, and adds none.
  assert kept[0] and kept[1] == kept[0]
  np.testing.assert_array_equal(*results)


def test_draws_that_depend_on_results_of_jax_are_refused():
  def client_fn(server, data):
    total = _by_reduction(server, data)
    seed = tf.cast(total, tf.int32)
    return total + tf.random.stateless_uniform([2], seed)

  runtime.set_jax_context()
  with pytest.raises(runtime.UnsupportedError, match='Stateless.*compression'):
    round_of_sums(client_fn, _PAIRS)(1.0, [_dataset([1, 2])])


def test_programs_that_draw_have_separate_functions():
  # TensorFlow names loops alike when it inlines them; these differ.
  def work_with(number):
    def client_fn(server, data):
      drawn = tf.random.stateless_uniform([2], tf.constant([1, 2]))

      @tf.function
      def loop(data):
        totals = [drawn * server] * number
        for pair in iter(data):
          totals = [total + pair for total in totals]
        return tf.add_n(totals)

      return loop(data)

    return client_fn

  drawn = tf.random.stateless_uniform([2], tf.constant([1, 2])).numpy()
  runtime.set_jax_context()
  for number in (1, 2):
    _, total = round_of_sums(work_with(number), _PAIRS)(2.0, [_dataset([1, 2])])
    np.testing.assert_allclose(total, number * (2 * drawn + [1, 2]), rtol=1e-6)


def test_untraceable_programs_are_refused():
  # A shape that depends on data.
  def client_fn(server, data):
    return (
      data.reduce(
        tf.zeros([2]),
        lambda total, pair: (
          total + tf.reduce_sum(tf.zeros([tf.cast(pair[0], tf.int32)]))
        ),
      )
      * server
    )

  runtime.set_jax_context()
  with pytest.raises(runtime.UnsupportedError, match='runtime=jax cannot run'):
    round_of_sums(client_fn, _PAIRS)(1.0, [_dataset([1, 2])])


def test_all_devices_of_the_machine(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=2')
  runtime.set_jax_context(clients_per_group=1)
  generator = np.random.default_rng(0)
  clients = [generator.normal(size=[n, 2]) for n in (3, 1, 5, 2)]
  next_round = round_of_sums(_by_reduction, _PAIRS)
  _, total = next_round(0.5, [_dataset(*rows) for rows in clients])
  np.testing.assert_allclose(total, _expected(0.5, clients), rtol=1e-6)
  _, total = next_round(0.5, [_dataset(*clients[0])])
  np.testing.assert_allclose(total, _expected(0.5, clients[:1]), rtol=1e-6)
