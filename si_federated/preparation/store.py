"""Sorts records by user on disk and writes them in TFF's format."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tqdm

from si_federated import files
from si_federated.preparation import text
from si_federated.preparation.records import Record, interval

# The memory that SQLite may use for pages and for sorting.
_CACHE_KB = 1 << 16
# The number of words counted in memory before they go to the table.
_MOST_WORDS = 1 << 19
_BATCH = 1024

_STAGED = """
CREATE TABLE staged (
  client TEXT, parent INTEGER, date TEXT, title TEXT, tags TEXT,
  score INTEGER, kind TEXT, sentences TEXT, num_sentences INTEGER);
CREATE TABLE posts (
  number INTEGER PRIMARY KEY, parent INTEGER, title TEXT, tags TEXT,
  score INTEGER);
"""
_SORTED = """
SELECT s.client, s.date, s.kind, s.sentences,
  coalesce(g.title, p.title, s.title), coalesce(g.tags, p.tags, s.tags),
  coalesce(g.score, p.score, s.score)
FROM staged AS s
LEFT JOIN posts AS p ON p.number = s.parent
LEFT JOIN posts AS g ON g.number = p.parent
WHERE s.client NOT IN (SELECT client FROM small)
ORDER BY s.client, s.date, s.rowid
"""
# The schema of tff.simulation.datasets.save_to_sql_client_data.
_CLIENT_DATA = """
CREATE TABLE examples (
  split_name TEXT NOT NULL, client_id TEXT NOT NULL,
  serialized_example_proto BLOB NOT NULL);
CREATE TABLE client_metadata (
  client_id TEXT NOT NULL, split_name TEXT NOT NULL,
  num_examples INTEGER NOT NULL);
"""
_INDEX = 'CREATE INDEX by_client ON examples (split_name, client_id)'


@contextlib.contextmanager
def open_database(path: str) -> Iterator[sqlite3.Connection]:
  """Opens a new database that sorts in its own folder.

  A crash leaves a corrupt file, so use it only for files that are renamed when
  complete.

  Args:
    path: The file.

  Raises:
    OSError: If the file cannot be written, for example on a full disk.
  """
  before = os.environ.get('SQLITE_TMPDIR')
  os.environ['SQLITE_TMPDIR'] = os.path.dirname(os.path.abspath(path))
  connection = sqlite3.connect(path)
  try:
    for setting in (
      'journal_mode = OFF',
      'synchronous = OFF',
      'temp_store = FILE',
      f'cache_size = -{_CACHE_KB}',
    ):
      connection.execute(f'PRAGMA {setting}')
    yield connection
    connection.commit()
  except sqlite3.OperationalError as error:
    advice = (
      'make room on its disk, or give another --output'
      if 'full' in str(error)
      else 'check its folder and its disk'
    )
    raise OSError(f'{path} cannot be written ({error}); {advice}.') from error
  finally:
    connection.close()
    if before is None:
      del os.environ['SQLITE_TMPDIR']
    else:
      os.environ['SQLITE_TMPDIR'] = before


def stage(
  connection: sqlite3.Connection,
  records: Iterable[Record],
  left_out: Callable[[str, Record], None],
) -> int:
  """Splits records into sentences, and writes them to disk.

  Args:
    connection: A database that `create_staging` has prepared.
    records: The records.
    left_out: Called with the reason and the record if a record has no words.

  Returns:
    The number of records written.
  """
  staged: list[tuple] = []
  posts: list[tuple] = []
  total = 0

  def flush() -> None:
    connection.executemany(
      f'INSERT INTO staged VALUES ({", ".join("?" * 9)})', staged
    )
    connection.executemany(
      'INSERT OR REPLACE INTO posts VALUES (?, ?, ?, ?, ?)', posts
    )
    staged.clear()
    posts.clear()

  for one in records:
    title = text.title(one.title)
    if one.number:
      # An answer takes title, tags and score from its question.
      own = (title, one.tags, one.score) if not one.parent else (None,) * 3
      posts.append((one.number, one.parent, *own))
    if one.client:
      found: Sequence[str] = (
        list(text.sentences(one.text, is_html=one.is_html))
        if one.sentences is None
        else one.sentences
      )
      if found:
        total += 1
        staged.append(
          (
            one.client, one.parent, one.creation_date, title, one.tags,
            one.score, one.kind, '\n'.join(found), len(found),
          )
        )  # fmt: skip
      else:
        left_out('without words', one)
    if len(staged) >= _BATCH or len(posts) >= _BATCH:
      flush()
  flush()
  return total


def orphans(connection: sqlite3.Connection) -> int:
  """Returns how many staged records name a missing post.

  They lack the title, tags and score of a question.
  """
  ((number,),) = connection.execute(
    'SELECT count(*) FROM staged AS s LEFT JOIN posts AS p '
    'ON p.number = s.parent LEFT JOIN posts AS g ON g.number = p.parent '
    'WHERE s.parent != 0 AND '
    '(p.number IS NULL OR (p.parent != 0 AND g.number IS NULL))'
  )
  return number


def create_staging(connection: sqlite3.Connection) -> None:
  """Creates the tables that `stage` fills."""
  connection.executescript(_STAGED)


class Totals:
  """Clients and sentences of each split, and users by word and tag.

  Attributes:
    clients: Clients by split.
    sentences: Sentences by split.
    words: How many training clients have each word.
    tags: How many training clients have each tag.
    small: How many clients are left out for having too few sentences.
  """

  def __init__(self, connection: sqlite3.Connection):
    self.clients: dict[str, int] = {}
    self.sentences: dict[str, int] = {}
    self.num_words: dict[str, int] = {}
    self.small = 0
    self.words = UserCounts(connection, 'word_counts')
    self.tags = UserCounts(connection, 'tag_counts')


def write_client_data(
  staging: sqlite3.Connection,
  path: str,
  split_of: Callable[[str, str], str],
  *,
  num_records: int,
  min_sentences: int,
) -> Totals:
  """Writes TFF's client data, client by client.

  Args:
    staging: The database that `stage` has filled.
    path: The file to write.
    split_of: Maps client and date to the name of the split.
    num_records: The number of staged records, for the progress bar.
    min_sentences: Clients with fewer sentences are left out.

  Returns:
    The counts of the written data.
  """
  totals = Totals(staging)
  staging.execute(
    'CREATE TEMP TABLE small AS SELECT client FROM staged GROUP BY client '
    'HAVING sum(num_sentences) < ?',
    (min_sentences,),
  )
  ((totals.small,),) = staging.execute('SELECT count(*) FROM small')
  with open_database(path) as target:
    target.executescript(_CLIENT_DATA)
    rows = tqdm.tqdm(
      staging.execute(_SORTED),
      total=num_records,
      desc='Writing clients',
      mininterval=interval(),
    )
    for client, posts in itertools.groupby(rows, lambda row: row[0]):
      _write_client(target, client, posts, split_of, totals)
    target.execute(_INDEX)
  return totals


def _write_client(
  target: sqlite3.Connection,
  client: str,
  posts: Iterable[tuple],
  split_of: Callable[[str, str], str],
  totals: Totals,
) -> None:
  counts: dict[str, int] = {}
  words: set[str] = set()
  tags: set[str] = set()
  for _, date, kind, sentences, title, post_tags, score in posts:
    split = split_of(client, date)
    about = {
      'creation_date': date,
      'score': score,
      'tags': post_tags,
      'title': title,
      'type': kind,
    }
    found = sentences.split('\n')
    counts[split] = counts.get(split, 0) + len(found)
    num_words = sum(one.count(' ') + 1 for one in found)
    totals.num_words[split] = totals.num_words.get(split, 0) + num_words
    target.executemany(
      'INSERT INTO examples VALUES (?, ?, ?)',
      ((split, client, _example({**about, 'tokens': one})) for one in found),
    )
    if split == 'train':
      words.update(word for one in found for word in one.split(' '))
      tags.update(tag for tag in post_tags.split('|') if tag)
  for split, number in counts.items():
    target.execute(
      'INSERT INTO client_metadata VALUES (?, ?, ?)', (client, split, number)
    )
    totals.clients[split] = totals.clients.get(split, 0) + 1
    totals.sentences[split] = totals.sentences.get(split, 0) + number
  totals.words.add(words)
  totals.tags.add(tags)


def _example(values: Mapping[str, Any]) -> bytes:
  features = {}
  for name, value in values.items():
    if isinstance(value, int):
      feature = tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
    else:
      data = value.encode('utf-8', 'replace')
      feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))
    features[name] = feature
  message = tf.train.Example(features=tf.train.Features(feature=features))
  return message.SerializeToString(deterministic=True)


class Distinct:
  """Recognises texts that it has seen, on disk: memory does not grow.

  Two texts count as equal if 64 bits of their hashes agree. With a hundred
  million texts, this is expected for one pair in four thousand corpora.
  """

  def __init__(self, connection: sqlite3.Connection):
    """Creates the table."""
    self._connection = connection
    connection.execute('CREATE TABLE seen (hash INTEGER PRIMARY KEY)')

  def add(self, text: str) -> bool:
    """Returns whether a text is new, and remembers it."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    number = int.from_bytes(digest, 'big', signed=True)
    cursor = self._connection.execute(
      'INSERT OR IGNORE INTO seen VALUES (?)', (number,)
    )
    return cursor.rowcount == 1


