"""Encodings, marks and long fields of users' files, in every reader."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import lzma

import pytest

from si_federated.tasks import (
  TASKS,
  Vocabulary,
  load_vocabulary,
)
from si_federated.tasks.plain_text import text_task
from si_federated.tasks.shakespeare import read_speeches
from si_federated.tasks.text_files import open_text
from si_federated.tasks.vocabulary import CharacterVocabulary
from si_federated.tasks.vocabulary_files import save_vocabulary

_MARKED = {
  'utf-8': codecs.BOM_UTF8,
  'utf-16-le': codecs.BOM_UTF16_LE,
  'utf-16-be': codecs.BOM_UTF16_BE,
  'utf-32-le': codecs.BOM_UTF32_LE,
}
_WORDS = ('red', 'blue', 'green')


def _classify(path, **options):
  return TASKS['text_classification'](
    path=str(path), num_clients=1, vocab_size=50, sequence_length=8, **options
  )


def _rows(kind, encoding='utf-8', mark=b''):
  rows = [(f'café {word}', word) for word in _WORDS for _ in range(4)]
  if kind == 'csv':
    # The first name is quoted, because a mark before it breaks the quotation.
    text = '"text","label"\n' + ''.join(f'{t},{c}\n' for t, c in rows)
  else:
    text = ''.join(
      json.dumps({'text': t, 'label': c}, ensure_ascii=False) + '\n'
      for t, c in rows
    )
  return mark + text.encode(encoding)


@pytest.mark.parametrize('encoding', _MARKED)
@pytest.mark.parametrize('kind', ['csv', 'jsonl'])
def test_tables_with_a_mark(tmp_path, kind, encoding):
  path = tmp_path / f'x.{kind}'
  path.write_bytes(_rows(kind))
  plain = _classify(path).vocabulary
  path.write_bytes(_rows(kind, encoding, _MARKED[encoding]))
  assert _classify(path).vocabulary == plain
  assert '\ufeff' not in ''.join(plain.words)
  if encoding == 'utf-8':
    assert _classify(path, encoding='UTF8').vocabulary == plain


@pytest.mark.parametrize('kind', ['csv', 'jsonl'])
def test_an_option_names_the_encoding(tmp_path, kind):
  path = tmp_path / f'x.{kind}'
  path.write_bytes(_rows(kind))
  plain = _classify(path).vocabulary
  path.write_bytes(_rows(kind, 'latin-1'))
  with pytest.raises(ValueError, match=r'iconv -f latin1 .*encoding=latin1'):
    _classify(path)
  assert _classify(path, encoding='latin-1').vocabulary == plain
  with pytest.raises(ValueError, match='not a text encoding'):
    _classify(path, encoding='latin-x')
  with pytest.raises(ValueError, match='encoding has no effect'):
    TASKS['text_classification'](encoding='latin-1')


@pytest.mark.parametrize('pack', [bytes, gzip.compress, lzma.compress])
def test_the_first_wrong_byte_is_named(tmp_path, pack):
  ending = {gzip.compress: '.gz', lzma.compress: '.xz'}.get(pack, '')
  path = tmp_path / f'x.txt{ending}'
  # The first byte of a character is the last one of a chunk.
  good = b'a\n' * ((1 << 19) - 1) + b'a\xc3\xa9\n'
  path.write_bytes(pack(good + b'caf\xe9!\n'))
  with (
    pytest.raises(ValueError, match='not UTF-8') as caught,
    open_text(str(path)) as file,
  ):
    file.read()
  assert f'position {len(good) + 3}, line {(1 << 19) + 1})' in str(caught.value)
  assert f'iconv -f latin1 -t utf8 {path}' in str(caught.value)
  path.write_bytes(pack(b'ab\xc3'))
  with (
    pytest.raises(ValueError, match='position 2, line 1'),
    open_text(str(path)) as file,
  ):
    file.read()


@pytest.mark.parametrize('order', ['le', 'be'])
def test_utf_16_without_a_mark_is_refused(tmp_path, order):
  path = tmp_path / 'x.jsonl'
  path.write_bytes(_rows('jsonl', f'utf-16-{order}'))
  with pytest.raises(ValueError, match=f'iconv -f utf-16{order}'):
    _classify(path)
  assert len(_classify(path, encoding=f'utf-16-{order}').classes) == 3


def test_utf_32_without_a_mark_is_refused(tmp_path):
  path = tmp_path / 'x.csv'
  path.write_bytes(_rows('csv', 'utf-32-le'))
  with pytest.raises(ValueError, match='iconv -f utf-32le'):
    _classify(path)


@pytest.mark.parametrize('encoding', _MARKED)
def test_a_mark_decides_only_the_order_of_bytes(tmp_path, encoding):
  path = tmp_path / 'x.jsonl'
  path.write_bytes(_rows('jsonl'))
  plain = _classify(path).vocabulary
  mark = _MARKED[encoding]
  # One mark too many, as from a program that adds one to a marked file.
  path.write_bytes(_rows('jsonl', encoding, mark * 2))
  assert _classify(path).vocabulary == plain
  assert _classify(path, encoding=encoding).vocabulary == plain
  with pytest.raises(
    ValueError,
    match=r'x\.jsonl begins with the byte order mark of UTF-.*, but '
    'encoding=latin-1; leave that out',
  ):
    _classify(path, encoding='latin-1')


def test_marks_in_files_that_were_joined(tmp_path):
  marked = _rows('jsonl', mark=codecs.BOM_UTF8)
  path = tmp_path / 'x.jsonl'
  path.write_bytes(_rows('jsonl') * 2)
  plain = _classify(path).vocabulary
  path.write_bytes(marked * 2)
  assert _classify(path).vocabulary == plain


@pytest.mark.parametrize('name', ['hex', 'rot13', 'base64', '', 'utf\0'])
def test_codecs_that_are_not_of_text_are_refused(tmp_path, name):
  (tmp_path / 'x.jsonl').write_bytes(_rows('jsonl'))
  with pytest.raises(ValueError, match='encoding=.* is not a text encoding'):
    _classify(tmp_path / 'x.jsonl', encoding=name)


def test_half_of_utf_16_is_reported_in_one_sentence(tmp_path):
  path = tmp_path / 'x.txt'
  path.write_bytes(codecs.BOM_UTF16_LE + 'ab'.encode('utf-16-le')[:-1])
  with (
    pytest.raises(ValueError, match=r'not utf-16 text .*position 4'),
    open_text(str(path)) as file,
  ):
    file.read()


def test_plain_text_with_and_without_a_mark(tmp_path):
  text = ''.join(f'word naïve dog{i}.\n\n' for i in range(2000))

  def words(content, **options):
    (tmp_path / 'a.txt').write_bytes(content)
    pattern = str(tmp_path / 'a.txt')
    task = text_task(pattern, vocab_size=10_000, sequence_length=6, **options)
    return task.vocabulary.words

  plain = words(text.encode())
  assert words(codecs.BOM_UTF8 + text.encode()) == plain
  assert words(text.encode('utf-16')) == plain
  joined = text.replace('word naïve dog7.', '\ufeffword naïve dog7.')
  assert words(joined.encode()) == plain
  with pytest.raises(
    ValueError,
    match=r'^\S*a\.txt is not UTF-8.*position 7.*--text_encoding=latin1',
  ):
    words(text.encode('latin-1'))
  assert words(text.encode('latin-1'), encoding='latin-1') == plain


def test_a_mark_before_speeches_and_numbers_as_names(tmp_path):
  path = tmp_path / 'speeches.jsonl'
  path.write_text(
    '\ufeff{"client_id": 12.0, "text": "To be"}\n'
    '{"play": "King", "speaker": 5, "text": ""}\n'
  )
  assert list(read_speeches(str(path))) == [('12', 'To be'), ('King/5', '')]


def test_a_mark_before_a_vocabulary(tmp_path):
  save_vocabulary(Vocabulary(('red', 'blue')), str(tmp_path))
  path = tmp_path / Vocabulary.FILE_NAME
  path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
  assert load_vocabulary(str(tmp_path)).words == ('red', 'blue')
  # A mark that is a separate word remains a word.
  characters = CharacterVocabulary(('\ufeff', 'a'))
  save_vocabulary(characters, str(tmp_path))
  assert load_vocabulary(str(tmp_path)) == characters


@pytest.fixture
def limit():
  """Sets the limit of csv's fields, which other tests may have changed."""
  before = csv.field_size_limit(100_000)
  yield 100_000
  csv.field_size_limit(before)


