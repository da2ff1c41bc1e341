"""Tests of plain text as training data."""

from __future__ import annotations

import gzip
import lzma
from typing import Any

import pytest

from si_federated.tasks import TASKS
from si_federated.tasks.plain_text import find_text, text_task, train_on_text
from si_federated.tasks.vocabulary import CharacterVocabulary, Vocabulary

WORDS = Vocabulary(('the', 'cat', 'sat', '.', 'dog'))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def _write(folder, *texts):
  folder.mkdir(exist_ok=True)
  for index, text in enumerate(texts):
    (folder / f'{index:02d}.txt').write_text(text)
  return str(folder / '*.txt')


def _texts(population, vocabulary):
  return {
    population.client_id(index).rpartition('/')[2]: [
      vocabulary.text_of([i for i in row if i])
      for row in population.examples(index).tolist()
    ]
    for index in range(len(population))
  }


def _task(vocabulary, length=6):
  base = TASKS['synthetic'](num_clients=10, sequence_length=length)
  # A task with these words; only its validation and test data are used.
  populations: dict[str, Any] = {
    split: type(base.train)(
      getattr(base, split).arrays, len(vocabulary.words), length
    )
    for split in ('train', 'validation', 'test')
  }
  return type(base)('some', vocabulary, length, **populations)


def test_text_in_the_words_of_a_task(tmp_path):
  pattern = _write(
    tmp_path / 'text',
    'The cat sat. The\ndog sat.\n\nA cat\n',
    'the cat sat the cat sat the cat',
  )
  task = _task(WORDS)
  trained = train_on_text(task, pattern)
  assert trained.vocabulary == WORDS
  assert trained.validation == task.validation
  assert _texts(trained.train, WORDS) == {
    '00.txt:1': [
      '<BOS> the cat sat . <EOS>',
      '<BOS> the dog sat . <EOS>',
      '<BOS> <UNK> cat <EOS>',
    ],
    '01.txt:1': ['<BOS> the cat sat the cat sat'],
  }


def test_lines_are_wrapped_unless_said_otherwise(tmp_path):
  pattern = _write(tmp_path / 'text', 'the cat\nsat\n')
  task = _task(WORDS)
  for by_line, expected in (
    (False, ['<BOS> the cat sat <EOS>']),
    (True, ['<BOS> the cat <EOS>', '<BOS> sat <EOS>']),
  ):
    trained = train_on_text(task, pattern, by_line=by_line)
    assert _texts(trained.train, WORDS) == {'00.txt:1': expected}


def test_characters_are_cut_into_windows(tmp_path):
  characters = CharacterVocabulary(('a', 'b', '\u2420'))
  pattern = _write(tmp_path / 'text', 'abab aabb')
  trained = train_on_text(_task(characters), pattern)
  assert _texts(trained.train, characters) == {
    '00.txt:1': ['<BOS>abab a', '<BOS>abb<EOS>']
  }


def test_one_file_read_in_two_encodings(tmp_path):
  # The bytes C3 A9 are é in UTF-8.
  characters = CharacterVocabulary(('é', 'Ã', '©'))
  pattern = _write(tmp_path / 'text', '')
  (tmp_path / 'text' / '00.txt').write_bytes(b'\xc3\xa9')
  for encoding, expected in ((None, 'é'), ('latin-1', 'Ã©')):
    trained = train_on_text(_task(characters), pattern, encoding=encoding)
    assert _texts(trained.train, characters) == {
      '00.txt:1': [f'<BOS>{expected}<EOS>']
    }


def test_a_task_with_its_own_words_holds_documents_out(tmp_path):
  texts = [f'the cat saw word{i}.\n\nthe dog too.\n' for i in range(20)]
  pattern = _write(tmp_path / 'text', *texts)
  task = text_task(pattern, vocab_size=4, sequence_length=6)
  assert set(task.vocabulary.words) < {'the', '.', 'cat', 'dog', 'saw', 'too'}
  sizes = [len(task.train), len(task.validation), len(task.test)]
  assert sizes == [16, 2, 2]
  again = text_task(pattern, vocab_size=1, sequence_length=6, vocabulary=WORDS)
  assert again.vocabulary == WORDS
  assert [again.validation.client_id(i) for i in range(2)] == [
    task.validation.client_id(i) for i in range(2)
  ]


def test_long_files_are_several_documents(tmp_path):
  pattern = _write(tmp_path / 'text', 'the cat sat\n\n' * 1000)
  task = text_task(pattern, vocab_size=4, sequence_length=6)
  total = [task.train, task.validation, task.test]
  assert sum(len(p) for p in total) == 10
  assert sum(p.num_sentences for p in total) == 1000


def test_packed_files_and_changed_ones(tmp_path):
  folder = tmp_path / 'text'
  folder.mkdir()
  (folder / 'a.txt.gz').write_bytes(gzip.compress(b'the cat'))
  (folder / 'b.txt.xz').write_bytes(lzma.compress(b'the dog'))
  pattern = str(folder / '*')
  first = train_on_text(_task(WORDS), pattern).train
  assert list(_texts(first, WORDS).values()) == [
    ['<BOS> the cat <EOS>'],
    ['<BOS> the dog <EOS>'],
  ]
  before = find_text(pattern)
  (folder / 'b.txt.xz').write_bytes(lzma.compress(b'the dog sat'))
  assert find_text(pattern) != before
  second = train_on_text(_task(WORDS), pattern).train
  assert _texts(second, WORDS)['b.txt.xz:1'] == ['<BOS> the dog sat <EOS>']
  (folder / 'b.txt.xz').write_bytes(b'no archive')
  with pytest.raises(ValueError, match=r'b\.txt\.xz cannot be read'):
    train_on_text(_task(WORDS), pattern)


def test_no_files_and_no_text_are_refused(tmp_path):
  with pytest.raises(ValueError, match='No file matches'):
    find_text(str(tmp_path / '*.nothing'))
  pattern = _write(tmp_path / 'text', '  \n', '')
  with pytest.raises(ValueError, match='There is no text'):
    train_on_text(_task(WORDS), pattern)
  with pytest.raises(ValueError, match='too short to hold a part'):
    text_task(pattern, vocab_size=4, sequence_length=6)
