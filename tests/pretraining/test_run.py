"""Tests of central training: its data, its resuming, its folder."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from si_federated import config, experiment
from si_federated.algorithms import packed_tokens
from si_federated.assembly import task_and_model
from si_federated.inference import trained_model
from si_federated.pretraining import steps as pretraining_steps
from si_federated.pretraining.run import pretrain
from si_federated.pretraining.settings import Settings
from si_federated.tasks import Vocabulary
from si_federated.training import checkpoints
from si_federated.weights import named_variables
from tests import tiny


def _config(name='x', **changes):
  task = 'synthetic:num_clients=30,num_words=16'
  return tiny.tiny_config(name, **{'task': task, **changes})


def _settings(**changes):
  return Settings(
    **{
      'num_steps': 6,
      'batch_size': 8,
      'steps_per_eval': 4,
      'steps_per_checkpoint': 3,
      'learning_rate': 0.01,
      **changes,
    }
  )


def _prepare(**changes):
  """Reads the initial model of a federated run."""
  settings = _config(**changes)
  task = experiment.build_task(settings)
  start, _ = task_and_model.prepare_model(settings, task, resumed=False)
  assert start is not None and start.weights


@pytest.fixture(name='whole', scope='module')
def _whole(tmp_path_factory):
  """The folder of an uninterrupted run, and its summary."""
  root = tmp_path_factory.mktemp('whole')
  summary = pretrain(_config(), _settings(), str(root))
  return root / 'x', summary


def test_writes_a_run_folder(whole):
  folder, summary = whole
  rows = tiny.read_rows(folder)
  assert [row['round_num'] for row in rows] == ['0', '4', '6']
  assert rows[0]['train/loss'] == ''
  losses = [float(row['eval/loss']) for row in rows]
  assert losses == sorted(losses, reverse=True)
  for row, loss in zip(rows, losses):
    assert float(row['eval/perplexity']) == pytest.approx(np.exp(loss))
  assert json.loads((folder / 'summary.json').read_text()) == summary
  assert summary['rounds'] == 6
  assert summary['final']['eval/loss'] == losses[-1]
  task = json.loads((folder / 'task.json').read_text())
  assert task['name'] == 'synthetic'
  assert task['reference_perplexity']['unigram'] > 1
  held = json.loads((folder / 'config.json').read_text())
  assert held['algorithm'] == 'pretrain'
  assert held['client_learning_rate'] == 0.01


def test_its_steps_are_those_of_adam_on_the_tasks_loss(whole):
  """A separate loop over the batches gives the same weights."""
  settings = _config()
  task: Any = experiment.build_task(settings)
  model, variables = named_variables.build_named(
    lambda: experiment.build_model(settings, task.vocabulary.size)
  )
  optimizer = tf.keras.optimizers.Adam(0.01)
  total = count = 0
  batches = pretraining_steps.Batches(task.train, batch_size=8, seed=0)
  for ids, labels in map(batches, range(1, 7)):
    with tf.GradientTape() as tape:
      loss = task.loss(labels, model(ids))
    optimizer.minimize(loss, model.trainable_variables, tape=tape)
    step = int(optimizer.iterations)
    if step > 4:
      count += np.sum(labels != 0)
      total += float(loss) * np.sum(labels != 0)
  arrays = tiny.read_newest_checkpoint(whole[0])
  for index, (name, variable) in enumerate(variables.items()):
    np.testing.assert_allclose(
      arrays[f'state/global_model_weights/trainable/{index}'],
      variable,
      rtol=1e-3,
      atol=1e-5,
      err_msg=name,
    )
  last = tiny.read_rows(whole[0])[-1]
  assert int(last['train/num_tokens']) == count
  assert float(last['train/loss']) == pytest.approx(total / count, rel=1e-4)


def test_more_steps_continue_a_run(tmp_path):
  pretrain(_config(), _settings(num_steps=8), str(tmp_path / 'whole'))
  pretrain(_config(), _settings(num_steps=4), str(tmp_path / 'parts'))
  pretrain(_config(), _settings(num_steps=8), str(tmp_path / 'parts'))
  tiny.assert_same_run(tmp_path / 'parts' / 'x', tmp_path / 'whole' / 'x')
  with pytest.raises(config.ConfigError, match='--num_steps: 6 here, 8 there'):
    pretrain(_config(), _settings(), str(tmp_path / 'parts'))


def test_weights_frozen_at_random_are_named(tmp_path, capsys):
  frozen = _config(transform='freeze:variables=embedding')
  pretrain(frozen, _settings(num_steps=0), str(tmp_path))
  assert 'random values: embedding/embeddings.' in capsys.readouterr().err


class _Killed(BaseException):
  """Unlike an error, leaves no time to save."""


@pytest.mark.parametrize('stop', [2, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_uninterrupted(
  whole, tmp_path, monkeypatch, stop
):
  batch = pretraining_steps.Batches.__call__

  def killed(self, step):
    if step > stop:
      raise _Killed
    return batch(self, step)

  with monkeypatch.context() as patch:
    patch.setattr(pretraining_steps.Batches, '__call__', killed)
    with pytest.raises(_Killed):
      pretrain(_config(), _settings(), str(tmp_path))
  assert not (tmp_path / 'x' / 'summary.json').exists()
  pretrain(_config(), _settings(), str(tmp_path))
  tiny.assert_same_run(tmp_path / 'x', whole[0])


def test_interrupted_it_ends_the_step_and_resumes(
  whole, tmp_path, monkeypatch, capsys
):
  batch = pretraining_steps.Batches.__call__

  def interrupted(self, step):
    if step == 4:
      os.kill(os.getpid(), signal.SIGTERM)
    return batch(self, step)

  with monkeypatch.context() as patch:
    patch.setattr(pretraining_steps.Batches, '__call__', interrupted)
    with pytest.raises(KeyboardInterrupt):
      pretrain(_config(), _settings(), str(tmp_path))
  assert 'Interrupted; step 4 is saved.' in capsys.readouterr().err
  pretrain(_config(), _settings(), str(tmp_path))
  output = capsys.readouterr().err
  assert 'Resuming from step 4.' in output and 'step 6/6' in output
  tiny.assert_same_run(tmp_path / 'x', whole[0])


def test_other_flags_are_refused_by_the_names_of_pretrain(whole):
  folder, _ = whole
  root = str(folder.parent)
  before = tiny.read_newest_checkpoint(folder)
  for change, message in (
    (_settings(learning_rate=0.1), '--learning_rate: 0.1 here, 0.01 there'),
    (_settings(num_steps=5), '--num_steps: 5 here, 6 there'),
    (_settings(text_files=__file__), f'--text_files: {__file__} here, None'),
  ):
    with pytest.raises(config.ConfigError) as caught:
      pretrain(_config(), change, root)
    assert message in str(caught.value)
  with pytest.raises(config.ConfigError, match='--model: lstm here'):
    pretrain(_config(model='lstm'), _settings(), root)
  with pytest.raises(config.ConfigError, match='--algorithm: fed_avg here'):
    experiment.run(_config(), root)
  assert list(tiny.read_newest_checkpoint(folder)) == list(before)


def test_a_federated_run_starts_where_it_ended(whole, tmp_path):
  folder, summary = whole
  begun = experiment.run(
    _config(initial_model=str(folder), total_rounds=0), str(tmp_path)
  )
  assert begun['final'] == summary['final']


def test_predicts(whole):
  folder, summary = whole
  trained = trained_model.load_model(str(folder))
  assert len(trained.next_words([1, 2], top=3)) == 3
  task: Any = experiment.build_task(_config())
  examples = task.validation.sample_examples(16, seed=0)
  loss = float(task.loss(examples[:, 1:], trained.model(examples[:, :-1])))
  assert loss == pytest.approx(summary['final']['eval/loss'], rel=1e-5)


def test_batches_are_pure_in_seed_and_step_and_go_through_all_sentences():
  task: Any = experiment.build_task(_config())
  size = task.train.num_sentences
  steps = -(-2 * size // 7)
  whole, later = (
    [
      pretraining_steps.Batches(task.train, batch_size=7, seed=3)(step)
      for step in range(first, last + 1)
    ]
    for first, last in ((1, steps), (6, 8))
  )
  for one, other in zip(later, whole[5:8]):
    np.testing.assert_array_equal(one, other)
  rows = np.concatenate([np.c_[ids, labels[:, -1:]] for ids, labels in whole])
  everything = task.train.sample_examples(size, seed=0)
  for epoch in (rows[:size], rows[size : 2 * size]):
    assert sorted(map(tuple, epoch)) == sorted(map(tuple, everything))
  assert not np.array_equal(rows[:size], rows[size : 2 * size])
  # A batch may be larger than the data.
  large = pretraining_steps.Batches(task.train, batch_size=2 * size + 1, seed=0)
  ids, _ = large(1)
  assert len(ids) == 2 * size + 1


def test_starts_from_a_model_and_trains_a_part_of_it(whole, tmp_path):
  folder, summary = whole
  settings = _config(
    initial_model=str(folder),
    transform='freeze:variables=embedding/',
  )
  again = pretrain(settings, _settings(), str(tmp_path))
  first = tiny.read_rows(tmp_path / 'x')[0]
  assert float(first['eval/loss']) == summary['final']['eval/loss']
  assert again['num_parameters'] == summary['num_parameters'] - 20 * 4
  arrays, before = (
    tiny.read_newest_checkpoint(tmp_path / 'x'),
    tiny.read_newest_checkpoint(folder),
  )
  name = 'state/global_model_weights/{}/0'
  np.testing.assert_array_equal(
    arrays[name.format('non_trainable')], before[name.format('trainable')]
  )
  task = json.loads((tmp_path / 'x' / 'task.json').read_text())
  assert task['initial_model']['path'] == str(folder)


@pytest.fixture(name='text')
def _text(tmp_path, monkeypatch):
  """Returns a pattern of text files in the words of the synthetic task."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  (tmp_path / 'text').mkdir()
  for index in range(30):
    (tmp_path / 'text' / f'{index}.txt').write_text(
      f'w1 w2 w3 new. W4 w{index % 9}?\n'
    )
  return str(tmp_path / 'text' / '*.txt')


