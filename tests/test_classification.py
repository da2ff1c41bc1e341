"""Tests of federated classification, from the data to a run's folder."""

from __future__ import annotations

import csv
import json
import sys
import types
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from si_federated import config, experiment
from si_federated.algorithms import dropout_keys
from si_federated.assembly import task_and_model
from si_federated.inference import trained_model
from si_federated.weights import named_variables
from tests import tiny

_WORDS = {'fruit': 'apple pear plum', 'cars': 'bus train bike'}
_TINY = {
  'transformer_classifier': 'embedding_size=8,intermediate_dim=8,num_layers=1',
  'bert': 'hidden_dim=8,intermediate_dim=8,num_layers=1,max_length=6',
  'albert': 'hidden_dim=8,intermediate_dim=8,num_layers=2,max_length=6,'
  'embedding_size=4',
  'distilbert': 'hidden_dim=8,intermediate_dim=8,num_layers=1,max_length=6',
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  generator = np.random.default_rng(0)
  rows = ['text,label,client']
  for i in range(60):
    for label, words in _WORDS.items():
      chosen = generator.choice(words.split(), 3)
      # Clients of unequal sizes.
      rows.append(f'{" ".join(chosen)},{label},c{int(i > 44)}')
  (folder / 'things.csv').write_text('\n'.join(rows) + '\n')
  return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize('keyed', [True, False])
def test_unrepeatable_rounds_are_each_saved(data, keyed, monkeypatch):
  if not keyed:
    # As with layers that have their own generators.
    monkeypatch.setattr(dropout_keys, 'takes_keys', lambda _: False)
  private: dict[str, Any] = {
    'aggregator': 'gaussian',
    'clip_norm': 1.0,
    'noise_multiplier': 1.0,
  }
  built = experiment.build(
    _config(
      data,
      model=f'bert:{_TINY["bert"]},dropout=0.1',
      rounds_per_checkpoint=5,
      **private,
    )
  )
  assert built.draws_from_keys == keyed
  assert built.rounds_per_checkpoint == (5 if keyed else 1)
  assert keyed != any('every round is saved' in text for text in built.notices)


@pytest.mark.parametrize(
  'name',
  [
    'transformer_classifier',
    pytest.param('bert', marks=pytest.mark.slow),
    pytest.param('albert', marks=pytest.mark.slow),
    pytest.param('distilbert', marks=pytest.mark.slow),
  ],
)
def test_dropout_is_drawn_from_keys(data, name):
  if name != 'transformer_classifier':
    pytest.importorskip('keras_nlp')
  built = experiment.build(
    _config(data, model=f'{name}:{_TINY[name]},dropout=0.5')
  )
  state = built.process.initialize()
  # The same data, with the keys of two rounds, then of the first again.
  ends = []
  for round_num in (1, 2, 1):
    word = dropout_keys.round_word(seed=0, round_num=round_num)
    cohort = []
    for client in range(2):
      batches = built.task.train.client_batches(client, batch_size=8)
      cohort.append(dropout_keys.add_keys(batches, word=word, client=client))
    result = built.process.next(state, cohort).state
    ends.append(built.process.get_model_weights(result).trainable)
  first, second, again = ends
  for one, other in zip(first, again):
    np.testing.assert_array_equal(one, other)
  assert any(not np.array_equal(*pair) for pair in zip(first, second))


def _config(data, name='transformer_classifier', /, **changes):
  values = {
    'task': 'text_classification:path=things.csv,client=client',
    'data_dir': data,
    'model': f'{name}:{_TINY[name]}',
    'aggregator': 'mean:weighting=uniform,zeroing=false',
    'client_learning_rate': 0.5,
    'client_batch_size': 8,
    'server_optimizer': 'sgd',
    'server_learning_rate': 1.0,
    'vocab_size': 10,
    'sequence_length': 6,
    'clients_per_round': 2,
    'total_rounds': 2,
    'rounds_per_eval': 1,
    'rounds_per_checkpoint': 1,
    'num_validation_examples': 10000,
    **changes,
  }
  return tiny.tiny_config(**values)


def _train_a_round(built):
  before, after, metrics = tiny.train_a_round(built)
  assert set(metrics) == {'loss', 'accuracy', 'macro_f1', 'num_examples'}
  return before, after


_BERTS = ['albert', 'bert', 'distilbert']
_PRIVATE = {
  'aggregator': 'gaussian',
  'participation': 'fixed_cycles',
  'clients_per_round': 1,
  'clip_norm': 0.5,
  'noise_multiplier': 0.5,
}


@pytest.mark.slow
@pytest.mark.parametrize(
  'name',
  [
    'distilbert',
    *(pytest.param(n, marks=pytest.mark.slow) for n in _BERTS[:2]),
  ],
)
def test_a_round_of_bert_models(data, name):
  pytest.importorskip('keras_nlp')
  _train_a_round(experiment.build(_config(data, name)))


@pytest.mark.parametrize(
  'name',
  [
    'transformer_classifier',
    *(pytest.param(n, marks=pytest.mark.slow) for n in _BERTS),
  ],
)
def test_a_private_round(data, name):
  if name in _BERTS:
    pytest.importorskip('keras_nlp')
  built = experiment.build(_config(data, name, **_PRIVATE))
  _train_a_round(built)
  summary = built.ledger.summary()
  assert summary['promised']['sensitivity'] == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['transformer_classifier', *_BERTS])
