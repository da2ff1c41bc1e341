"""Runs on characters and on pieces of words, from training to suggestions."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pytest

from si_federated import config, experiment
from si_federated.assembly import private_mechanism
from si_federated.inference import trained_model
from si_federated.tasks import load_vocabulary, subwords
from si_federated.tasks.subwords import SubwordVocabulary
from si_federated.tasks.vocabulary import CharacterVocabulary
from si_federated.training import run_folder
from tests import tiny

pytest.importorskip('sentencepiece')


def _config(**changes):
  return tiny.tiny_config(
    **{
      'vocabulary': 'sentencepiece:size=30',
      'vocab_size': 10_000,
      'sequence_length': 12,
      'total_rounds': 1,
      'num_validation_examples': 32,
      **changes,
    }
  )


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
  """A run of one round on pieces."""
  root = tmp_path_factory.mktemp('pieces')
  summary = experiment.run(_config(), str(root))
  return root / 'x', summary


@pytest.mark.slow
def test_speeches_train_a_round_and_suggest_characters(tmp_path):
  clients = [f'PLAY_ROLE_{i}' for i in range(8)]
  (tmp_path / 'speeches.jsonl').write_text(
    ''.join(
      json.dumps({'client_id': name, 'text': f'Ay, my lord.\nExit {i}.' * 5})
      + '\n'
      for i in range(2)
      for name in clients
    )
  )
  settings = tiny.config_from_flags(
    '--experiment_name=x',
    '--task=shakespeare',
    f'--data_dir={tmp_path}',
    '--model=cifg:units=8,embedding_size=4',
    '--clients_per_round=2',
    '--total_rounds=1',
  )
  experiment.run(settings, str(tmp_path))
  saved = json.loads((tmp_path / 'x' / 'config.json').read_text())
  assert saved['sequence_length'] == 80
  vocabulary = load_vocabulary(str(tmp_path / 'x'))
  assert isinstance(vocabulary, CharacterVocabulary)
  done = tiny.run_binary(
    'predict',
    f'--run={tmp_path / "x"}',
    '--text=Ay, my',
    '--top=30',
    '--continue_words=2',
  )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert lines[0] == 'Ay, my ...'
  suggested = {line.split('%')[1].strip() for line in lines if '%' in line}
  assert {'y', '\u2420', '\u240a', '(end of sentence)'} <= suggested
  assert sum(
    float(line.split('%')[0]) for line in lines if '%' in line
  ) == pytest.approx(100, abs=1.5)
  continued = '\n'.join(lines[len(suggested) + 1 :])
  assert continued.startswith('  Ay, my')


@pytest.mark.slow
def test_a_run_keeps_its_pieces(pieces):
  folder, summary = pieces
  assert summary['rounds'] == 1
  assert not (folder / 'vocabulary.txt').exists()
  trained = trained_model.load_model(str(folder))
  assert isinstance(trained.vocabulary, SubwordVocabulary)
  task = experiment.build_task(_config())
  assert trained.vocabulary == task.vocabulary
  facts = json.loads((folder / 'task.json').read_text())
  assert facts['num_words'] == len(task.vocabulary.words) <= 30
  assert facts['tokens_per_word'] > 1
  # The loaded model has the loss of the last evaluation.
  examples = task.validation.sample_examples(32, seed=0)
  loss = task.loss(examples[:, 1:], trained.model(examples[:, :-1]))
  assert float(loss) == pytest.approx(summary['final']['eval/loss'], rel=1e-4)


def test_other_pieces_do_not_resume(pieces, tmp_path):
  shutil.copytree(pieces[0], tmp_path / 'x')
  SubwordVocabulary.from_model(
    subwords.train_model([('w1', 2), ('w23', 3)], 9)
  ).save(str(tmp_path / 'x' / 'vocabulary.model'))
  with pytest.raises(config.ConfigError, match='vocabulary differs'):
    experiment.run(_config(), str(tmp_path))


@pytest.mark.parametrize(
  'vocabulary', ['words', 'sentencepiece', 'sentencepiece:size=20']
)
def test_another_vocabulary_does_not_resume(pieces, vocabulary):
  with pytest.raises(config.ConfigError, match='--vocabulary'):
    experiment.run(_config(vocabulary=vocabulary), str(pieces[0].parent))


def test_a_run_from_before_there_were_vocabularies(tmp_path):
  settings = _config(vocabulary='words')
  values = json.loads(settings.to_json())
  assert values.pop('vocabulary') == 'words'
  (tmp_path / 'config.json').write_text(json.dumps(values))
  (tmp_path / 'vocabulary.txt').write_text('a\nb\n')
  folder = run_folder.RunFolder(str(tmp_path))
  assert folder.open(settings)  # It can be resumed.
  folder.close()
  # All but the weights could be read.
  with pytest.raises(config.ConfigError, match='no checkpoint yet'):
    trained_model.load_model(str(tmp_path))


@pytest.mark.parametrize(
  ('vocabulary', 'words'),
  [
    ('sentencepieces', 'sentencepiece'),
    ('sentencepiece:siz=3', "'size'"),
    ('sentencepiece:size=0', 'size must be'),
    ('words:size=3', "no option 'size'"),
    ('sentencepiece:size=2', 'size=2 is too small'),
  ],
)
def test_a_wrong_vocabulary_is_reported_in_one_sentence(
  tmp_path, vocabulary, words
):
  with pytest.raises(config.ConfigError, match=words) as caught:
    experiment.run(_config(vocabulary=vocabulary), str(tmp_path))
  assert '--vocabulary=' in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('vocabulary', ['words', 'sentencepiece:size=30'])
def test_a_vocabulary_is_not_covered_by_the_guarantee(vocabulary):
  settings = _config(
    vocabulary=vocabulary,
    aggregator='gaussian',
    clip_norm=1.0,
    noise_multiplier=1.0,
  )
  ledger = private_mechanism.build_ledger(
    settings,
    private_mechanism.build_mechanism(settings),
    train_metrics=['loss'],
    num_clients=30,
  )
  (line,) = (
    line for line in ledger.summary()['not_covered'] if 'vocab' in line
  )
  assert f'--vocabulary={vocabulary}' in line
  assert 'without noise' in line


def _probability(trained, ids, word):
  """Multiplies out the definition, one token at a time."""
  vocabulary = trained.vocabulary
  never = [0, vocabulary.out_of_vocabulary, vocabulary.beginning]

  def after(tokens):
    batch = np.array([[vocabulary.beginning, *tokens]])
    logits = trained.model(batch)[0, -1].numpy().astype(np.float64)
    logits[never] = -np.inf
    return np.exp(logits) / np.exp(logits).sum()

  row = after(ids)
  result = row[word[0]] / row[vocabulary.begins_word].sum()
  if word == [vocabulary.end]:
    return result
  for i, token in enumerate(word[1:], start=1):
    result *= after([*ids, *word[:i]])[token]
  return result * after([*ids, *word])[vocabulary.begins_word].sum()


def test_suggestions_are_whole_words_with_their_probabilities(pieces):
  trained = trained_model.load_model(str(pieces[0]))
  vocabulary = trained.vocabulary
  # Larger weights make some words likely.
  for variable in trained.model.trainable_variables:
    variable.assign(variable * 4)
  ids = vocabulary.encode('w1 w2')
  found = trained.next_words(ids, top=6)
  assert len(found) == 6
  shares = [probability for _, probability in found]
  assert shares == sorted(shares, reverse=True)
  assert sum(shares) <= 1
  for word, probability in found:
    assert vocabulary.begins_word[word[0]]
    assert not vocabulary.begins_word[word[1:]].any()
    assert '\u2581' not in vocabulary.text_of(word)
    assert vocabulary.text_of(word)
    assert probability == pytest.approx(
      _probability(trained, ids, word), rel=1e-3
    )
  # No other word of one or two pieces is likelier than the least likely one.
  begins = np.flatnonzero(vocabulary.begins_word[: len(vocabulary.words) + 1])
  inside = np.flatnonzero(~vocabulary.begins_word)
  suggested = [word for word, _ in found]
  for start, more in itertools.product(begins[1:], [None, *inside]):
    word = [int(start)] if more is None else [int(start), int(more)]
    if vocabulary.text_of(word) and word not in suggested:
      assert _probability(trained, ids, word) <= shares[-1] * 1.001
