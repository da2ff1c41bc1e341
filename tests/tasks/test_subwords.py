"""Subword vocabularies: ids, text, training, and stores of pieces."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from si_federated.tasks import (
  TASKS,
  VOCABULARIES,
  ClientPopulation,
  Task,
  Vocabulary,
  subwords,
)
from si_federated.tasks.docstrings import open_corpus
from si_federated.tasks.subwords import SubwordVocabulary
from si_federated.tasks.task import task_from_store
from si_federated.tasks.token_arrays import UNLISTED, TokenArrays

pytest.importorskip('sentencepiece')

STEMS = ('return', 'function', 'array', 'number', 'string', 'value')
COUNTS = [
  (stem + ending, 50 - i)
  for i, stem in enumerate(STEMS)
  for ending in ('', 's', 'ed', 'ing', 'able')
] + [('.', 90), ('<URL>', 5), ("don't", 7)]
WORDS = tuple(word for word, _ in COUNTS)


@pytest.fixture(scope='module')
def vocabulary():
  return SubwordVocabulary.from_model(subwords.train_model(COUNTS, 40))


def test_ids_are_laid_out_as_those_of_words(vocabulary):
  v = len(vocabulary.words)
  assert 25 < v <= 40
  assert (vocabulary.padding, vocabulary.size) == (0, v + 4)
  assert (vocabulary.out_of_vocabulary, vocabulary.beginning) == (v + 1, v + 2)
  assert vocabulary.end == v + 3
  begins = vocabulary.begins_word
  assert begins.shape == (v + 4,)
  for i, piece in enumerate(vocabulary.words, start=1):
    assert begins[i] == (piece[0] == '\u2581')
  assert begins[[v + 1, v + 2, v + 3]].all()


@pytest.mark.parametrize(
  'text',
  [
    'returns functionable arrays .',
    'stringed valuing',
    "don't <URL>",
    'a n',
    '',
  ],
)
def test_text_comes_back(vocabulary, text):
  ids = vocabulary.encode(text)
  assert vocabulary.text_of(ids) == text
  assert all(1 <= i <= len(vocabulary.words) for i in ids)
  assert sum(vocabulary.begins_word[ids]) == len(text.split())
  assert ''.join(vocabulary.decode(ids)) == ''.join(
    '\u2581' + word for word in text.split()
  )


def test_text_is_split_as_the_data_are(vocabulary):
  assert vocabulary.encode('Returns. See http://x.org/a') == vocabulary.encode(
    'returns . see <URL>'
  )


def test_frequent_words_are_one_piece_and_web_addresses_too(vocabulary):
  assert vocabulary.decode(vocabulary.encode('return')) == ['\u2581return']
  assert vocabulary.decode(vocabulary.encode('<URL>')) == ['\u2581<URL>']


def test_a_word_with_a_character_without_piece_is_unknown_as_a_whole(
  vocabulary,
):
  known = vocabulary.encode('return')
  unknown = [vocabulary.out_of_vocabulary]
  assert vocabulary.encode('return zQzz# return') == (
    [*known, *unknown, *vocabulary.encode('#')][:2] + unknown + known
  )
  assert vocabulary.text_of(known + unknown + known) == 'return <UNK> return'
  specials = [vocabulary.beginning, *known, vocabulary.end]
  assert vocabulary.text_of(specials) == '<BOS> return <EOS>'


def test_training_is_deterministic_and_minds_the_counts():
  model = subwords.train_model(COUNTS, 40)
  assert subwords.train_model(iter(COUNTS), 40) == model
  turned = [(word, 96 - count) for word, count in COUNTS]
  assert subwords.train_model(turned, 40) != model
  ignored = [*COUNTS, ('a b', 9), ('\t', 9), ('zzz', 0), ('', 9)]
  assert subwords.train_model(ignored, 40) == model


def test_size_counts_the_pieces():
  letters = 'abcdefghijklmnopqrstuvwxyz'
  generator = np.random.default_rng(0)
  counts = [
    (''.join(generator.choice(list(letters), 6)), 1 + i % 7)
    for i in range(3000)
  ]
  model = subwords.train_model(counts, 300)
  assert len(SubwordVocabulary.from_model(model).words) == 300
  # 26 letters and the mark of a word's beginning.
  with pytest.raises(ValueError, match='=26 is too small.* need 27 pieces'):
    subwords.train_model(counts, 26)
  assert subwords.train_model(counts, 27)
  with pytest.raises(ValueError, match='no words'):
    subwords.train_model([('a b', 3)], 9)


def test_more_pieces_than_the_words_give_are_warned_of(caplog):
  model = subwords.train_model([('hello', 3), ('world', 5), ('held', 2)], 4096)
  found = len(SubwordVocabulary.from_model(model).words)
  assert found < 20
  assert caplog.messages == [
    f'4096 pieces were requested; these 3 words give {found}.'
  ]


def test_save_and_load(tmp_path, vocabulary):
  path = tmp_path / 'vocabulary.model'
  vocabulary.save(str(path))
  loaded = SubwordVocabulary.load(str(path))
  assert loaded == vocabulary
  assert loaded.encode('returns') == vocabulary.encode('returns')
  assert os.listdir(tmp_path) == ['vocabulary.model']


def test_load_refuses_other_files_than_models(tmp_path, vocabulary):
  path = tmp_path / 'vocabulary.model'
  for content in (b'', b'words\n', vocabulary.model[:100]):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'vocabulary\.model') as caught:
      SubwordVocabulary.load(str(path))
    assert '\n' not in str(caught.value)
  with pytest.raises(ValueError, match=r'none\.model'):
    SubwordVocabulary.load(str(tmp_path / 'none.model'))


def test_a_model_of_another_layout_is_refused(tmp_path):
  import io

  import sentencepiece

  target = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(WORDS),
    model_writer=target,
    vocab_size=40,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  (tmp_path / 'x.model').write_bytes(target.getvalue())
  with pytest.raises(ValueError, match='special pieces'):
    SubwordVocabulary.load(str(tmp_path / 'x.model'))


# Ranks of `WORDS`; 90 and `UNLISTED` are words beyond the list.
CLIENTS = {
  'one': [[0, 1, 30], [3], [], [32, UNLISTED, 8]],
  'two': [[i % 33, (7 * i) % 33] for i in range(40)],
  'three': [[31, 31]],
}


def make_task(clients=CLIENTS, length=6):
  population = ClientPopulation(
    TokenArrays.from_clients(clients), len(WORDS), length
  )
  return Task(
    'tiny', Vocabulary(WORDS), length, population, population, population
  )


def expected_examples(vocabulary, sentences, length):
  """Cuts every sentence separately."""
  rows = []
  for sentence in sentences:
    ids = []
    for rank in sentence:
      if rank == UNLISTED:
        ids.append(vocabulary.out_of_vocabulary)
      else:
        ids += vocabulary.encode(WORDS[rank])
    ids = ([vocabulary.beginning, *ids, vocabulary.end])[: length + 1]
    rows.append(ids + [0] * (length + 1 - len(ids)))
  return rows


@pytest.mark.parametrize('length', [1, 3, 6, 40])
def test_sentences_become_pieces(length):
  task = VOCABULARIES['sentencepiece'](size=45)(make_task(length=length))
  assert isinstance(task.vocabulary, SubwordVocabulary)
  for population in (task.train, task.validation, task.test):
    for i, sentences in enumerate(CLIENTS.values()):
      np.testing.assert_array_equal(
        population.examples(i),
        expected_examples(task.vocabulary, sentences, length),
      )
  assert [task.train.client_id(i) for i in range(3)] == list(CLIENTS)


def test_tokens_per_word():
  task = make_task(length=40)
  examples = task.train.sample_examples(10**6, seed=0)
  assert task.tokens_per_word(examples) == 1.0
  pieces = VOCABULARIES['sentencepiece'](size=30)(task)
  cut = pieces.train.sample_examples(10**6, seed=0)
  # Ends and words are equally many, so nothing was cut off.
  words = np.count_nonzero(examples[:, 1:])
  assert pieces.tokens_per_word(cut) == np.count_nonzero(cut[:, 1:]) / words
  assert pieces.tokens_per_word(cut) > 1.2


def test_words_leave_a_task_as_it_is():
  task = make_task()
  assert VOCABULARIES['words']()(task) is task


def test_accuracies_leave_out_the_unknown_and_the_end():
  task = VOCABULARIES['sentencepiece'](size=45)(make_task())
  v = len(task.vocabulary.words)
  assert task.ignored_labels == {
    'accuracy': (0,),
    'accuracy_no_oov': (0, v + 1),
    'accuracy_no_oov_no_eos': (0, v + 1, v + 3),
  }


def test_synthetic():
  task = TASKS['synthetic'](vocab_size=50, sequence_length=12)
  pieces = VOCABULARIES['sentencepiece'](size=30)(task)
  row, other = task.train.examples(0)[0], pieces.train.examples(0)[0]
  text = task.vocabulary.text_of(row[row != 0])
  assert text.startswith(pieces.vocabulary.text_of(other[other != 0])[:12])
  # The floor is for words.
  assert set(
    pieces.reference_perplexities(pieces.test.sample_examples(50, seed=0))
  ) == {'unigram'}


def stored_task(folder, *, vocab_size=10_000):
  root = folder / 'site-packages'
  if not root.exists():
    (root / 'pack').mkdir(parents=True)
    for i in range(60):
      lines = '\n\n'.join(
        f'It returns the {STEMS[(i + j) % 6]}s of thing t{i} as number {j}.'
        for j in range(5)
      )
      (root / 'pack' / f'mod{i}.py').write_text(f'"""{lines}"""\n')
  store = open_corpus(str(folder / 'cache'), [str(root)], min_sentences=1)
  return task_from_store(
    'docstrings', store, vocab_size=vocab_size, sequence_length=99
  )


def test_pieces_are_stored_with_the_words_once(tmp_path, monkeypatch):
  make = VOCABULARIES['sentencepiece'](size=50)
  words = stored_task(tmp_path)
  first = make(words)
  (name,) = [n for n in os.listdir(tmp_path / 'cache') if 'sentence' in n]
  assert name.endswith('.sentencepiece-50')
  assert (tmp_path / 'cache' / name / 'vocabulary.model').exists()
  for split in ('train', 'validation', 'test'):
    ours, theirs = getattr(first, split), getattr(words, split)
    assert len(ours) == len(theirs)
    for i in range(len(ours)):
      assert ours.client_id(i) == theirs.client_id(i)
      for row, other in zip(ours.examples(i), theirs.examples(i)):
        text = words.vocabulary.text_of(other[other != 0])
        if '<UNK>' not in text:
          assert first.vocabulary.text_of(row[row != 0]) == text

  def refuse(*_):
    raise AssertionError('trained again')

  with monkeypatch.context() as patched:
    patched.setattr(subwords, 'train_model', refuse)
    again = make(stored_task(tmp_path))
    assert again.vocabulary == first.vocabulary
    # The source is all words that the store lists.
    assert make(stored_task(tmp_path, vocab_size=3)).vocabulary == (
      first.vocabulary
    )
    # A damaged store does not count.
    os.truncate(tmp_path / 'cache' / name / 'vocabulary.model', 10)
    with pytest.raises(AssertionError, match='trained again'):
      make(stored_task(tmp_path))
  assert make(stored_task(tmp_path)).vocabulary == first.vocabulary


def test_held_out_words_are_not_learned_from(tmp_path, monkeypatch):
  task = stored_task(tmp_path)
  seen: dict[str, int] = {}
  train = subwords.train_model

  def record(counts, size):
    seen.update(counts := list(counts))
    return train(counts, size)

  monkeypatch.setattr(subwords, 'train_model', record)
  VOCABULARIES['sentencepiece'](size=60)(task)
  ids, counts = np.unique(
    task.train.sample_examples(10**6, seed=0)[:, 1:], return_counts=True
  )
  expected = {
    task.vocabulary.words[i - 1]: n
    for i, n in zip(ids, counts)
    if 1 <= i <= len(task.vocabulary.words)
  }
  assert {word: n for word, n in seen.items() if n} == expected


def test_characters_have_no_subwords(tmp_path):
  lines = [f'{{"client_id": "c{i}", "text": "Ay!"}}\n' for i in range(5)]
  (tmp_path / 'speeches.jsonl').write_text(''.join(lines))
  task = TASKS['shakespeare'](data_dir=str(tmp_path))
  with pytest.raises(ValueError, match='shakespeare predicts characters'):
    VOCABULARIES['sentencepiece']()(task)


def test_without_the_package_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sentencepiece', None)
  with pytest.raises(ValueError, match=r'pip install.*subword'):
    VOCABULARIES['sentencepiece'](size=10)


@pytest.mark.parametrize('size', [0, 65_535])
def test_sizes_out_of_range(size):
  with pytest.raises(ValueError, match='size must be'):
    VOCABULARIES['sentencepiece'](size=size)
