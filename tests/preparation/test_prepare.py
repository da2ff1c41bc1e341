"""Tests of prepared client data, read by TFF and by the task."""

from __future__ import annotations

import dataclasses
import json
import lzma
import pathlib
import subprocess
import sys
from xml.sax.saxutils import quoteattr

import pytest

from si_federated import preparation, tasks
from tests.preparation.prepared import read_examples, read_tokens

_ROOT = pathlib.Path(__file__).parents[2]


def _row(**attributes):
  words = (f'{key}={quoteattr(str(v))}' for key, v in attributes.items())
  return f'  <row {" ".join(words)} />\n'


def _xml(*rows, name='posts'):
  head = '\ufeff<?xml version="1.0" encoding="utf-8"?>\n'
  return f'{head}<{name}>\n{"".join(rows)}</{name}>\n'


def _post(number, user, body, **more):
  values = {
    'Id': number,
    'PostTypeId': 1,
    'CreationDate': '2017-03-04T05:06:07.100',
    'Score': number * 10,
    'Body': body,
    'OwnerUserId': user,
    'Title': f'Title {number}',
    'Tags': f'<t{number}><both>',
  }
  values.update(more)
  return _row(**{key: v for key, v in values.items() if v is not None})


def _answer(number, user, body, parent, **more):
  values = {'PostTypeId': 2, 'ParentId': parent, 'Title': None, 'Tags': None}
  return _post(number, user, body, **values, **more)


_POSTS = _xml(
  _post(1, 7, '<p>First question. Of two sentences.</p>'),
  _post(2, 30, '<p>Held out, whenever written.</p>', Tags='|new|style|'),
  _answer(3, 7, '<p>An answer.</p>', 1, CreationDate='2018-01-01T00:00:00.000'),
  _answer(4, 8, '<p>Another &lt;answer&gt;.</p>', 2),
  _post(5, None, '<p>Nobody asks.</p>'),
  _answer(6, 8, '<p>To nobody.</p>', 5),
  _post(7, -1, '<p>A robot.</p>'),
  _post(8, 9, '<pre>code</pre>'),
  _post(9, 9, '<p>Of a tag.</p>', PostTypeId=5),
  _post(10, 9, '<p>When?</p>', CreationDate='yesterday'),
  '  <row Id="11" PostTypeId="1" Body="a & b" />\n',
  '  <row Id="12" PostTypeId="1" Body="&#x1f;" />\n',
  _answer(13, 8, '<p>Lost.</p>', 999),
)
_COMMENTS = _xml(
  _row(
    Id=1, PostId=3, Score=2, Text='Plain <b> remark.', UserId=12,
    CreationDate='2017-05-05T00:00:00.000',
  ),
  _row(Id=2, PostId=3, Text='Unsigned.', CreationDate='2017-05-05T00:00:00'),
  name='comments',
)  # fmt: skip


@pytest.fixture
def dump(tmp_path):
  folder = tmp_path / 'dump'
  folder.mkdir()
  (folder / 'Posts.xml').write_text(_POSTS, encoding='utf-8')
  (folder / 'Comments.xml').write_text(_COMMENTS, encoding='utf-8')
  return folder


def _prepare(source, path, output, **more):
  return preparation.prepare(
    preparation.Settings(source, str(path), str(output), **more)
  )


def test_a_dump_becomes_the_fields_and_splits_of_tff(dump, tmp_path):
  out = tmp_path / 'out'
  summary = _prepare('stackexchange', dump, out)
  train = read_examples(out, 'train')
  assert train['7'] == [
    {
      'creation_date': '2017-03-04 05:06:07.1 UTC',
      'score': 10,
      'tags': 't1|both',
      'title': 'title 1',
      'tokens': tokens,
      'type': 'question',
    }
    for tokens in ('first question .', 'of two sentences .')
  ]
  # Title, tags and score are those of the question.
  assert train['8'][0] == {
    'creation_date': '2017-03-04 05:06:07.1 UTC',
    'score': 20,
    'tags': 'new|style',
    'title': 'title 2',
    'tokens': 'another < answer > .',
    'type': 'answer',
  }
  # A question without a user still counts. Without its question, an answer
  # keeps its own score.
  assert [(one['title'], one['score']) for one in train['8'][1:]] == [
    ('title 5', 50),
    ('', 130),
  ]
  # The question of a comment on an answer is that of the answer.
  (comment,) = train['12']
  assert (comment['tokens'], comment['type'], comment['title']) == (
    *('plain < b > remark .', 'comment', 'title 1'),
  )
  # A text without a date still counts.
  assert (train['9'][0]['tokens'], train['9'][0]['creation_date']) == (
    *('when ?', ''),
  )
  assert set(train) == {'7', '8', '9', '12'}
  assert read_tokens(out, 'heldout') == {
    '30': ['held out , whenever written .']
  }
  assert read_tokens(out, 'test') == {'7': ['an answer .']}
  assert summary['clients'] == {'train': 4, 'heldout': 1, 'test': 1}
  assert summary['sentences'] == {'train': 7, 'heldout': 1, 'test': 1}


