"""Clients' data as arrays of a few shapes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import experiment
from si_federated.runtime import client_arrays, values
from si_federated.tasks import populations, token_arrays
from tests import tiny

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
    # TensorFlow does not know this length before it reads the dataset.
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


@pytest.mark.parametrize(
  'options',
  [
    {},
    {
      'model': 'cifg:units=8,embedding_size=4,dropout=0.5',
      'client_batch_size': 4,
      'client_epochs_per_round': 2,
      'max_elements_per_client': 7,
    },
  ],
)
def test_stacks_of_a_cohort_equal_its_datasets(options):
  built = experiment.build(tiny.tiny_config(clients_per_round=4, **options))
  cohort = built.sample_cohort(2)
  assert built.draws_from_keys == bool(options)
  element = tff.types.tensorflow_to_type(cohort[0].element_spec)
  sequence_type = tff.SequenceType(element)
  reader = client_arrays.Reader(sequence_type)
  sizes = set()
  for position in range(len(cohort)):
    (expected,), _ = reader.read(
      values.flatten(cohort[position], sequence_type)
    )
    components = cohort.stack(position)
    assert components is not None
    sizes.add(len(components[0]))
    stack = client_arrays.stack_of(components, sequence_type)
    assert stack.size == expected.size
    for one, other in zip(stack.components, expected.components):
      assert one.dtype == other.dtype
      np.testing.assert_array_equal(one, other)
  assert not options or 2 in sizes


def test_stacks_of_class_labels_have_one_axis_less():
  class Labelled(populations.ClientPopulation):
    def split(self, rows):
      return rows[:, :-1], rows[:, -1]

  sentences = [[number, number + 1] for number in range(5)]
  arrays = token_arrays.TokenArrays.from_clients({'a': sentences})
  population = Labelled(arrays, num_words=9, sequence_length=2)
  number, (ids, labels) = population.stacked_batches(0, batch_size=2)
  assert number == 5 and ids.shape == (3, 2, 2)
  # Ids are ranks plus one; 11 begins a sentence.
  np.testing.assert_array_equal(labels, [[2, 3], [4, 5], [6, 0]])
  np.testing.assert_array_equal(ids[2], [[11, 5], [0, 0]])


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
