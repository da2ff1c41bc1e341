"""Dumps with forbidden characters, with comments, and with odd numbers."""

from __future__ import annotations

import lzma

import pytest

from si_federated.preparation import dump
from si_federated.preparation.records import Counts

_DATE = 'CreationDate="2017-03-04T05:06:07"'
_HEAD = '<?xml version="1.0" encoding="utf-8"?>\n<posts>\n'


def _row(number, body='text', more=''):
  return (
    f'<row Id="{number}" PostTypeId="1" OwnerUserId="7" {_DATE} '
    f'Body="{body}" Title="t{number}" {more}/>\n'
  )


def _read(path, text, encoding='utf-8'):
  path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
  counts = Counts()
  return list(dump.read_posts(str(path), counts)), counts


@pytest.mark.parametrize(
  'forbidden', ['&#x0E;', '&#14;', '\x0e', '&#xFFFF;', '\uffff', '&#xD800;']
)
def test_only_characters_that_xml_forbids_are_lost(tmp_path, forbidden):
  (one, two), counts = _read(
    tmp_path / 'Posts.xml',
    _HEAD + _row(1, f'be{forbidden}fore&#xA;&#9;&lt;p&gt;') + _row(2),
  )
  assert (one.text, one.title) == ('before\n\t<p>', 't1')
  assert two.number == 2
  assert not counts.left_out
  assert dict(counts.dropped) == {'characters that XML forbids': 1}
  assert list(counts.first.values()) == ['Posts.xml, row 1']


@pytest.mark.parametrize(
  'text',
  [
    _HEAD + '<!-- <rows> -->' + _row(1) + _row(2),
    _HEAD + _row(1) + '<!-- a row <row Id="9" /> -->' + _row(2),
    _HEAD + _row(1) + _row(2) + '<!-- the end /> --></posts>',
    _HEAD + _row(1) + _row(2) + '<!-- never closed',
    _HEAD + '<!-- never closed' + _row(1) + _row(2),
    _HEAD + '<?note <row Id="9" /> ?>' + _row(1) + _row(2),
    _HEAD + '<rows>' + _row(1) + '</rows>' + _row(2),
    _HEAD + _row(1).replace('/>', '></row>') + _row(2),
  ],
)
@pytest.mark.parametrize('chunk', [1, 7, 1 << 20])
def test_comments_are_not_rows(tmp_path, monkeypatch, text, chunk):
  monkeypatch.setattr(dump, '_CHUNK', chunk)
  monkeypatch.setattr(dump, '_HEAD', 64)
  found, counts = _read(tmp_path / 'Posts.xml', text)
  assert [(r.number, r.text) for r in found] == [(1, 'text'), (2, 'text')]
  assert (counts.rows, dict(counts.left_out)) == (2, {})


def test_one_bad_row_does_not_affect_others(tmp_path):
  found, counts = _read(
    tmp_path / 'Posts.xml',
    _HEAD
    + _row(1, 'a < b')
    + _row(2)
    + _row(3, 'a & b')
    + _row(4, '"')
    + _row(5),
  )
  assert [record.number for record in found] == [2, 5]
  assert dict(counts.left_out) == {'not well-formed XML': 3}


@pytest.mark.parametrize(
  ('old', 'new', 'dropped', 'expected'),
  [
    ('Id="1"', f'Id="{2**63}"', 'Id', {'number': 0}),
    ('Id="1"', '', 'Id', {'number': 0}),
    ('/>', f'Score="{2**64}"/>', 'Score', {'score': 0}),
    ('/>', 'Score="many"/>', 'Score', {'score': 0}),
    ('/>', 'Score="3.0"/>', None, {'score': 3}),
    (_DATE, 'CreationDate="x"', 'CreationDate', {'creation_date': ''}),
    (_DATE, '', 'CreationDate', {'creation_date': ''}),
    ('Type', 'Type', None, {'number': 1}),
  ],
)
def test_odd_attributes_never_lose_the_text(
  tmp_path, old, new, dropped, expected
):
  (one,), counts = _read(
    tmp_path / 'Posts.xml', _HEAD + _row(1).replace(old, new, 1)
  )
  assert (one.client, one.text) == ('7', 'text')
  assert {name: getattr(one, name) for name in expected} == expected
  assert not counts.left_out
  names = [reason.split(',')[0] for reason in counts.dropped]
  assert names == ([] if dropped is None else [f'their {dropped}'])


def test_a_question_without_a_text_still_gives_its_title(tmp_path):
  (one,), counts = _read(
    tmp_path / 'Posts.xml', _HEAD + _row(1).replace('Body', 'Boddy')
  )
  assert (one.client, one.number, one.title) == ('', 1, 't1')
  assert dict(counts.left_out) == {'without Body': 1}


def test_encodings_of_dumps(tmp_path):
  path = tmp_path / 'Posts.xml'
  latin = _HEAD.replace('utf-8', 'iso-8859-1') + _row(1, 'caf\xe9')
  ((one,), counts) = _read(path, latin, 'latin-1')
  assert one.text == 'caf\xe9' and not counts.left_out
  with pytest.raises(ValueError, match='UTF-16 text; convert it with `iconv'):
    _read(path, _HEAD + _row(1), 'utf-16')
  japanese = _HEAD.replace('utf-8', 'shift_jis') + _row(1, '\u30ab')
  ((one,), counts) = _read(path, japanese, 'shift_jis')
  assert one.text == '\u30ab' and not counts.left_out
  with pytest.raises(ValueError, match='declares the encoding klingon, which'):
    _read(path, _HEAD.replace('utf-8', 'klingon') + _row(1))


def test_a_damaged_dump_is_reported_in_one_sentence(tmp_path):
  packed = lzma.compress((_HEAD + _row(1) * 1000).encode())
  with pytest.raises(ValueError, match='damaged or incomplete'):
    _read(tmp_path / 'Posts.xml.xz', packed[:-20])