def test_omissions_are_counted_with_their_first_row(dump, tmp_path):
  summary = _prepare('stackexchange', dump, tmp_path / 'out')
  assert summary['rows'] == 15
  assert summary['left_out'] == {
    'without a user': 4,
    'not well-formed XML': 1,
    'without words': 1,
    'neither a question nor an answer': 1,
  }
  assert list(summary['dropped'].values()) == [1, 1, 1]
  assert [reason.split(',')[0] for reason in summary['dropped']] == [
    'their CreationDate',
    'characters that XML forbids',
    'the title',
  ]
  assert summary['first_left_out']['not well-formed XML'] == 'Posts.xml, row 11'
  assert summary['first_left_out']['without words'] == 'Posts.xml, row 8'
  assert any(
    '1 of 15 rows were left out: not well-formed XML' in note
    for note in summary['notes']
  )
  kept = json.loads((tmp_path / 'out' / 'preparation.json').read_text())
  assert kept['left_out'] == summary['left_out']


def test_counts_are_training_users_by_word_and_tag(dump, tmp_path):
  out = tmp_path / 'out'
  _prepare('stackexchange', dump, out, comments=False)
  lines = (out / 'stackoverflow.word_count').read_text().splitlines()
  assert lines[0] == '. 2'
  counts = dict(line.split() for line in lines)
  assert counts['sentences'] == counts['another'] == '1'
  assert 'held' not in counts and 'remark' not in counts
  assert lines[1:] == sorted(lines[1:])
  tags = json.loads((out / 'stackoverflow.tag_count').read_text())
  assert tags == {
    'both': 3, 'new': 1, 'style': 1, 't1': 1, 't10': 1, 't5': 1
  }  # fmt: skip


def test_the_same_dump_packed_and_in_one_line_gives_the_same(dump, tmp_path):
  _prepare('stackexchange', dump, tmp_path / 'a')
  packed = tmp_path / 'packed'
  packed.mkdir()
  for path in dump.iterdir():
    text = path.read_text(encoding='utf-8').replace('/>\n  <row', '/><row')
    with lzma.open(packed / f'{path.name}.xz', 'wt', encoding='utf-8') as file:
      file.write(text)
  _prepare('stackexchange', packed / 'Posts.xml.xz', tmp_path / 'b')
  for split in ('train', 'heldout', 'test'):
    assert read_examples(tmp_path / 'a', split) == read_examples(
      tmp_path / 'b', split
    )


def test_rows_longer_than_what_is_read_at_once(tmp_path):
  dump = tmp_path / 'dump'
  dump.mkdir()
  long = '<p>' + 'word &lt;row words ' * 100_000 + '</p>'
  (dump / 'Posts.xml').write_text(
    _xml(_post(1, 7, long), _post(2, 8, '<p>Short.</p>'))
  )
  _prepare('stackexchange', dump, tmp_path / 'out')
  train = read_tokens(tmp_path / 'out', 'train')
  assert train['8'] == ['short .']
  assert sum(one.count('< row words') for one in train['7']) == 100_000


def test_a_tail_that_is_cut_off_is_one_malformed_row(dump, tmp_path):
  text = (dump / 'Posts.xml').read_bytes()
  (dump / 'Posts.xml').write_bytes(text[: text.index(b'Another') + 20])
  summary = _prepare('stackexchange', dump, tmp_path / 'out')
  assert summary['left_out']['not well-formed XML'] == 1
  assert set(read_tokens(tmp_path / 'out', 'train')) == {'7', '12'}


