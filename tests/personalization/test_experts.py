"""The experts of clients, on a classifier small enough to compute by hand."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.personalization import (
  client_by_client,
  client_hashing,
  client_store,
  expert_results,
  experts,
)

_WORDS, _CLASSES, _LENGTH = 12, 3, 4


def _bag_of_words():
  """Logits are the sum of the words' rows; each text has a label."""

  @tf.function
  def predict(weights, x, training=True):
    del training
    (table,), (bias,) = weights
    return tf.reduce_sum(tf.gather(table, x), axis=1) + bias

  def loss(output, label, sample_weight=None):
    del sample_weight
    return tf.reduce_mean(
      tf.nn.sparse_softmax_cross_entropy_with_logits(label, output)
    )

  @tf.function
  def initialize():
    return collections.OrderedDict(
      loss=[tf.zeros([]), tf.zeros([])], accuracy=[tf.zeros([]), tf.zeros([])]
    )

  @tf.function
  def update(state, labels, batch_output, sample_weight=None):
    del sample_weight
    count = tf.cast(tf.size(labels), tf.float32)
    right = tf.equal(
      tf.argmax(batch_output.predictions, -1, output_type=tf.int32), labels
    )
    right = tf.reduce_sum(tf.cast(right, tf.float32))
    return collections.OrderedDict(
      loss=[
        state['loss'][0] + batch_output.loss * count,
        state['loss'][1] + count,
      ],
      accuracy=[state['accuracy'][0] + right, state['accuracy'][1] + count],
    )

  @tf.function
  def finalize(state):
    return collections.OrderedDict(
      (name, total / count) for name, (total, count) in state.items()
    )

  return tff.learning.models.FunctionalModel(
    initial_weights=(
      (np.zeros([_WORDS, _CLASSES], np.float32),),
      (np.zeros([_CLASSES], np.float32),),
    ),
    predict_on_batch_fn=predict,
    loss_fn=loss,
    metrics_fns=(initialize, update, finalize),
    input_spec=(
      tf.TensorSpec([None, _LENGTH], tf.int32),
      tf.TensorSpec([None], tf.int32),
    ),
  )


def _examples(favourite, count, seed):
  """Returns texts with their first word's class, or the favourite class."""
  generator = np.random.default_rng([seed, favourite])
  x = generator.integers(1, _WORDS, [count, _LENGTH])
  y = np.where(generator.random(count) < 0.95, favourite, x[:, 0] % _CLASSES)
  return np.concatenate([x, y[:, None]], axis=1).astype(np.int32)


_SETTINGS: dict[str, Any] = {
  'learning_rate': 0.05,
  'gate_learning_rate': 0.01,
  'batch_size': 5,
  'max_epochs': 4,
  'epochs_per_validation': 1,
  'patience': 2,
  'min_drop': 0.001,
  'mix': 'probabilities',
  'start': 'fine_tuned',
  'gate_embedding_size': 2,
  'gate_units': 3,
  'seed': 0,
}


@pytest.fixture(name='personalizer', scope='module')
def _personalizer():
  return _build()


def _build(**settings):
  generator = np.random.default_rng(0)
  table = generator.normal(0, 0.1, [_WORDS, _CLASSES]).astype(np.float32)
  return experts.Personalizer(
    model=_bag_of_words(),
    global_weights=tff.learning.models.ModelWeights(
      (table,), (np.array([0.0, 0.1, 0.0], np.float32),)
    ),
    initial_weights=(np.zeros_like(table),),
    vocab_size=_WORDS,
    settings=experts.ExpertSettings(**{**_SETTINGS, **settings}),
    read_output=lambda output: (output, None),
    replace_logits=lambda output, logits: logits,
    global_examples=_examples(1, 30, seed=9),
  )


def _client(index, count=40):
  return experts.Client(
    f'client {index}',
    index % 2 == 0,
    lambda: _examples(index % _CLASSES, count, seed=index),
  )


_CLIENTS = [_client(0), _client(1, count=2), _client(2), _client(3)]


