"""The vocabulary, its file and the tokenizer behind it."""

from __future__ import annotations

import os

import pytest

from si_federated.tasks.tokenizer import tokenize
from si_federated.tasks.vocabulary import Vocabulary

V = Vocabulary(('the', "don't", '.', '<URL>'))


def test_ids():
  assert (V.padding, V.out_of_vocabulary, V.beginning, V.end) == (0, 5, 6, 7)
  assert V.size == 8


def test_encode_and_decode():
  ids = V.encode('The dog. Don\u2019t see http://a.b/c?d=e.')
  assert ids == [1, 5, 3, 2, 5, 4, 3]
  assert V.decode([6, *ids, 7, 0]) == [
    '<BOS>', 'the', '<UNK>', '.', "don't", '<UNK>', '<URL>', '.', '<EOS>',
    '<PAD>',
  ]  # fmt: skip
  assert V.encode('  ') == []
  assert V.decode([]) == []
  for bad in (-1, 8):
    with pytest.raises(ValueError, match='8 ids'):
      V.decode([bad])


@pytest.mark.parametrize(
  ('text', 'tokens'),
  [
    ('Hello, World!', ['hello', ',', 'world', '!']),
    (
      "It's a well-known 'fact'.",
      ["it's", 'a', 'well-known', "'", 'fact', "'", '.'],
    ),
    ('e.g. 3.5% (x)', ['e', '.', 'g', '.', '3', '.', '5', '%', '(', 'x', ')']),
    ('snake_case __init__', ['snake_case', '__init__']),
    ('see www.x.org/a_b) now', ['see', '<URL>', ')', 'now']),
    (
      'caf\xe9 \u201cquoted\u201d\u2026',
      ['caf', '"', 'quoted', '"'] + ['.'] * 3,
    ),
    ('keep <CODE> and <URL>', ['keep', '<CODE>', 'and', '<URL>']),
    ('a -- b', ['a', '-', '-', 'b']),
    ('', []),
  ],
)
def test_tokenize(text, tokens):
  assert tokenize(text) == tokens


def test_save_and_load(tmp_path):
  path = str(tmp_path / 'vocabulary.txt')
  words = Vocabulary(('the', 'caf\xe9', '\x85', 'a\u2028b', ' '))
  words.save(path)
  assert Vocabulary.load(path) == words
  V.save(path)
  assert Vocabulary.load(path) == V
  assert os.listdir(tmp_path) == ['vocabulary.txt']
  assert (tmp_path / 'vocabulary.txt').read_text() == "the\ndon't\n.\n<URL>\n"


@pytest.mark.parametrize(
  'content',
  [b'', b'a\nb', b'a\n\nb\n', b'a\na\n', b'\xff\xfe\n', b'a\r\nb\r\n'],
)
def test_load_refuses_other_files_than_vocabularies(tmp_path, content):
  path = tmp_path / 'vocabulary.txt'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r'vocabulary\.txt') as caught:
    Vocabulary.load(str(path))
  assert '\n' not in str(caught.value)


def test_load_names_the_missing_file(tmp_path):
  with pytest.raises(ValueError, match=r'no vocabulary file .*none\.txt'):
    Vocabulary.load(str(tmp_path / 'none.txt'))


@pytest.mark.parametrize('words', [(), ('a', 'a'), ('',), ('a\nb',)])
def test_bad_words(words):
  with pytest.raises(ValueError):
    Vocabulary(words)
