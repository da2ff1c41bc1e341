"""Characters as a vocabulary, and vocabulary files of all kinds."""

from __future__ import annotations

import os

import pytest

from si_federated.tasks import Vocabulary, load_vocabulary, subwords
from si_federated.tasks.subwords import SubwordVocabulary
from si_federated.tasks.vocabulary import CharacterVocabulary, visible
from si_federated.tasks.vocabulary_files import save_vocabulary

# 'a', 'B', space, line feed.
CHARACTERS = CharacterVocabulary(('a', 'B', '\u2420', '\u240a'))


def test_characters_there_and_back():
  ids = CHARACTERS.encode('a B\naB b')
  assert ids == [1, 3, 2, 4, 1, 2, 3, 5]
  assert CHARACTERS.text_of(ids[:-1]) == 'a B\naB '
  assert CHARACTERS.text_of(ids[-2:]) == ' <UNK>'
  assert CHARACTERS.decode([3, 4, 7]) == ['\u2420', '\u240a', '<EOS>']
  assert CHARACTERS.encode('') == []
  assert visible('\t\r') == '\u2409\u240d'
  assert CHARACTERS.begins_word.tolist() == [True] * 8
  with pytest.raises(ValueError, match='8 ids'):
    CHARACTERS.text_of([8])


def test_text_of_words():
  words = Vocabulary(('the', 'cat'))
  assert words.text_of(words.encode('The  black cat')) == 'the <UNK> cat'
  assert words.begins_word.all()


@pytest.mark.parametrize('word', ['ab', ' ', '\n', ''])
def test_words_that_are_not_characters(word):
  with pytest.raises(ValueError):
    CharacterVocabulary(('a', word))


def make_pieces():
  pytest.importorskip('sentencepiece')
  return SubwordVocabulary.from_model(
    subwords.train_model([('ab', 3), ('b', 2), ('aab', 9)], 9)
  )


@pytest.mark.parametrize(
  ('make', 'name'),
  [
    (lambda: Vocabulary(('a', 'B')), 'vocabulary.txt'),
    (lambda: CHARACTERS, 'characters.txt'),
    (make_pieces, 'vocabulary.model'),
  ],
)
def test_every_kind_is_found_again(tmp_path, make, name):
  folder = str(tmp_path)
  with pytest.raises(ValueError, match=r'no vocabulary yet.*vocabulary\.txt'):
    load_vocabulary(folder)
  for other in (Vocabulary(('x',)), CHARACTERS, make()):
    save_vocabulary(other, folder)
  assert os.listdir(tmp_path) == [name]
  loaded = load_vocabulary(folder)
  assert loaded == make()
  assert type(loaded) is type(make())


def test_kinds_are_not_equal():
  words = ('a', 'B')
  assert Vocabulary(words) == Vocabulary(words)
  assert Vocabulary(words) != CharacterVocabulary(words)
