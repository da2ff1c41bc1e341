"""Sentences that clients exchange."""

from __future__ import annotations

import numpy as np
import pytest

from si_federated.tasks import TASKS, ClientPopulation, mixing
from si_federated.tasks.token_arrays import TokenArrays

SIZES = (1, 40, 7, 0, 120, 33)


def _arrays():
  # The word identifies the client, the length the sentence.
  clients = {
    f'client_{c}': [[c] * 1 + [n % 50] for n in range(size)]
    for c, size in enumerate(SIZES)
  }
  return TokenArrays.from_clients(clients)


def _numbers(similarity, seed=3):
  population = mixing.MixedPopulation(_arrays(), 60, 4, similarity, seed)
  return population, [
    population.sentence_numbers(c, np.arange(size))
    for c, size in enumerate(SIZES)
  ]


@pytest.mark.parametrize('size', [1, 2, 3, 64, 65, 1000])
def test_permutations(size):
  for seed in (0, 1):
    image = mixing.permute(np.arange(size), size, seed)
    assert sorted(image) == list(range(size))
  if size == 1000:
    other = mixing.permute(np.arange(size), size, 0)
    assert np.mean(image == other) < 0.02
    assert abs(np.corrcoef(image, np.arange(size))[0, 1]) < 0.1


@pytest.mark.parametrize('similarity', [0.0, 0.25, 0.5, 1.0])
def test_every_sentence_stays_with_one_client(similarity):
  _, numbers = _numbers(similarity)
  assert [len(n) for n in numbers] == list(SIZES)
  assert sorted(np.concatenate(numbers)) == list(range(sum(SIZES)))


@pytest.mark.parametrize('similarity', [0.25, 0.5, 0.9])
def test_the_part_that_is_exchanged(similarity):
  population, numbers = _numbers(similarity)
  plain = ClientPopulation(_arrays(), 60, 4)
  start = 0
  for size, found in zip(SIZES, numbers):
    stayed = np.sum(found == np.arange(start, start + size))
    # Some return to their own client.
    assert stayed >= size - np.ceil(similarity * size)
    if size >= 30:
      assert stayed <= size - np.floor(similarity * size) + 0.2 * size
    start += size
  np.testing.assert_array_equal(population.label_counts(), plain.label_counts())


def test_all_alike():
  _, numbers = _numbers(1.0)
  owners = np.repeat(np.arange(len(SIZES)), SIZES)
  of_largest = owners[numbers[4]]
  shares = np.bincount(of_largest, minlength=len(SIZES)) / SIZES[4]
  np.testing.assert_allclose(shares, np.array(SIZES) / sum(SIZES), atol=0.12)


def test_without_similarity_nothing_changes():
  task = TASKS['synthetic'](vocab_size=20, sequence_length=6, num_clients=12)
  assert mixing.mix(task, None, 0) is task
  assert mixing.mix(task, 0.0, 0) is task
  mixed = mixing.mix(task, 0.5, 0)
  assert mixed.validation is task.validation
  index = int(np.argmax([task.train.num_examples(i) for i in range(8)]))
  ours, theirs = mixed.train.examples(index), task.train.examples(index)
  assert ours.shape == theirs.shape
  assert not np.array_equal(ours, theirs)
  again = mixing.mix(task, 0.5, 0).train
  np.testing.assert_array_equal(
    again.training_examples(index, seed=5),
    mixed.train.training_examples(index, seed=5),
  )
  # The order of a pass is over the client's own sentences, old and new.
  rows = {tuple(row) for row in mixed.train.training_examples(index, seed=5)}
  assert rows == {tuple(row) for row in ours}
  other = mixing.mix(task, 0.5, 1).train
  assert not np.array_equal(other.examples(index), ours)


def test_bad_values_are_refused():
  with pytest.raises(ValueError, match='from 0 to 1'):
    mixing.MixedPopulation(_arrays(), 60, 4, 1.5, 0)