def _all(personalizer, folder, **options):
  options = {'fingerprint': 'one', 'num_clients': 3, **options}
  return client_by_client.personalize_all(
    _CLIENTS, personalizer, store=client_store.ClientStore(folder), **options
  )


@pytest.fixture(name='uninterrupted', scope='module')
def _uninterrupted(personalizer, tmp_path_factory):
  folder = tmp_path_factory.mktemp('clients')
  return folder, _all(personalizer, folder)


def test_results(uninterrupted, personalizer):
  folder, (results, too_small) = uninterrupted
  assert [one['client'] for one in results] == [
    'client 0',
    'client 2',
    'client 3',
  ]
  assert too_small == ['client 1']
  assert [one['opted_in'] for one in results] == [True, True, False]
  for one in results:
    counts = [one[f'num_{part}'] for part in ('train', 'validation', 'test')]
    assert counts == [24, 8, 8]
    # The global model is the same for all, on their own examples.
    assert one['overall']['global'] == results[0]['overall']['global']
    # Most examples of a client have one class, which experts learn.
    for name in ('fine_tuned', 'local', 'mixture'):
      assert one['own'][name]['loss'] < one['own']['global']['loss']
    assert set(one['own']) == set(one['overall']) == set(experts.MODELS)
  store = client_store.ClientStore(folder)
  state, facts = store.read('client 3', personalizer.shapes)
  assert facts['results'] == results[2]
  assert state['expert/0'].shape == (_WORDS, _CLASSES)


def test_metrics_are_those_of_the_test_part(uninterrupted):
  """Computes the global model's loss on the test part by hand."""
  _, (results, _) = uninterrupted
  generator = np.random.default_rng(0)
  table = generator.normal(0, 0.1, [_WORDS, _CLASSES]).astype(np.float32)
  examples = _CLIENTS[2].examples()
  parts: Any = client_hashing.split_rows(
    len(examples), experts.FRACTIONS, 'experts', 0, 'client 2'
  )
  rows = parts[-1]
  x, y = examples[rows, :-1], examples[rows, -1]
  logits = table[x].sum(axis=1) + np.array([0.0, 0.1, 0.0])
  losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
  own = results[1]['own']['global']
  assert own['loss'] == pytest.approx(losses.mean(), rel=1e-5)
  # It only has tokens.
  assert 'perplexity' not in own
  assert own['accuracy'] == pytest.approx(np.mean(logits.argmax(1) == y))


def test_the_test_part_is_not_trained_on(personalizer, monkeypatch):
  seen = []
  batches = experts.examples_lib.batches

  def record(rows, *args):
    seen.append({tuple(row) for row in rows.tolist()})
    return batches(rows, *args)

  client = _client(2)
  examples = client.examples()
  parts: Any = experts.rows(len(examples), client.client_id, seed=0)
  train, validation, test = (
    {tuple(row) for row in examples[part].tolist()} for part in parts
  )
  monkeypatch.setattr(experts.examples_lib, 'batches', record)
  personalizer.personalize(client)
  # The last one is the test part itself, for evaluation.
  assert seen[-1] == test
  assert all(rows in (train, validation) for rows in seen[:-1])


def _distribution_loss(logits, labels):
  norms = np.log(np.exp(logits).sum(axis=1))
  return float(np.mean(norms - logits[np.arange(len(labels)), labels]))


