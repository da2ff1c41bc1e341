"""Tables as pandas and others write them: what is kept, dropped, counted."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from si_federated import preparation
from si_federated.preparation.dates import utc
from tests.preparation import prepared


def _prepare(path, **more):
  output = path.parent / 'out'
  summary = preparation.prepare(
    preparation.Settings(
      path.suffix[1:], str(path), str(output), overwrite=True, **more
    )
  )
  found: dict[str, list[dict]] = {}
  for split in summary['clients']:
    for client, examples in prepared.read_examples(output, split).items():
      found.setdefault(client, []).extend(examples)
  return summary, found


@pytest.mark.parametrize('kind', ['csv', 'jsonl'])
def test_a_frame_of_pandas(tmp_path, kind):
  """Columns with an empty cell become floats; dates have no time or a zone."""
  frame = pd.DataFrame(
    {
      'client_id': [12, 12, None, 7],
      'text': ['one', 'two', 'lost', 'three'],
      'score': [3, None, 4, -2],
      'creation_date': [
        '2018-01-01', '2018-01-02 00:30:00+01:00', None, '2018-01-03T04:05',
      ],
      'title': ['A title', None, None, None],
    }
  )  # fmt: skip
  path = tmp_path / f'frame.{kind}'
  if kind == 'csv':
    frame.to_csv(path, index=False)
    assert '12.0' in path.read_text()
  else:
    frame.to_json(path, orient='records', lines=True)
  summary, found = _prepare(path)
  assert summary['left_out'] == {"without a user in 'client_id'": 1}
  assert summary['dropped'] == {}
  rest = {'tags': '', 'type': ''}
  assert found == {
    '12': [
      {
        'tokens': 'one', 'score': 3, 'title': 'a title',
        'creation_date': '2018-01-01 00:00:00 UTC', **rest,
      },
      {
        'tokens': 'two', 'score': 0, 'title': '',
        'creation_date': '2018-01-01 23:30:00 UTC', **rest,
      },
    ],
    '7': [
      {
        'tokens': 'three', 'score': -2, 'title': '',
        'creation_date': '2018-01-03 04:05:00 UTC', **rest,
      },
    ],
  }  # fmt: skip


def test_users_of_json_whatever_their_type(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text(
    ''.join(
      f'{{"client_id": {value}, "text": "t{i}"}}\n'
      for i, value in enumerate(
        [
          '12',
          '12.0',
          '"12"',
          '" 12.0 "',
          '"012"',
          '1.5',
          '-1',
          'true',
          'NaN',
          'null',
          '[1]',
          'Infinity',
          '"\\ud83d"',
        ]
      )
    )
  )
  summary, found = _prepare(path)
  assert {k: [one['tokens'] for one in v] for k, v in found.items()} == {
    '12': ['t0', 't1', 't2', 't3'],
    '012': ['t4'],
    '1.5': ['t5'],
    '-1': ['t6'],
    '?': ['t12'],
  }
  assert summary['left_out'] == {"without a user in 'client_id'": 5}


@pytest.mark.parametrize(
  ('field', 'kept', 'is_odd'),
  [
    ('"score": 3.0', {'score': 3}, False),
    ('"score": "3.0"', {'score': 3}, False),
    ('"score": NaN', {}, False),
    ('"score": null', {}, False),
    ('"score": ""', {}, False),
    ('"score": 2.5', {}, True),
    ('"score": true', {}, True),
    ('"score": Infinity', {}, True),
    ('"score": 9223372036854775807', {'score': 2**63 - 1}, False),
    ('"score": 9223372036854775808', {}, True),
    ('"score": 1e300', {}, True),
    ('"score": ' + '1' * 5000, {}, True),
    ('"score": "' + '1' * 5000 + '"', {}, True),
    ('"title": NaN', {}, False),
    ('"title": 12.0', {'title': '12'}, False),
    ('"title": {}', {}, True),
    ('"title": "\\ud83d"', {'title': '?'}, False),
    ('"tags": ["a", null, NaN, 3.0]', {'tags': 'a|3'}, False),
    ('"tags": [["a"]]', {}, True),
    ('"tags": "\\udc00"', {'tags': '?'}, False),
    ('"creation_date": 1514764800000', {}, True),
    ('"creation_date": "2018-02-30"', {}, True),
    ('"type": [1]', {}, True),
  ],
)
def test_an_optional_field_never_costs_the_text(tmp_path, field, kept, is_odd):
  path = tmp_path / 'x.jsonl'
  path.write_text(f'{{"client_id": "a", "text": "hello", {field}}}\n')
  summary, found = _prepare(path)
  empty = dict.fromkeys(('title', 'tags', 'creation_date', 'type'), '')
  assert found == {'a': [{'tokens': 'hello', 'score': 0, **empty, **kept}]}
  assert summary['left_out'] == {}
  assert sum(summary['dropped'].values()) == is_odd
  name = field.split('"')[1]
  notes = [n for n in summary['notes'] if 'are used without' in n]
  assert len(notes) == is_odd
  for note in notes:
    assert note.startswith(f'1 of 1 rows are used without their {name}, which')
    assert note.endswith('(the first: x.jsonl, line 1).')


@pytest.mark.parametrize(
  ('date', 'expected'),
  [
    ('2018-01-01', '2018-01-01 00:00:00 UTC'),
    ('2018-01-01 01:02', '2018-01-01 01:02:00 UTC'),
    ('2018-01-01T01:02:03.4500Z', '2018-01-01 01:02:03.45 UTC'),
    ('2018-01-01 01:02:03 UTC', '2018-01-01 01:02:03 UTC'),
    ('2018-01-01T01:02:03+00:00', '2018-01-01 01:02:03 UTC'),
    ('2018-01-01T00:30:03.5+05:45', '2017-12-31 18:45:03.5 UTC'),
    ('2017-12-31 23:30:00 -0100', '2018-01-01 00:30:00 UTC'),
    ('2018-13-01', None),
    ('0001-01-01T00:00+01:00', None),
    ('01.02.2018', None),
    (20180101, None),
  ],
)
def test_dates(date, expected):
  if expected is not None:
    assert utc(date) == expected
    return
  with pytest.raises(ValueError):
    utc(date)


@pytest.mark.parametrize('source', ['csv', 'jsonl'])
def test_letters_are_never_replaced(tmp_path, source):
  path = tmp_path / f'x.{source}'
  text = {
    'csv': 'client_id,text\na,na\xefve\nb,two\n',
    'jsonl': '{"client_id": "a", "text": "na\xefve"}\n'
    '{"client_id": "b", "text": "two"}\n',
  }[source]
  path.write_text(text)
  _, expected = _prepare(path)
  for content in (text.encode('utf-8-sig'), text.encode('utf-16')):
    path.write_bytes(content)
    summary, found = _prepare(path)
    assert found == expected and not summary['left_out']
  path.write_bytes(text.encode('latin-1'))
  position = text.index('\xef')
  with pytest.raises(
    ValueError,
    match=rf'position {position}, .*iconv -f latin1 .*--encoding=latin1',
  ):
    _prepare(path)
  assert _prepare(path, encoding='latin-1')[1] == expected


def test_long_fields_and_quotes_that_are_not_closed(tmp_path):
  path = tmp_path / 'x.csv'
  path.write_text(
    f'client_id,text\na,{"word " * 30_000}\nb,"two\nlines"\nc,d,e\n'
    'd,"never closed\ne,lost\n'
  )
  summary, found = _prepare(path)
  assert found['a'][0]['tokens'].split() == ['word'] * 30_000
  assert set(found) == {'a', 'b'}
  lost, odd = sorted(summary['left_out'])
  assert summary['first_left_out'][odd] == 'x.csv, line 5'
  assert lost == 'lines of a quotation that is never closed'
  assert summary['left_out'] == {odd: 1, lost: 2}
  assert summary['rows'] == 5
  assert summary['first_left_out'][lost] == 'x.csv, line 6'


def test_lines_without_words_are_named_by_their_line(tmp_path):
  path = tmp_path / 'x.jsonl'
  rows = [{'client_id': 'a', 'text': t} for t in ('one', '\u4e2d', 'two')]
  path.write_text('\n\n'.join(map(json.dumps, rows)))
  summary, _ = _prepare(path)
  assert summary['first_left_out'] == {'without words': 'x.jsonl, line 3'}