def test_users_with_few_sentences_are_left_out(dump, tmp_path):
  summary = _prepare('stackexchange', dump, tmp_path / 'out', min_sentences=3)
  # Three sentences are of all splits together.
  assert summary['clients'] == {'train': 2, 'test': 1}
  assert 'heldout' in summary['notes'][-1]
  assert summary['clients_left_out'] == 3
  assert '3 users were left out: with fewer than 3' in summary['notes'][-2]


def test_the_task_learns_from_it_by_hash_of_users(tmp_path):
  path = tmp_path / 'rows.jsonl'
  rows = [
    {'user': f'u{i % 60}', 'text': f'Hello word{i % 7}. Bye!', 'score': i}
    for i in range(300)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  out = tmp_path / 'out'
  summary = _prepare('jsonl', path, out, client_column='user', split='hash')
  assert sum(summary['clients'].values()) == 60
  assert 30 <= summary['clients']['train'] < 60
  task = tasks.TASKS['stackoverflow'](
    data_dir=str(out), vocab_size=10, sequence_length=5
  )
  assert len(task.train) == summary['clients']['train']
  assert {'hello', 'bye', '.', '!'} <= set(task.vocabulary.words)
  assert task.train.client_id(0).startswith('u')


def test_odd_lines_of_json_are_counted(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_bytes(
    b'{"client_id": 5, "text": "A caf\xc3\xa9.", "tags": ["x", "y"], '
    b'"creation_date": "2020-01-02T03:04:05Z", "type": "chat"}\n'
    b'\n{"client_id": "a"}\n["list"]\n{"text": "b"}\nnonsense\n'
    b'{"client_id": "b", "text": "c", "score": "high"}\n'
    b'{"client_id": " ", "text": "c"}\n'
  )
  summary = _prepare('jsonl', path, tmp_path / 'out')
  assert summary['left_out'] == {
    "without a text in 'text'": 1,
    'not a JSON object': 2,
    "without a user in 'client_id'": 2,
  }
  # The text is kept without its score.
  (reason,) = summary['dropped']
  assert 'score' in reason and summary['dropped'][reason] == 1
  assert summary['first_left_out'][reason] == 'rows.jsonl, line 7'
  assert read_tokens(tmp_path / 'out', 'train') == {'b': ['c']}
  assert read_examples(tmp_path / 'out', 'test') == {
    '5': [
      {
        'creation_date': '2020-01-02 03:04:05 UTC',
        'score': 0,
        'tags': 'x|y',
        'title': '',
        'tokens': 'a caf .',
        'type': 'chat',
      }
    ]
  }


def test_csv_with_quotes_and_odd_rows(tmp_path):
  path = tmp_path / 'rows.csv'
  path.write_bytes(
    b'\xef\xbb\xbfname,said\r\nann,"Yes, ""yes"".\n\nTwo <b>lines</b>"\r\n'
    b'bob\r\n\r\nann,No.\r\ncy,a,b\r\n'
  )
  summary = _prepare(
    'csv', path, tmp_path / 'out', text_column='said', client_column='name',
    is_html=True, split='date',
  )  # fmt: skip
  assert summary['left_out'] == {'with more or fewer fields than columns': 2}
  assert read_tokens(tmp_path / 'out', 'train') == {
    'ann': ['yes , " yes " .', 'two lines', 'no .']
  }


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'input': 'nowhere'}, 'There is no nowhere'),
    ({'input': 'empty'}, 'has no Posts.xml'),
    ({'input': 'empty/note.xml'}, 'has no rows'),
    ({'input': 'empty/cut.xml.xz'}, 'damaged or incomplete'),
    ({'input': 'empty/x.7z'}, '7z'),
    (
      {'source': 'csv'},
      'no column text and no column client_id; it has Wrong: name yours by '
      '--text_column and --client_column',
    ),
    ({'source': 'jsonl', 'input': 'empty/blank.jsonl'}, 'it is empty'),
    ({'source': 'jsonl'}, 'has no text to learn from: '),
    ({'min_sentences': 100}, 'users with 100 sentences'),
    ({'source': 'zip'}, 'must be one of'),
    ({'split': 'time'}, 'must be one of'),
    ({'split_date': '2018-13-01'}, 'such as 2018-01-01'),
    ({'min_sentences': 0}, 'at least 1'),
  ],
)
def test_mistakes_are_reported_in_one_sentence_and_leave_nothing(
  dump, tmp_path, monkeypatch, change, words
):
  monkeypatch.chdir(tmp_path)
  empty = tmp_path / 'empty'
  empty.mkdir()
  (empty / 'note.xml').write_text('<note/>')
  (empty / 'cut.xml.xz').write_bytes(lzma.compress(_POSTS.encode())[:-30])
  (empty / 'x.7z').write_text('nothing')
  (empty / 'blank.jsonl').write_text('\n')
  (empty / 'other.csv').write_text('Wrong\n1\n')
  given = {'source': 'stackexchange', 'input': str(dump), **change}
  if given['source'] != 'stackexchange' and 'input' not in change:
    given['input'] = str(empty / 'other.csv')
  with pytest.raises(ValueError, match=words) as caught:
    preparation.prepare(preparation.Settings(output='out', **given))
  assert '\n' not in str(caught.value)
  out = tmp_path / 'out'
  assert not out.exists() or [path.name for path in out.iterdir()] == ['.lock']