def test_a_round_on_tff_runtime_is_the_same(data, name):
  if name in _BERTS:
    pytest.importorskip('keras_nlp')
  ends = []
  for runtime in ('local', 'tff'):
    spec = f'{name}:{_TINY[name]},dropout=0.0'
    built = experiment.build(_config(data, name, model=spec, runtime=runtime))
    ends.append(_train_a_round(built)[1])
  for one, other in zip(*ends):
    np.testing.assert_allclose(one, other, atol=1e-5)


def _slow(**changes):
  return pytest.param(changes, marks=pytest.mark.slow, id=str(changes))


@pytest.mark.parametrize(
  'changes',
  [
    # Their models are imported graphs, which once lost gradients.
    _slow(algorithm='partial_training:fraction=0.5'),
    _slow(compression='upload=uniform:bits=8'),
    _slow(algorithm='fed_prox:proximal_strength=0.1'),
    _slow(algorithm='fed_sgd', aggregator='mean:weighting=tokens'),
    _slow(algorithm='mime_lite'),
    _slow(transform='freeze:variables=embedding'),
    _slow(transform='lora:rank=2'),
    _slow(precision='bfloat16'),
  ],
  ids=str,
)
def test_other_parts(data, changes):
  pytest.importorskip('keras_nlp')
  _train_a_round(experiment.build(_config(data, 'distilbert', **changes)))


@pytest.mark.slow
def test_equal_weights_by_hand(data):
  """The clients' models have equal weights, whatever their sizes."""
  settings = _config(data, client_epochs_per_round=2)
  built = experiment.build(settings)
  sizes = [built.task.train.num_examples(i) for i in range(2)]
  assert max(sizes) > 2 * min(sizes)
  before, after = _train_a_round(built)
  cohort = built.sample_cohort(1)
  model, variables = named_variables.build_named(
    lambda: experiment.build_model(settings, **built.task.model_arguments)
  )
  trained = []
  for position in range(2):
    for variable, value in zip(variables.values(), before):
      variable.assign(value)
    for ids, labels in cohort[position]:
      with tf.GradientTape() as tape:
        loss = built.task.loss(labels, model(ids, training=True))
      for variable, gradient in zip(
        variables.values(), tape.gradient(loss, list(variables.values()))
      ):
        variable.assign_sub(0.5 * tf.convert_to_tensor(gradient))
    trained.append([variable.numpy() for variable in variables.values()])
  for one, other, mean in zip(*trained, after):
    np.testing.assert_allclose(mean, (one + other) / 2, atol=2e-5)


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  summary = experiment.run(_config(data, total_rounds=6), str(root))
  return root / 'x', summary


def _rows(folder):
  with open(folder / 'metrics.csv', newline='') as file:
    return list(csv.DictReader(file))


def test_run_folder(run):
  folder, summary = run
  rows = _rows(folder)
  assert [row['round_num'] for row in rows] == [str(i) for i in range(7)]
  assert float(rows[-1]['eval/accuracy']) > 0.9
  assert all(row['eval/perplexity'] == '' for row in rows)
  assert rows[1]['train/macro_f1'] and rows[1]['train/num_examples'] == '96.0'
  best = max(rows, key=lambda row: float(row['eval/accuracy']))
  assert summary['best'] == {
    'accuracy': pytest.approx(float(best['eval/accuracy'])),
    'round_num': int(best['round_num']),
  }
  facts = json.loads((folder / 'task.json').read_text())
  assert facts['classes'] == ['cars', 'fruit']
  assert facts['reference_accuracy'] == {'majority': 0.5}


@pytest.mark.slow
def test_resume_is_exact(run, data, tmp_path):
  whole, _ = run
  experiment.run(_config(data, total_rounds=3), str(tmp_path))
  # As if it had been killed after three rounds.
  text = (tmp_path / 'x' / 'config.json').read_text()
  longer = text.replace('"total_rounds": 3', '"total_rounds": 6')
  (tmp_path / 'x' / 'config.json').write_text(longer)
  experiment.run(_config(data, total_rounds=6), str(tmp_path))
  columns = ('round_num', 'train/loss', 'eval/loss', 'eval/accuracy')
  one, other = (
    [[row[column] for column in columns] for row in _rows(folder)]
    for folder in (whole, tmp_path / 'x')
  )
  assert one == other


