"""Populations: ids, order of training passes, samples, memory mapping."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest

from si_federated.tasks.populations import ClientPopulation
from si_federated.tasks.token_arrays import UNLISTED, TokenArrays
from si_federated.tasks.token_store import open_store

CLIENTS = {
  'one': [[0, 1, 2], [3], [0, 0, 0, 0, 0, 0]],
  'zwei': [[2, UNLISTED, 0, 1]],
  'trois': [[i % 5] for i in range(10)],
}


@pytest.fixture
def population():
  return ClientPopulation(TokenArrays.from_clients(CLIENTS), 3, 4)


def test_ids_by_hand(population):
  # Words 1..3, out-of-vocabulary 4, beginning 5, end 6.
  np.testing.assert_array_equal(
    population.examples(0),
    [[5, 1, 2, 3, 6], [5, 4, 6, 0, 0], [5, 1, 1, 1, 1]],
  )
  np.testing.assert_array_equal(population.examples(1), [[5, 3, 4, 1, 2]])
  assert population.examples(0).dtype == np.int32


def test_names_and_sizes(population):
  assert len(population) == 3
  assert [population.client_id(i) for i in range(3)] == ['one', 'zwei', 'trois']
  assert [population.num_examples(i) for i in range(3)] == [3, 1, 10]
  assert population.num_sentences == 14
  for index in (-1, 3):
    with pytest.raises(IndexError, match='3 clients'):
      population.examples(index)


def test_labels_are_one_ahead_and_the_remainder_is_kept(population):
  batches = list(
    population.client_batches(0, batch_size=2, seed=None).as_numpy_iterator()
  )
  assert [x.shape for x, _ in batches] == [(2, 4), (1, 4)]
  np.testing.assert_array_equal(batches[0][0], [[5, 1, 2, 3], [5, 4, 6, 0]])
  np.testing.assert_array_equal(batches[0][1], [[1, 2, 3, 6], [4, 6, 0, 0]])


def passes(population, index, **options):
  return population.training_examples(index, **options).tolist()


def test_order_is_a_pure_function_of_seed_and_client(population):
  first = passes(population, 2, epochs=3, seed=7)
  assert passes(population, 2, epochs=3, seed=7) == first
  assert passes(population, 2, epochs=3, seed=8) != first
  assert passes(population, 2, epochs=3, seed=(7, 1)) != first
  batches = population.client_batches(2, batch_size=4, epochs=3, seed=7)
  x = np.concatenate([x for x, _ in batches.as_numpy_iterator()])
  assert x.tolist() == [row[:-1] for row in first]


def test_clients_of_one_round_have_orders_of_their_own():
  clients = {f'c{i}': [[j] for j in range(12)] for i in range(3)}
  population = ClientPopulation(TokenArrays.from_clients(clients), 12, 1)
  orders = {str(passes(population, i, seed=7)) for i in range(3)}
  assert len(orders) == 3


def test_order_does_not_change_between_versions():
  clients = {'c': [[i] for i in range(8)]}
  population = ClientPopulation(TokenArrays.from_clients(clients), 8, 1)
  order = population.training_examples(0, seed=1)[:, 1] - 1
  expected = np.argsort(np.random.PCG64([1, 0]).random_raw(8), kind='stable')
  np.testing.assert_array_equal(order, expected)
  assert order.tolist() == GOLDEN_ORDER


GOLDEN_ORDER = [2, 4, 7, 5, 0, 6, 3, 1]


def test_every_epoch_is_another_permutation():
  clients = {'c': [[i] for i in range(20)]}
  population = ClientPopulation(TokenArrays.from_clients(clients), 20, 1)
  words = population.training_examples(0, epochs=3, seed=5)[:, 1].reshape(3, 20)
  for epoch in words:
    assert sorted(epoch) == list(range(1, 21))
  assert len({tuple(epoch) for epoch in words.tolist()}) == 3


@pytest.mark.parametrize('seed', [None, 5])
def test_elements_are_taken_after_repeating(seed):
  clients = {'c': [[i] for i in range(20)]}
  population = ClientPopulation(TokenArrays.from_clients(clients), 20, 1)
  whole = population.training_examples(0, epochs=3, seed=seed)
  cut = population.training_examples(0, epochs=3, max_elements=45, seed=seed)
  np.testing.assert_array_equal(cut, whole[:45])
  more = population.training_examples(0, epochs=1, max_elements=45, seed=seed)
  assert len(more) == 20


@pytest.mark.parametrize('count', [1, 9, 60, 399, 400, 1000])
def test_sample_is_fixed_and_without_duplicates(count):
  clients = {
    f'c{i}': [[i, j] for j in range(20)] for i in range(20)
  }  # 400 sentences, all different.
  population = ClientPopulation(TokenArrays.from_clients(clients), 20, 2)
  sample = population.sample_examples(count, seed=3)
  assert sample.shape == (min(count, 400), 3)
  assert len({tuple(row) for row in sample.tolist()}) == len(sample)
  np.testing.assert_array_equal(
    sample, population.sample_examples(count, seed=3)
  )
  if count < 399:
    other = population.sample_examples(count, seed=4)
    assert other.tolist() != sample.tolist()


def test_sample_is_drawn_over_all_sentences():
  clients = {f'c{i}': [[i]] for i in range(1000)}
  population = ClientPopulation(TokenArrays.from_clients(clients), 1000, 1)
  words = population.sample_examples(200, seed=0)[:, 1]
  assert abs(words.mean() - 500) < 3 * 1000 / np.sqrt(12 * 200)


def test_label_counts(population):
  labels = np.concatenate([population.examples(i)[:, 1:] for i in range(3)])
  expected = np.bincount(labels.ravel(), minlength=7)
  expected[0] = 0
  np.testing.assert_array_equal(population.label_counts(), expected)
  np.testing.assert_array_equal(population.label_counts(chunk=1), expected)


@pytest.mark.parametrize(
  'options',
  [{'batch_size': 0}, {'epochs': 0}, {'max_elements': 0}],
)
def test_numbers_out_of_range(population, options):
  with pytest.raises(ValueError, match='1 or more'):
    population.client_batches(0, **{'batch_size': 1, **options})


def test_sizes_out_of_range():
  arrays = TokenArrays.from_clients(CLIENTS)
  for words, length in ((0, 4), (65_535, 4), (3, 0)):
    with pytest.raises(ValueError):
      ClientPopulation(arrays, words, length)
  assert ClientPopulation(arrays, 65_534, 4).examples(1)[0, 2] == 65_535


NUM_CLIENTS = 342_477


@pytest.fixture
def large_store(tmp_path):
  """A store of as many clients as Stack Overflow has, one sentence each."""
  names = b''.join(b'%08d' % i for i in range(NUM_CLIENTS))
  steps = np.arange(NUM_CLIENTS + 1, dtype='<i8')
  files = {
    'tokens.u2': (np.arange(NUM_CLIENTS) % 1000).astype('<u2').tobytes(),
    'sentence_offsets.i8': steps.tobytes(),
    'client_offsets.i8': steps.tobytes(),
    'client_ids.bin': names,
    'client_id_offsets.i8': (8 * steps).tobytes(),
  }
  sizes = {'words.txt': 4000}
  (tmp_path / 'words.txt').write_text(
    ''.join(f'{i:03d}\n' for i in range(1000))
  )
  for split in ('train', 'validation', 'test'):
    (tmp_path / split).mkdir()
    for name, content in files.items():
      (tmp_path / split / name).write_bytes(content)
      sizes[f'{split}/{name}'] = len(content)
  counts = {'clients': NUM_CLIENTS, 'words': NUM_CLIENTS}
  (tmp_path / 'meta.json').write_text(
    json.dumps(
      {
        'format_version': 1,
        'key': 'k',
        'sizes': sizes,
        'splits': dict.fromkeys(('train', 'validation', 'test'), counts),
      }
    )
  )
  return str(tmp_path)


def test_a_large_population_is_mapped_not_read(large_store):
  arrays = open_store(large_store, key='k').splits['train']
  for name in (
    'tokens',
    'sentence_offsets',
    'client_offsets',
    'client_ids',
    'client_id_offsets',
  ):
    array = getattr(arrays, name)
    assert isinstance(array, np.memmap)
    assert not array.flags.owndata
    assert array.mode == 'r'
  population = ClientPopulation(arrays, 1000, 3)
  assert len(population) == NUM_CLIENTS
  last = NUM_CLIENTS - 1
  assert population.client_id(last) == f'{last:08d}'
  assert population.examples(last).tolist() == [
    [1002, last % 1000 + 1, 1003, 0]
  ]
  assert isinstance(population.examples(last), np.ndarray)
  assert not isinstance(population.examples(last), np.memmap)
  # It has only the arrays and two numbers, but no object for each client.
  assert set(vars(population)) == {'arrays', 'num_words', 'sequence_length'}


def test_mapped_arrays_travel_by_name(large_store):
  population = ClientPopulation(open_store(large_store).splits['test'], 1000, 3)
  sent = pickle.dumps(population)
  assert len(sent) < 1000
  np.testing.assert_array_equal(
    pickle.loads(sent).examples(5), population.examples(5)
  )
  small = ClientPopulation(TokenArrays.from_clients(CLIENTS), 3, 4)
  np.testing.assert_array_equal(
    pickle.loads(pickle.dumps(small)).examples(0), small.examples(0)
  )
  assert os.path.isdir(large_store)
