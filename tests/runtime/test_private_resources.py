"""No client can read what another client's work keeps in a resource."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow.python.ops import data_flow_ops

from si_federated import runtime

_WORDS = tff.SequenceType(np.str_)
_COHORT = [['a', 'b'], ['c']]


@pytest.fixture(autouse=True)
def _local_runtime_afterwards():
  yield
  runtime.set_local_context()


def _count_mutable(words):
  table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
  with tf.control_dependencies(
    [table.insert(words, tf.ones_like(words, tf.int64))]
  ):
    return table.size()


def _count_vectors(words):
  table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, [0, 0])
  values = tf.zeros([tf.size(words), 2], tf.int64)
  with tf.control_dependencies([table.insert(words, values)]):
    return table.size()


def _count_dense(words):
  table = tf.lookup.experimental.DenseHashTable(
    tf.string, tf.int64, -1, empty_key='', deleted_key='$'
  )
  with tf.control_dependencies(
    [table.insert(words, tf.ones_like(words, tf.int64))]
  ):
    return table.size()


def _count_variable(words):
  total = tf.raw_ops.VarHandleOp(dtype=tf.int64, shape=[], shared_name='total')
  found = tf.raw_ops.VarIsInitializedOp(resource=total)
  with tf.control_dependencies([found]):
    assign = tf.raw_ops.AssignVariableOp(resource=total, value=np.int64(0))
  with tf.control_dependencies([assign]):
    return tf.size(words, tf.int64) + 100 * tf.cast(found, tf.int64)


def _count_queue(words):
  queue = tf.queue.FIFOQueue(100, [tf.string], shapes=[()])
  with tf.control_dependencies([queue.enqueue_many([words])]):
    return tf.cast(queue.size(), tf.int64)


def _count_barrier(words):
  barrier = data_flow_ops.Barrier([tf.int64], shapes=[()])
  insert = barrier.insert_many(0, words, tf.ones_like(words, tf.int64))
  with tf.control_dependencies([insert]):
    return tf.cast(barrier.ready_size(), tf.int64)


def _count_stage(words):
  area = data_flow_ops.StagingArea([tf.string])
  puts = [area.put([words]), area.put([words])]
  with tf.control_dependencies(puts):
    return tf.cast(area.size(), tf.int64) * tf.size(words, tf.int64) // 2


_PRIVATE = [_count_mutable, _count_vectors, _count_dense, _count_variable]
# These go to TFF's own runtime, and a warning says so.
_REROUTED = [_count_queue, _count_barrier, _count_stage]


def _round_of(count):
  @tff.tensorflow.computation(_WORDS)
  def work(data):
    size = tf.cast(2**20, tf.int64)
    words = tf.data.experimental.get_single_element(data.batch(size))
    return count(words)

  @tff.federated_computation(
    tff.FederatedType(np.int64, tff.SERVER),
    tff.FederatedType(_WORDS, tff.CLIENTS),
  )
  def next_round(state, data):
    return state, tff.federated_sum(tff.federated_map(work, data))

  return next_round


def _cohort(*clients):
  return [tf.data.Dataset.from_tensor_slices(words) for words in clients]


_SET = {
  'one_thread': lambda: runtime.set_local_context(num_threads=1),
  'two_threads': lambda: runtime.set_local_context(num_threads=2),
  'tff': runtime.set_tff_context,
}


def _totals(count):
  next_round = _round_of(count)
  return [next_round(0, _cohort(*_COHORT))[1] for _ in range(3)]


@pytest.mark.filterwarnings('error:A computation goes to TFF')
@pytest.mark.parametrize('name', list(_SET))
@pytest.mark.parametrize('count', _PRIVATE)
def test_clients_do_not_share_tables_and_variables(count, name):
  _SET[name]()
  assert _totals(count) == [3, 3, 3]


@pytest.mark.parametrize('name', list(_SET))
@pytest.mark.parametrize('count', _REROUTED)
def test_clients_do_not_share_queues_barriers_and_stages(count, name):
  _SET[name]()
  if name == 'tff':
    assert _totals(count) == [3, 3, 3]
  else:
    with pytest.warns(UserWarning, match='(Queue|Barrier|Stage).* shared by'):
      assert _totals(count) == [3, 3, 3]


@pytest.mark.slow
@pytest.mark.parametrize('count', [*_PRIVATE, *_REROUTED])
@pytest.mark.filterwarnings("ignore:A computation goes to TFF's own runtime")
def test_clients_do_not_share_resources_on_ray(count):
  ray = pytest.importorskip('ray')
  runtime.set_ray_context(num_actors=2)
  try:
    assert _totals(count) == [3, 3, 3]
  finally:
    if count is _REROUTED[-1]:
      ray.shutdown()


@pytest.mark.filterwarnings('error:A computation goes to TFF')
def test_another_computation_does_not_see_the_first_ones_words():
  runtime.set_local_context(num_threads=1)

  def work(name, words):
    @tff.tensorflow.computation
    def size():
      table = tf.raw_ops.MutableHashTableV2(
        key_dtype=tf.string, value_dtype=tf.int64, shared_name=name
      )
      # The table of this name.
      again = tf.raw_ops.MutableHashTableV2(
        key_dtype=tf.string, value_dtype=tf.int64, shared_name=name
      )
      insert = tf.raw_ops.LookupTableInsertV2(
        table_handle=table,
        keys=tf.constant(words),
        values=tf.ones_like(words, tf.int64),
      )
      with tf.control_dependencies([insert]):
        return tf.raw_ops.LookupTableSizeV2(table_handle=again)

    return size

  assert work('words', ['a', 'b'])() == 2
  assert work('words', ['c'])() == 1


@pytest.mark.filterwarnings('error:A computation goes to TFF')
@pytest.mark.parametrize('name', list(_SET))
def test_a_table_made_from_a_file_is_read_again(name, tmp_path):
  _SET[name]()
  path = tmp_path / 'words.txt'

  @tff.tensorflow.computation(np.str_)
  def number(word):
    table = tf.lookup.StaticHashTable(
      tf.lookup.TextFileInitializer(
        str(path),
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
      ),
      -1,
    )
    return table.lookup(word)

  path.write_text('a\nb\n')
  assert number('b') == 1
  path.write_text('b\nc\n')
  assert number('b') == 0


@pytest.mark.filterwarnings('error:A computation goes to TFF')
def test_an_iterator_restarts_for_each_client():
  runtime.set_local_context(num_threads=2)

  @tff.tensorflow.computation(tff.SequenceType(np.int64))
  def second(data):
    iterator = tf.compat.v1.data.make_initializable_iterator(data)
    with tf.control_dependencies([iterator.initializer]):
      first = iterator.get_next()
    with tf.control_dependencies([first]):
      return iterator.get_next()

  data = tf.data.Dataset.range(5, 9)
  assert [second(data) for _ in range(3)] == [6, 6, 6]


def test_an_accumulator_is_refused_by_name():
  runtime.set_local_context(num_threads=1)

  @tff.tensorflow.computation
  def count():
    accumulator = tf.compat.v1.ConditionalAccumulator(tf.float32, shape=[])
    with tf.control_dependencies([accumulator.apply_grad(1.0)]):
      return accumulator.num_accumulated()

  with pytest.raises(runtime.UnsupportedError, match='Accumulator.* shared by'):
    count()


def _number_in_a_map():
  return tf.raw_ops.AddSparseToTensorsMap(
    sparse_indices=[[0]], sparse_values=[1], sparse_shape=[2]
  )


def _records_of_a_reader():
  reader = tf.raw_ops.IdentityReaderV2()
  return tf.raw_ops.ReaderNumRecordsProducedV2(reader_handle=reader)


@pytest.mark.parametrize(
  ('make', 'name'),
  [
    (_number_in_a_map, 'AddSparseToTensorsMap'),
    (_records_of_a_reader, 'IdentityReaderV2'),
  ],
)
def test_what_clients_share_in_tffs_worker_is_refused_by_name(make, name):
  runtime.set_local_context(num_threads=1)
  count = tff.tensorflow.computation(make)
  with pytest.raises(runtime.UnsupportedError, match=f'{name} .*shared by'):
    count()


@pytest.mark.filterwarnings('error:A computation goes to TFF')
def test_a_table_made_in_a_function_of_the_graph_is_not_lowered():
  runtime.set_local_context(num_threads=1)

  @tff.tensorflow.computation(tff.SequenceType(np.int64))
  def total(data):
    def step(total, number):
      table = tf.raw_ops.MutableHashTableV2(
        key_dtype=tf.int64, value_dtype=tf.int64, shared_name='in_a_function'
      )
      insert = tf.raw_ops.LookupTableInsertV2(
        table_handle=table, keys=[number], values=[number]
      )
      with tf.control_dependencies([insert]):
        return total + tf.raw_ops.LookupTableSizeV2(table_handle=table)

    return data.reduce(np.int64(0), step)

  with pytest.raises(UserWarning, match='MutableHashTableV2 .* the function'):
    total(tf.data.Dataset.range(3))


@pytest.mark.filterwarnings('error:A computation goes to TFF')
def test_a_table_is_freed_with_its_execution():
  runtime.set_local_context(num_threads=1)

  @tff.tensorflow.computation(np.int64)
  def fill(start):
    table = tf.lookup.experimental.MutableHashTable(
      tf.int64, tf.float32, tf.zeros([20])
    )
    keys = tf.range(start, start + 50_000)
    with tf.control_dependencies([table.insert(keys, tf.zeros([50_000, 20]))]):
      return table.size()

  def megabytes():
    with open('/proc/self/statm') as file:
      return int(file.read().split()[1]) * 4096 / 2**20

  for start in range(3):
    fill(start)
  before = megabytes()
  # 4 MB of values each, if they were kept.
  for start in range(3, 63):
    assert fill(50_000 * start) == 50_000
  assert megabytes() - before < 100