@pytest.mark.slow
def test_other_data_are_not_resumed(run, data, tmp_path):
  experiment.run(_config(data, total_rounds=1), str(tmp_path))
  facts = json.loads((tmp_path / 'x' / 'task.json').read_text())
  facts['classes'].append('plants')
  (tmp_path / 'x' / 'task.json').write_text(json.dumps(facts))
  with pytest.raises(config.ConfigError, match='it has 3 classes'):
    experiment.run(_config(data, total_rounds=1), str(tmp_path))


def test_predicted_classes(run):
  folder, _ = run
  trained = trained_model.load_model(str(folder))
  assert trained.classes == ('cars', 'fruit')
  for label, words in _WORDS.items():
    found = trained.class_probabilities(words)
    assert found[0][0] == label and found[0][1] > 0.6
    assert sum(p for _, p in found) == pytest.approx(1.0)


def test_starts_from_another_classifier(run, data):
  folder, _ = run
  built = experiment.build(_config(data, initial_model=str(folder)))
  state = built.process.initialize()
  metrics = built.evaluate(built.process.get_model_weights(state))
  assert metrics['accuracy'] > 0.9


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'model': 'cifg'},
      'which predicts the class of a text; choose one of',
    ),
    (
      {'task': 'synthetic'},
      'which predicts the next token; choose one of lstm',
    ),
    (
      {'model': 'bert', 'sequence_length': 200},
      '--sequence_length=200 is more than the 128 positions',
    ),
    ({'model': 'bert:hiden_dim=3'}, "did you mean 'hidden_dim'"),
  ],
)
def test_what_does_not_fit_is_refused_before_data(changes, message):
  with pytest.raises(config.ConfigError, match=message):
    experiment.check(_config('nowhere', **changes))


@pytest.mark.parametrize(
  ('model', 'message'),
  [
    ('bert:hidden_dim=9', r'hidden_dim \(9\) must be a multiple of num_heads'),
    ('bert:preset=bert_tiny', 'neither a file nor one of bert_tiny_en_uncased'),
    ('bert:preset=bert_tiny_en_uncased', 'own vocabulary of 30522 ids'),
    ('bert:dropout=1.0', 'dropout must be at least 0 and below 1'),
  ],
)
def test_bad_options_of_bert(model, message):
  pytest.importorskip('keras_nlp')
  settings = _config('nowhere', model=model)
  with pytest.raises(config.ConfigError, match=message):
    experiment.build_model(settings, 10, num_classes=2)


def test_weights_from_a_file(tmp_path):
  package = pytest.importorskip('keras_nlp')
  backbone = package.models.BertBackbone(10, 1, 2, 8, 8, max_sequence_length=6)
  backbone.save_weights(str(tmp_path / 'tiny.weights.h5'))
  sizes = 'num_layers=1,hidden_dim=8,intermediate_dim=8,max_length=6'
  spec = f'bert:{sizes},preset={tmp_path}/tiny.weights.h5'
  model = experiment.build_model(
    _config('nowhere', model=spec), 10, num_classes=2
  )
  loaded = next(v for v in model.weights if 'token_embedding' in v.name)
  np.testing.assert_array_equal(loaded, backbone.token_embedding.embeddings)
  # Of the frozen weights only the head is random.
  frozen = _config('nowhere', model=spec, transform='freeze:variables=kernel')
  task: Any = types.SimpleNamespace(
    model_arguments={'vocab_size': 10, 'num_classes': 2}
  )
  (notice,) = task_and_model.frozen_at_random(
    frozen,
    task,
    None,
    experiment.build_model(frozen, 10, num_classes=2),
  )
  assert 'random values: logits/kernel.' in notice
  with pytest.raises(
    config.ConfigError, match='no weights for a model of these sizes'
  ):
    experiment.build_model(_config('nowhere', model=spec), 11, num_classes=2)


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'keras_nlp', None)
  with pytest.raises(config.ConfigError, match=r"'si_federated\[nlp\]'"):
    experiment.build_model(_config('nowhere', model='bert'), 9, num_classes=2)


@pytest.mark.slow
def test_what_has_no_noise_is_named_for_classification(data, run):
  built = experiment.build(
    _config(data, aggregator='gaussian', clip_norm=1.0, noise_multiplier=1.0)
  )
  names = set(built.ledger.summary()['released_without_noise'])
  assert {'train/macro_f1', 'train/num_examples', 'train/loss'} <= names
  assert 'train/num_tokens' not in names
  # All that a run of this task writes about its training.
  filled = {name for row in _rows(run[0]) for name in row if row[name]}
  assert {name for name in filled if name.startswith('train/')} <= names