def test_a_failure_or_an_interrupt_keeps_what_was_there(
  dump, tmp_path, monkeypatch
):
  out = tmp_path / 'out'
  _prepare('stackexchange', dump, out)
  before = {path.name: path.read_bytes() for path in out.iterdir()}
  with pytest.raises(ValueError, match='--overwrite'):
    _prepare('stackexchange', dump, out)

  def interrupt(*unused_args):
    raise KeyboardInterrupt

  from si_federated.preparation import store

  monkeypatch.setattr(store, 'write_counts', interrupt)
  with pytest.raises(KeyboardInterrupt):
    _prepare('stackexchange', dump, out, overwrite=True)
  assert {path.name: path.read_bytes() for path in out.iterdir()} == before
  # What a killed process leaves is removed by the next.
  (out / '.preparing').mkdir()
  (out / '.preparing' / 'staging').write_text('half')
  monkeypatch.undo()
  _prepare('stackexchange', dump, out, overwrite=True, comments=False)
  assert {path.name for path in out.iterdir()} == set(before)
  assert '12' not in read_tokens(out, 'train')


def test_a_full_disk_is_distinguished_from_other_faults(tmp_path):
  from si_federated.preparation import store

  path = str(tmp_path / 'x')
  with (
    pytest.raises(OSError, match='full.*make room'),
    store.open_database(path) as connection,
  ):
    connection.execute('PRAGMA max_page_count = 1')
    store.create_staging(connection)
  with (
    pytest.raises(OSError, match='no such table.*check its folder') as caught,
    store.open_database(path) as connection,
  ):
    connection.execute('SELECT * FROM absent')
  assert 'room' not in str(caught.value)


def test_words_beyond_what_memory_may_hold_are_counted_on_disk(
  dump, tmp_path, monkeypatch
):
  from si_federated.preparation import store

  _prepare('stackexchange', dump, tmp_path / 'a')
  monkeypatch.setattr(store, '_MOST_WORDS', 1)
  _prepare('stackexchange', dump, tmp_path / 'b')
  for name in ('word_count', 'tag_count'):
    one, other = (
      (tmp_path / folder / f'stackoverflow.{name}').read_bytes()
      for folder in 'ab'
    )
    assert one == other


def test_a_7z_archive(dump, tmp_path):
  py7zr = pytest.importorskip('py7zr')
  path = tmp_path / 'site.7z'
  with py7zr.SevenZipFile(path, 'w') as archive:
    for name in ('Posts.xml', 'Comments.xml'):
      archive.write(dump / name, name)
  _prepare('stackexchange', path, tmp_path / 'a')
  _prepare('stackexchange', dump, tmp_path / 'b')
  assert read_examples(tmp_path / 'a', 'train') == read_examples(
    tmp_path / 'b', 'train'
  )


def test_settings_are_in_the_summary(dump, tmp_path):
  settings = preparation.Settings(
    'stackexchange', str(dump), str(tmp_path / 'out'), split='hash'
  )
  summary = preparation.prepare(settings)
  assert summary['settings'] == dataclasses.asdict(settings)


def test_the_command(dump, tmp_path):
  command = [sys.executable, '-m', 'experiments.prepare']
  done = subprocess.run(
    [
      *command,
      '--source=stackexchange',
      f'--input={dump}',
      f'--output={tmp_path / "out"}',
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert 'train: 4 users, 7 sentences' in done.stdout
  assert 'Reading Posts.xml: 100%' in done.stderr
  done = subprocess.run(
    [*command, '--source=stackexchange', f'--input={dump}'],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2 and '--output' in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