def test_text_in_the_vocabulary_of_a_task(text, whole, tmp_path):
  pretrain(_config(), _settings(text_files=text), str(tmp_path))
  words = (tmp_path / 'x' / 'vocabulary.txt').read_text()
  assert words == (whole[0] / 'vocabulary.txt').read_text()
  # Evaluated on the task, so that a federated run can continue from it.
  first, of_task = (
    tiny.read_rows(folder)[0] for folder in (tmp_path / 'x', whole[0])
  )
  assert first['eval/loss'] == of_task['eval/loss']
  _prepare(initial_model=str(tmp_path / 'x'))
  with pytest.raises(config.ConfigError, match='other flags'):
    pretrain(
      _config(), _settings(text_files=text, text_by_line=True), str(tmp_path)
    )
  with pytest.raises(config.ConfigError, match='text_encoding: cp1252 here'):
    pretrain(
      _config(),
      _settings(text_files=text, text_encoding='cp1252'),
      str(tmp_path),
    )
  with open(text.replace('*', '0'), 'a') as file:
    file.write('w5\n')
  with pytest.raises(config.ConfigError, match='other files'):
    pretrain(_config(), _settings(text_files=text), str(tmp_path))


def test_text_in_its_own_words_or_those_of_a_run(text, whole, tmp_path):
  alone = _settings(text_files=text, has_task=False)
  pretrain(_config('own', vocab_size=5), alone, str(tmp_path))
  words = (tmp_path / 'own' / 'vocabulary.txt').read_text().split()
  assert len(words) == 5
  # Words of every document.
  assert set(words) < {'w1', 'w2', 'w3', 'w4', 'new', '.', '?'}
  held = json.loads((tmp_path / 'own' / 'config.json').read_text())
  assert held['task'] == 'text'
  trained = trained_model.load_model(str(tmp_path / 'own'))
  assert trained.vocabulary == Vocabulary(tuple(words))

  other = dataclasses.replace(alone, vocabulary_from=str(whole[0]))
  pretrain(_config('other'), other, str(tmp_path))
  words = (tmp_path / 'other' / 'vocabulary.txt').read_text()
  assert words == (whole[0] / 'vocabulary.txt').read_text()
  _prepare(initial_model=str(tmp_path / 'other'))
  with pytest.raises(config.ConfigError, match='words differ'):
    _prepare(initial_model=str(tmp_path / 'own'))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'batch_size': 0}, '--batch_size'),
    ({'num_steps': -1}, '--num_steps'),
    ({'learning_rate': 0.0}, '--learning_rate'),
    ({'text_encoding': 'latin-1'}, '--text_encoding is for --text_files'),
    ({'learning_rate': float('nan')}, '--learning_rate'),
    ({'has_task': False}, '--text_files'),
    ({'vocabulary_from': 'runs/x'}, '--vocabulary_from'),
  ],
)
def test_wrong_settings_are_refused(changes, message):
  with pytest.raises(config.ConfigError, match=message):
    _settings(**changes)


