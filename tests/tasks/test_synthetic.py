"""The synthetic task: purity, uneven clients, and the exact floor."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from si_federated.tasks import TASKS
from si_federated.tasks.synthetic import ChainMixture


def synthetic(**options):
  return TASKS['synthetic'](
    data_dir=None, **{'vocab_size': 100, 'sequence_length': 8, **options}
  )


def everything(population):
  return population.sample_examples(10**6, seed=0)


def tiny_mixture():
  return ChainMixture.random(
    2,
    3,
    concentration=1.0,
    mean_words=3.0,
    generator=np.random.default_rng(1),
  )


def test_rows_are_distributions_and_no_sentence_is_empty():
  mixture = tiny_mixture()
  np.testing.assert_allclose(mixture.transitions.sum(-1), 1.0)
  assert (mixture.transitions >= 0).all()
  assert (mixture.transitions[:, 0, 0] == 0).all()


def sentences_of(num_words, length):
  """All label sequences of at most `length` steps: words, then the end, 0."""
  for size in range(1, length + 1):
    for words in itertools.product(range(1, num_words + 1), repeat=size):
      yield (*words, 0) if size < length else words


def brute_force(mixture, labels):
  """Sums over the chains; does not use filtering."""
  total = 0.0
  for prior, chain in zip(mixture.prior, mixture.transitions):
    path = zip((0, *labels), labels)
    total += prior * np.prod([chain[a, b] for a, b in path])
  return total


def test_likelihoods_equal_brute_force_and_add_up_to_one():
  mixture = tiny_mixture()
  mixture = ChainMixture(np.array([0.3, 0.7]), mixture.transitions)
  length = 4
  everyone = list(sentences_of(3, length))
  states = np.zeros([len(everyone), length], int)
  steps = np.zeros([len(everyone), length], bool)
  for row, labels in enumerate(everyone):
    states[row, : len(labels)] = labels
    steps[row, : len(labels)] = True
  actual = mixture.log_likelihoods(states, steps)
  expected = [np.log(brute_force(mixture, labels)) for labels in everyone]
  np.testing.assert_allclose(actual, expected, rtol=1e-10)
  np.testing.assert_allclose(np.exp(actual).sum(), 1.0, rtol=1e-10)


def test_impossible_sentences_have_no_probability():
  transitions = np.array([[[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]])
  mixture = ChainMixture(np.ones([1]), transitions)
  total = mixture.log_likelihoods(np.array([[2, 0]]), np.ones([1, 2], bool))
  assert total[0] == -np.inf


def test_samples_follow_the_chains():
  mixture = tiny_mixture()
  count = 40_000
  states = mixture.sample(np.ones([count], int), 3, np.random.default_rng(2))
  for labels in sentences_of(3, 3):
    row = (*labels, 0, 0)[:3]
    share = np.mean((states == row).all(axis=1))
    path = zip((0, *labels), labels)
    exact = np.prod([mixture.transitions[1, a, b] for a, b in path])
    assert abs(share - exact) < 4 * np.sqrt(exact / count) + 1e-9


def test_floor_of_the_task_is_that_of_its_own_words():
  """Recomputed from the words, with chains drawn again from the seed."""
  task = synthetic(num_words=6, num_chains=2, num_clients=20, seed=4)
  mixture = ChainMixture.random(
    2,
    6,
    concentration=0.05,
    mean_words=8.0,
    generator=np.random.default_rng(4),
  )
  examples = everything(task.test)
  total, count = 0.0, 0
  for row in examples.tolist():
    labels = []
    for word in task.vocabulary.decode([i for i in row[1:] if i]):
      labels.append(0 if word == '<EOS>' else int(word[1:]))
    total += np.log(brute_force(mixture, labels))
    count += len(labels)
  np.testing.assert_allclose(
    task.reference_perplexities(examples)['floor'],
    np.exp(-total / count),
    rtol=1e-9,
  )


def test_floor_lies_well_below_unigram():
  task = synthetic()
  lines = task.reference_perplexities(everything(task.validation))
  assert 1.0 < lines['floor'] < lines['unigram'] / 3 < 100


def test_a_bigram_model_stays_above_the_floor():
  task = synthetic(num_clients=300, num_words=10)
  size = task.vocabulary.size
  counts = np.full([size, size], 0.1)
  train = everything(task.train)
  np.add.at(counts, (train[:, :-1], train[:, 1:]), 1.0)
  model = np.log(counts / counts.sum(1, keepdims=True))
  examples = everything(task.test)
  x, y = examples[:, :-1], examples[:, 1:]
  perplexity = np.exp(-model[x, y][y > 0].mean())
  floor = task.reference_perplexities(examples)['floor']
  unigram = task.reference_perplexities(examples)['unigram']
  assert floor < perplexity < unigram


def test_same_seed_same_data():
  for split in ('train', 'validation', 'test'):
    first, second, other = (
      everything(getattr(synthetic(seed=seed), split)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert first.shape != other.shape or (first != other).any()


def test_clients_are_uneven_and_splits_apart():
  task = synthetic(num_clients=200)
  sizes = [task.train.num_examples(i) for i in range(len(task.train))]
  assert sizes.count(1) >= 5
  assert np.median(sizes) > 10
  assert max(sizes) > 60
  names = [
    {p.client_id(i) for i in range(len(p))}
    for p in (task.train, task.validation, task.test)
  ]
  assert [len(n) for n in names] == [160, 20, 20]
  assert len(set.union(*names)) == 200


def test_no_word_is_unknown_and_sentences_end_only_if_short():
  task = synthetic()
  v = task.vocabulary
  examples = everything(task.train)
  assert not (examples == v.out_of_vocabulary).any()
  assert ((examples[:, 1:] == v.end).sum(1) + (examples[:, -1] > 0) >= 1).all()
  full = (examples[:, 1:] > 0).all(axis=1)
  cut = full & (examples[:, -1] != v.end)
  assert cut.any() and not cut.all()
  # The most frequent word comes first.
  counts = task.train.label_counts()[1 : len(v.words) + 1]
  assert (np.diff(counts) <= 0).all()


def test_vocabulary_bounds_the_words():
  assert len(synthetic(vocab_size=7).vocabulary.words) == 7
  assert len(synthetic(num_words=12).vocabulary.words) == 12


@pytest.mark.parametrize(
  'options',
  [
    {'num_clients': 2},
    {'num_clients': 1_000_001},
    {'num_chains': 0},
    {'num_words': 0},
    {'sentences_per_client': 0},
    {'concentration': 0.0},
    {'concentration': 1e-300},
    {'concentration': 1e308},
    {'seed': -1},
  ],
)
def test_numbers_out_of_range(options):
  with pytest.raises(ValueError) as caught:
    synthetic(**options)
  assert '\n' not in str(caught.value)
