"""Clients' data as arrays of a few shapes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.runtime import client_arrays, values

_BATCHES = tff.SequenceType(tff.TensorType(np.float32, [None]))
_CLIENT = tff.to_type((_BATCHES, np.int32))


def _numbers(count):
  return tf.data.Dataset.from_tensor_slices(
    np.arange(1, count + 1, dtype=np.float32)
  )


def _read(dataset):
  reader = client_arrays.Reader(_CLIENT)
  return reader.read(values.flatten((dataset, 7), _CLIENT))


@pytest.mark.parametrize(
  ('dataset', 'expected'),
  [
    (_numbers(3).batch(2), [[1, 2], [3, 0]]),
    # Of a length that TensorFlow does not know before it reads.
    (_numbers(9).filter(lambda x: x < 4).batch(2), [[1, 2], [3, 0]]),
    ([np.float32([1]), np.float32([2, 3, 4])], [[1, 0, 0], [2, 3, 4]]),
    (_numbers(3).batch(2).take(0), np.zeros([0, 0])),
  ],
)
def test_clients_as_stacks_of_batches(dataset, expected):
  (stack,), (number,) = _read(dataset)
  assert stack.size == len(expected) and number == 7
  (component,) = stack.components
  np.testing.assert_array_equal(component, expected)


def test_batches_are_not_fetched_one_by_one(monkeypatch):
  dataset = _numbers(3).batch(2)
  reader = client_arrays.Reader(_CLIENT)
  tensors = values.flatten((dataset, 7), _CLIENT)
  monkeypatch.setattr(
    tf.data.Dataset, '__iter__', lambda self: pytest.fail('Fetched.')
  )
  (stack,), _ = reader.read(tensors)
  assert stack.size == 2


def test_a_dataset_without_an_end_is_refused():
  with pytest.raises(ValueError, match=r'infinite.*take\(\)'):
    _read(_numbers(3).batch(2).repeat())


def test_groups_of_one_shape():
  def stack(*rows):
    return [client_arrays.Stack(len(rows), [np.array(rows, np.float32)])]

  # 3, 1 and 4 steps: the first and last form a group of 4 steps; rows are
  # rounded up to 4 for all.
  data = [stack([1, 2, 3], [4, 5, 6], [7, 8, 0]), stack([1]), stack(*[[2]] * 4)]
  first, second = client_arrays.groups(data, [_BATCHES], lambda _: 4)
  assert first.members == [0, 2] and second.members == [1]
  components, counts, is_client = first.arrays
  np.testing.assert_array_equal(
    components,
    [
      [[1, 2, 3, 0], [4, 5, 6, 0], [7, 8, 0, 0], [0, 0, 0, 0]],
      [[2, 0, 0, 0]] * 4,
    ],
  )
  np.testing.assert_array_equal(counts, [3, 4])
  np.testing.assert_array_equal(is_client, [True, True])
  np.testing.assert_array_equal(second.arrays[0], [[[1, 0, 0, 0]]])