class UserCounts:
  """Counts users by word; counts that exceed memory go to a table."""

  def __init__(self, connection: sqlite3.Connection, table: str):
    """Creates the table."""
    self._connection = connection
    self._table = table
    self._held: dict[str, int] = {}
    connection.execute(
      f'CREATE TABLE {table} (word TEXT PRIMARY KEY, users INTEGER NOT NULL) '
      'WITHOUT ROWID'
    )

  def add(self, words: Iterable[str]) -> None:
    """Counts a user who has these words."""
    held = self._held
    for word in words:
      held[word] = held.get(word, 0) + 1
    if len(held) > _MOST_WORDS:
      self._flush()

  def _flush(self) -> None:
    self._connection.executemany(
      f'INSERT INTO {self._table} VALUES (?, ?) ON CONFLICT (word) DO UPDATE '
      'SET users = users + excluded.users',
      sorted(self._held.items()),
    )
    self._held.clear()

  def ranked(self) -> Iterator[tuple[str, int]]:
    """Yields words by decreasing count, then by their UTF-8 bytes."""
    self._flush()
    yield from self._connection.execute(
      f'SELECT word, users FROM {self._table} ORDER BY users DESC, word'
    )


def write_counts(totals: Totals, words_path: str, tags_path: str) -> None:
  """Writes word and tag counts in the formats of TFF's files.

  Args:
    totals: The counts of `write_client_data`.
    words_path: A line `word count` each, the most frequent first.
    tags_path: A JSON object of counts by tag.
  """
  with files.atomic_file(words_path) as file:
    for word, users in totals.words.ranked():
      file.write(f'{word} {users}\n'.encode())
  with files.atomic_file(tags_path) as file:
    file.write(b'{')
    for number, (tag, users) in enumerate(totals.tags.ranked()):
      file.write(b',\n ' if number else b'')
      file.write(f'{json.dumps(tag)}: {users}'.encode())
    file.write(b'}\n')