def test_long_fields_and_the_limit_of_the_process(tmp_path, limit):
  path = tmp_path / 'x.csv'
  long = 'word ' * 30_000  # 150,000 characters; csv's own limit is 131,072.
  path.write_bytes(_rows('csv') + f'{long},red\n'.encode() * 4)
  task = _classify(path)
  assert 'word' in task.vocabulary.words
  assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
  ('values', 'classes'),
  [
    (['1.0', '"2"', '1', '2'], ('1', '2')),
    (['true', 'false', '"true"', 'false'], ('false', 'true')),
    (['0.5', '1.5', '1.5', '"0.5"'], ('0.5', '1.5')),
  ],
)
def test_labels_are_numbers_or_truth_values(tmp_path, values, classes):
  path = tmp_path / 'x.jsonl'
  lines = [
    f'{{"text": "text {i}", "label": {value}}}\n'
    for i, value in enumerate(values * 3)
  ]
  path.write_text(''.join(lines))
  assert _classify(path).classes == classes
  assert _classify(path).train.num_examples(0) > 0


@pytest.mark.parametrize('value', ['null', 'NaN', '" "'])
def test_a_missing_label_is_not_a_class(tmp_path, value):
  path = tmp_path / 'x.jsonl'
  path.write_bytes(
    _rows('jsonl') + f'{{"text": "a", "label": {value}}}\n'.encode()
  )
  with pytest.raises(ValueError, match=r'x\.jsonl:13: label is empty') as error:
    _classify(path)
  assert 'remove' not in str(error.value)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('[{"text": "a"},\n{"text": "b"}]', 'is one JSON array.*lines=True'),
    ('[{"text": "a"}]', 'is one JSON array'),
    ('[\n{"text": "a"}\n]', 'is one JSON array'),
  ],
)
def test_an_array_is_named(tmp_path, content, message):
  (tmp_path / 'x.json').write_text(content)
  with pytest.raises(ValueError, match=message):
    _classify(tmp_path / 'x.json')


def test_columns_of_one_name_are_refused(tmp_path):
  (tmp_path / 'x.csv').write_text('text,label,text\na,b,c\n')
  with pytest.raises(ValueError, match="2 columns 'text'; rename"):
    _classify(tmp_path / 'x.csv')
