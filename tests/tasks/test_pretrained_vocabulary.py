"""Tests of the vocabularies of pretrained models."""

from __future__ import annotations

import io
import pathlib

import numpy as np
import pytest

from si_federated import config, experiment, flags, tasks
from si_federated.tasks import vocabulary_files

package = pytest.importorskip('keras_nlp')

_TOKENS = (
  *('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'),
  *('the', 'apple', 'bus', 'un', '##eat', '##en', '.'),
)


@pytest.fixture(name='list_file')
def _list_file(tmp_path):
  path = tmp_path / 'vocab.txt'
  path.write_text('\n'.join(_TOKENS) + '\n')
  return str(path)


@pytest.fixture(name='model_file', scope='module')
def _model_file(tmp_path_factory):
  sentencepiece = pytest.importorskip('sentencepiece')
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(['the apple', 'the bus', 'a bus . an apple'] * 3),
    model_writer=model,
    vocab_size=24,
    hard_vocab_limit=False,
    pad_id=0,
    unk_id=1,
    bos_id=2,
    eos_id=3,
    pad_piece='<pad>',
    unk_piece='<unk>',
    bos_piece='[CLS]',
    eos_piece='[SEP]',
    user_defined_symbols='[MASK]',
    minloglevel=2,
  )
  path = tmp_path_factory.mktemp('model') / 'spiece.model'
  path.write_bytes(model.getvalue())
  return str(path)


def _vocabulary(data, **options):
  recoded = tasks.VOCABULARIES['pretrained'](**options)(_task(data))
  return recoded.vocabulary


def _task(folder):
  path = pathlib.Path(folder) / 'things.csv'
  path.write_text(
    'text,label\n' + 'The apple,fruit\nThe uneaten bus.,car\n' * 12
  )
  return tasks.TASKS['text_classification'](
    data_dir=str(folder),
    path='things.csv',
    num_clients=2,
    vocab_size=10,
    sequence_length=8,
  )


def test_word_pieces_have_the_ids_of_the_list(list_file, tmp_path):
  vocabulary = _vocabulary(tmp_path, file=list_file)
  assert vocabulary.size == len(_TOKENS)
  assert vocabulary.padding == 0
  assert (vocabulary.beginning, vocabulary.end) == (2, 3)
  # Lower case; the longest piece first; one unknown for a whole word.
  assert vocabulary.encode('The UNEATEN bus. Unbus') == [5, 8, 9, 10, 7, 11, 1]
  assert vocabulary.text_of([5, 8, 9, 10, 7]) == 'the uneaten bus'
  assert vocabulary.begins_word.tolist() == [True] * 9 + [False] * 2 + [True]
  assert vocabulary.encode('') == []


def test_case_can_be_kept(list_file, tmp_path):
  vocabulary = _vocabulary(tmp_path, file=list_file, lowercase=False)
  assert vocabulary.encode('The the') == [1, 5]


def test_texts_are_encoded_as_the_model_expects(list_file, tmp_path):
  task = tasks.VOCABULARIES['pretrained'](file=list_file)(_task(tmp_path))
  ids, labels = task.inputs_and_labels(
    task.validation.sample_examples(9, seed=0)
  )
  rows = {tuple(row) for row in ids.tolist()}
  assert rows == {
    (2, 5, 6, 3, 0, 0, 0, 0),
    (2, 5, 8, 9, 10, 7, 11, 3),
  }
  assert len(labels) == len(ids)
  assert task.model_arguments['vocab_size'] == len(_TOKENS)


def test_pieces_of_a_sentencepiece_model(model_file, tmp_path):
  vocabulary = _vocabulary(tmp_path, file=model_file)
  assert (vocabulary.padding, vocabulary.out_of_vocabulary) == (0, 1)
  assert (vocabulary.beginning, vocabulary.end) == (2, 3)
  ids = vocabulary.encode('the apple')
  assert all(4 < i < vocabulary.size for i in ids)
  assert vocabulary.text_of(ids) == 'the apple'
  assert vocabulary.begins_word[ids[0]]


