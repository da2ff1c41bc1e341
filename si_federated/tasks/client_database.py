"""Reads sentences by client from a SQLite file in TFF's client-data format."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import sqlite3
from typing import Iterator, Sequence

import tensorflow as tf

_COLUMNS = {
  'examples': ('split_name', 'client_id', 'serialized_example_proto'),
  'client_metadata': ('split_name', 'client_id', 'num_examples'),
}
_FORMS = {'tokens': ', words separated by spaces'}
# Sentences parsed at once: enough to make the cost of a call negligible.
_BATCH = 8192
_RUN = 100_000


# Parts of SQLite's messages, since Python 3.9 has no codes for its errors.
_ADVICE = {
  'locked': 'end the program that writes to it, then try again',
  'unable to open': 'check that it exists and that you can read it',
  'malformed': 'it is damaged: download or make it again',
  'not a database': 'it is damaged or of another kind: give another file, or '
  'download or make it again',
  'full': 'make room on the disk of temporary files, or name another with '
  'SQLITE_TMPDIR',
  'disk I/O error': 'check the disk or the network that it is on, and try '
  'again',
}


def _connect(path: str) -> sqlite3.Connection:
  """Opens a file for reading, even in a folder that is read-only."""
  uri = pathlib.Path(path).resolve().as_uri()
  connection = sqlite3.connect(f'{uri}?mode=ro', uri=True)
  try:
    connection.execute('PRAGMA schema_version')
  except sqlite3.OperationalError:
    connection.close()
    # Write-ahead mode needs two more files in the folder, unless the file is
    # opened as immutable, which would miss the content of its log.
    if not _is_wal(path) or _has_log(path):
      raise
    connection = sqlite3.connect(f'{uri}?mode=ro&immutable=1', uri=True)
  return connection


def _is_wal(path: str) -> bool:
  """Whether a file is in write-ahead mode (section 1.3 of SQLite's format)."""
  try:
    with open(path, 'rb') as file:
      return file.read(20)[18:] == b'\2\2'
  except OSError:
    return False


def _has_log(path: str) -> bool:
  log = f'{os.path.realpath(path)}-wal'
  return os.path.exists(log) and os.path.getsize(log) > 0


def _advice(path: str, error: sqlite3.Error) -> str:
  text = str(error)
  cannot_write = 'readonly' in text or 'unable to open' in text
  if cannot_write and _is_wal(path) and _has_log(path):
    return (
      'it is in write-ahead (WAL) mode, with changes in '
      f'{os.path.basename(path)}-wal: copy both into a folder that you can '
      'write to, or let its owner run PRAGMA journal_mode=DELETE on it'
    )
  for part, advice in _ADVICE.items():
    if part in text:
      return advice
  return 'check the file and its folder'


class ClientDatabase:
  """A read-only SQLite file of `tf.train.Example`s by client.

  All methods raise a ValueError with one sentence if the file is damaged,
  locked or in another format.
  """

  def __init__(self, path: str, feature: str = 'tokens'):
    """Opens the file and checks its tables and columns.

    Args:
      path: The file.
      feature: The feature of an example that contains its text.
    """
    self._path = path
    self._feature = feature
    with self._one_sentence():
      self._connection = _connect(path)
      for table, columns in _COLUMNS.items():
        found = {
          row[1]
          for row in self._connection.execute(f'PRAGMA table_info({table})')
        }
        missing = [column for column in columns if column not in found]
        if missing:
          raise ValueError(
            f'Table {table} of {path} lacks the column {missing[0]}; give a '
            'file made by tff.simulation.datasets.save_to_sql_client_data.'
          )

  def close(self) -> None:
    """Closes the file."""
    self._connection.close()

  @contextlib.contextmanager
  def _one_sentence(self):
    try:
      yield
    except sqlite3.Error as error:
      raise ValueError(
        f'{self._path} cannot be read as SQLite ({error}); '
        f'{_advice(self._path, error)}.'
      ) from error

  def splits(self) -> dict[str, int]:
    """Returns the number of sentences of each split, from the metadata."""
    query = (
      'SELECT split_name, total(num_examples) FROM client_metadata '
      'GROUP BY split_name'
    )
    with self._one_sentence():
      return {str(k): int(v) for k, v in self._connection.execute(query)}

  def client_ids(self, split: str) -> Iterator[str]:
    """Yields the names of the clients of a split in order."""
    query = (
      'SELECT DISTINCT client_id FROM client_metadata WHERE split_name = ? '
      'ORDER BY client_id'
    )
    with self._one_sentence():
      for (client_id,) in self._connection.execute(query, (split,)):
        yield str(client_id)

  def clients(self, split: str) -> Iterator[tuple[str, list[bytes]]]:
    """Yields each client with its sentences in stored order.

    Clients come in the order of their names, including those without sentences.
    SQLite only sorts names and row numbers, on disk if necessary, so that
    memory does not grow with the file.

    Args:
      split: The split's name.

    Yields:
      The client's name and the texts of its examples.
    """
    # A client without examples gets a NULL row.
    query = (
      'SELECT m.client_id, e.rowid FROM (SELECT DISTINCT client_id FROM '
      'client_metadata WHERE split_name = ?1) AS m LEFT JOIN examples AS e '
      'ON e.client_id = m.client_id AND e.split_name = ?1 '
      'ORDER BY m.client_id, e.rowid'
    )
    with self._one_sentence():
      cursor = self._connection.execute(query, (split,))
      pending: list[tuple[str, int]] = []
      messages: list[bytes] = []
      for client_id, rows in itertools.groupby(cursor, lambda row: row[0]):
        numbers = [row[1] for row in rows if row[1] is not None]
        pending.append((str(client_id), len(numbers)))
        messages.extend(self._messages(numbers))
        if len(messages) >= _BATCH:
          yield from self._parsed(pending, messages)
          pending, messages = [], []
      yield from self._parsed(pending, messages)

  def _messages(self, rows: Sequence[int]) -> Iterator[bytes]:
    """Yields the serialized examples of ascending row numbers."""
    if not rows:
      return
    select = 'SELECT serialized_example_proto FROM examples WHERE rowid '
    if rows[-1] - rows[0] + 1 == len(rows):  # Consecutive rows.
      found = self._connection.execute(
        select + 'BETWEEN ? AND ? ORDER BY rowid', (rows[0], rows[-1])
      )
      yield from (row[0] for row in found)
      return
    for row in rows:
      yield self._connection.execute(select + '= ?', (row,)).fetchone()[0]

  def _parsed(
    self, clients: list[tuple[str, int]], messages: list[bytes]
  ) -> Iterator[tuple[str, list[bytes]]]:
    """Cuts one batch of examples into the sentences of its clients."""
    sentences: list[bytes] = []
    for start in range(0, len(messages), _RUN):
      sentences.extend(self._texts(messages[start : start + _RUN]))
    start = 0
    for client_id, size in clients:
      yield client_id, sentences[start : start + size]
      start += size

  def _texts(self, messages: list[bytes]) -> list[bytes]:
    # Parsing a single feature is fast.
    spec = {self._feature: tf.io.FixedLenFeature([], tf.string)}
    try:
      parsed = tf.io.parse_example(tf.constant(messages, tf.string), spec)
    except (tf.errors.OpError, TypeError, ValueError):
      raise ValueError(
        f'{self._path} has an example without a `{self._feature}` feature of '
        'one string; give a file whose examples have their text as '
        f'`{self._feature}`{_FORMS.get(self._feature, "")}.'
      ) from None
    return parsed[self._feature].numpy().tolist()