def test_missing_text_is_refused(tmp_path):
  for text, name in (('nothing', None), (__file__, str(tmp_path))):
    settings = _settings(
      text_files=text, has_task=name is None, vocabulary_from=name
    )
    with pytest.raises(config.ConfigError) as caught:
      pretrain(_config(), settings, str(tmp_path / 'runs'))
    assert (name or text) in str(caught.value)


@pytest.mark.slow
def test_no_steps_only_evaluate(tmp_path):
  summary = pretrain(_config(), _settings(num_steps=0), str(tmp_path))
  assert summary['rounds'] == 0
  assert len(tiny.read_rows(tmp_path / 'x')) == 1
  weights = checkpoints.read_weights(
    str(tmp_path / 'x' / 'checkpoints' / 'round_000000.npz')
  )
  assert sum(w.size for w in weights) == summary['num_parameters']


def test_no_work_is_spent_on_padding(whole):
  """The packed model computes logits only for labelled tokens."""
  del whole
  settings = _config()
  task: Any = experiment.build_task(settings)
  model = packed_tokens.pack_tokens(
    experiment.build_model(settings, task.vocabulary.size),
    end_of_sentence=task.vocabulary.end,
  )
  ids, labels = pretraining_steps.Batches(task.train, batch_size=8, seed=0)(1)
  positions, logits = model(ids)
  assert len(logits) == np.sum(labels != 0) == len(positions)