@pytest.mark.parametrize('index', [0, 2])
def test_validated_start_is_no_worse_than_any_model_alone(index):
  """Without steps, the mixture is its start: a constant gate between two."""
  personalizer = _build(start='validated', gate_learning_rate=0.0)
  client = _client(index)
  made = personalizer.personalize(client)
  assert made is not None
  state, results = made
  examples = client.examples()
  parts: Any = experts.rows(len(examples), client.client_id, seed=0)
  validation = examples[parts[1]]
  x, y = validation[:, :-1], validation[:, -1]
  bias = np.array([0.0, 0.1, 0.0])
  generator = np.random.default_rng(0)
  table = generator.normal(0, 0.1, [_WORDS, _CLASSES]).astype(np.float32)
  overall = table[x].sum(axis=1) + bias
  expert = state['expert/0'][x].sum(axis=1) + bias
  # Its gate's hidden layer is nearly constant, so the bias determines it.
  g = 1 / (1 + np.exp(-state['gate/output_bias'][0]))

  def probabilities(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

  mixed = g * probabilities(expert) + (1 - g) * probabilities(overall)
  loss = _distribution_loss(np.log(mixed), y)
  assert loss <= _distribution_loss(overall, y) + 0.01
  assert loss <= _distribution_loss(expert, y) + 0.01
  # Most of these clients' labels are one class, which the global model does
  # not know.
  assert g > 0.5
  assert results['own']['mixture']['loss'] < results['own']['global']['loss']


class _KilledError(Exception):
  pass


def test_killed_and_resumed_gives_the_same(
  uninterrupted, personalizer, tmp_path, monkeypatch
):
  folder, (expected, _) = uninterrupted

  def kill(done, result):
    del result
    if done == 2:
      raise _KilledError

  with pytest.raises(_KilledError):
    _all(personalizer, tmp_path, on_client=kill)
  assert len(list(tmp_path.iterdir())) == 2
  trained: list[str] = []
  personalize = personalizer.personalize

  def recorded(client):
    trained.append(client.client_id)
    return personalize(client)

  monkeypatch.setattr(personalizer, 'personalize', recorded)
  results, too_small = _all(personalizer, tmp_path)
  assert results == expected and too_small == ['client 1']
  # Results are not computed again; small clients have no results.
  assert trained == ['client 1', 'client 3']
  for name in ('client 0', 'client 3'):
    (mine, _), (theirs, _) = (
      client_store.ClientStore(f).read(name, personalizer.shapes)
      for f in (tmp_path, folder)
    )
    for key, array in mine.items():
      np.testing.assert_array_equal(array, theirs[key])


@pytest.mark.parametrize('fault', ['truncated', 'shapes', 'fingerprint'])
def test_unusable_files_are_made_again(
  uninterrupted, personalizer, tmp_path, fault
):
  _, (expected, _) = uninterrupted
  store = client_store.ClientStore(tmp_path)
  facts = {'fingerprint': 'one', 'results': 'wrong'}
  arrays = {
    name: np.zeros(shape, np.float32)
    for name, shape in personalizer.shapes.items()
  }
  if fault == 'shapes':
    arrays['expert/0'] = np.zeros([1], np.float32)
  if fault == 'fingerprint':
    facts['fingerprint'] = 'another'
  store.write('client 0', arrays, facts)
  if fault == 'truncated':
    with open(store.path('client 0'), 'r+b') as file:
      file.truncate(100)
  results, _ = _all(personalizer, tmp_path, num_clients=1)
  assert results == expected[:1]
  assert store.read('client 0', personalizer.shapes)[1]['results'] == results[0]


def test_summary(uninterrupted):
  _, (results, _) = uninterrupted
  summary = expert_results.summarize(results)
  margins = [
    one['own']['mixture']['loss']
    - min(one['own']['global']['loss'], one['own']['local']['loss'])
    for one in results
  ]
  assert summary['num_mixture_at_least_best'] == sum(m <= 0 for m in margins)
  assert summary['median_loss_above_best'] == sorted(margins)[1]
  assert summary['num_opted_out'] == 1
  described = expert_results.describe(results)
  assert set(described['own']) == {'all', 'opted_in', 'opted_out'}
  assert (
    described['own']['opted_out']['mixture']['loss']['mean']
    == (results[2]['own']['mixture']['loss'])
  )


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'max_epochs': 0}, 'max_epochs must be a whole number'),
    ({'patience': 1.5}, 'patience must be a whole number'),
    ({'learning_rate': -1.0}, 'learning_rate must be a finite number'),
    ({'min_drop': float('nan')}, 'min_drop must be a finite number'),
    ({'start': 'warm'}, 'start must be one of fine_tuned, validated'),
    ({'mix': 'sum'}, 'mix must be one of probabilities, log_probabilities'),
  ],
)
def test_settings_out_of_range(change, message):
  with pytest.raises(ValueError, match=message):
    experts.ExpertSettings(**{**_SETTINGS, **change})
