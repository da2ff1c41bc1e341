"""Computations without placements on the local runtime."""

from __future__ import annotations

import collections

import attrs
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tests.runtime.parity import assert_same

# If a computation went to TFF's runtime, it would be compared with itself.
pytestmark = pytest.mark.filterwarnings('error:A computation goes to TFF')


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
    assert_same(compute(*arguments), expected, rtol=0, atol=0)