@pytest.mark.parametrize('kind', ['list_file', 'model_file'])
def test_a_run_keeps_it(kind, tmp_path, request):
  vocabulary = _vocabulary(tmp_path, file=request.getfixturevalue(kind))
  vocabulary_files.save_vocabulary(vocabulary, str(tmp_path))
  again = vocabulary_files.load_vocabulary(str(tmp_path))
  assert again == vocabulary
  assert again.encode('the apple .') == vocabulary.encode('the apple .')


@pytest.mark.parametrize('content', ['', '{}', '{"kind": "wordpiece"}', '[1]'])
def test_a_damaged_file_is_named(content, tmp_path):
  path = tmp_path / 'pretrained_vocabulary.json'
  path.write_text(content)
  with pytest.raises(ValueError, match='is not a vocabulary of a pretrained'):
    vocabulary_files.load_vocabulary(str(tmp_path))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({}, 'either a preset or a file'),
    ({'preset': 'x', 'file': 'y'}, 'either a preset or a file'),
    (
      {'preset': 'bert_tiny'},
      'does not exist; known are bert_tiny_en_uncased, ',
    ),
    ({'preset': 'x', 'lowercase': True}, 'lowercase only applies to a file'),
    ({'file': 'nowhere.txt'}, 'there is no file nowhere.txt'),
  ],
)
def test_wrong_options(options, message):
  with pytest.raises(ValueError, match=message):
    tasks.VOCABULARIES['pretrained'](**options)


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('a.txt', 'the\napple\n', 'not a vocabulary of a pretrained model'),
    ('a.txt', '[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\n', 'padding token has id 3'),
    ('a.model', 'nonsense', 'not a vocabulary of a pretrained model'),
  ],
)
def test_other_files_are_refused(name, content, message, tmp_path):
  path = tmp_path / name
  path.write_text(content)
  with pytest.raises(ValueError, match=message):
    tasks.VOCABULARIES['pretrained'](file=str(path))


def test_tasks_of_tokens_are_refused(list_file):
  settings = flags.experiment_from_arguments(
    [
      *('--experiment_name=x', '--task=synthetic', '--model=cifg:units=4'),
      f'--vocabulary=pretrained:file={list_file}',
    ]
  )
  with pytest.raises(config.ConfigError, match='predicts tokens'):
    experiment.build(settings)


@pytest.mark.slow
def test_a_preset_by_name(list_file, tmp_path, monkeypatch):
  """Files stand in for KerasNLP's downloads; the rest is real."""
  sizes = {
    'vocabulary_size': len(_TOKENS),
    'num_layers': 1,
    'num_heads': 2,
    'hidden_dim': 8,
    'intermediate_dim': 8,
    'max_sequence_length': 16,
  }
  backbone = package.models.BertBackbone(**sizes)
  backbone.save_weights(str(tmp_path / 'model.weights.h5'))
  preset = {
    'config': sizes,
    'preprocessor_config': {'lowercase': True},
    'vocabulary_url': 'unreachable',
    'vocabulary_hash': None,
    'weights_url': 'unreachable',
    'weights_hash': None,
  }
  for kind in (package.models.BertBackbone, package.models.BertTokenizer):
    monkeypatch.setattr(kind, 'presets', {'bert_tiny_en_uncased': preset})
  files = {
    'vocab.txt': list_file,
    'model.h5': str(tmp_path / 'model.weights.h5'),
  }
  monkeypatch.setattr(
    package.src.backend.keras.utils,
    'get_file',
    lambda name, *_, **__: files[name],
  )
  _task(tmp_path)
  settings = flags.experiment_from_arguments(
    [
      '--experiment_name=x',
      '--task=text_classification:path=things.csv,num_clients=2',
      f'--data_dir={tmp_path}',
      '--vocabulary=pretrained:preset=bert_tiny_en_uncased',
      '--model=bert:preset=bert_tiny_en_uncased',
      '--sequence_length=8',
      '--clients_per_round=2',
    ]
  )
  built = experiment.build(settings)
  weights = dict(
    zip(built.model.variable_names, built.model.initial_weights[0])
  )
  (name,) = [n for n in weights if 'token_embedding' in n]
  np.testing.assert_array_equal(
    weights[name], backbone.token_embedding.embeddings
  )
  output = built.process.next(
    built.process.initialize(), built.sample_cohort(1)
  )
  assert np.isfinite(output.metrics['client_work']['train']['loss'])
