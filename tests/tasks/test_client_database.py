"""SQLite files in read-only folders, busy ones and damaged ones."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import sqlite3
import tempfile

import pytest
import tensorflow as tf

from si_federated.tasks.client_database import ClientDatabase

_NOBODY = 65534


@contextlib.contextmanager
def _unwritable(folder):
  """Makes a folder that this process, root or not, cannot write to."""
  os.chmod(folder, 0o555)
  is_root = os.geteuid() == 0
  if is_root:
    os.seteuid(_NOBODY)
  try:
    yield
  finally:
    if is_root:
      os.seteuid(0)
    os.chmod(folder, 0o755)


@pytest.fixture
def folder():
  # Others than root may enter, unlike `tmp_path`.
  path = pathlib.Path(tempfile.mkdtemp())
  os.chmod(path, 0o755)
  yield path
  shutil.rmtree(path)


def _write(path, mode='WAL'):
  """Returns the open writer of a file with one client of two sentences."""
  connection = sqlite3.connect(path)
  connection.execute(f'PRAGMA journal_mode = {mode}')
  connection.executescript(
    'CREATE TABLE examples (split_name, client_id, serialized_example_proto);'
    'CREATE TABLE client_metadata (split_name, client_id, num_examples);'
  )
  for text in (b'one', b'two'):
    value = tf.train.Feature(bytes_list=tf.train.BytesList(value=[text]))
    message = tf.train.Example(
      features=tf.train.Features(feature={'tokens': value})
    )
    connection.execute(
      'INSERT INTO examples VALUES (?, ?, ?)',
      ('train', 'ann', message.SerializeToString()),
    )
  connection.execute("INSERT INTO client_metadata VALUES ('train', 'ann', 2)")
  connection.commit()
  return connection


def _read(path):
  with contextlib.closing(ClientDatabase(str(path))) as database:
    return database.splits(), list(database.clients('train'))


_EXPECTED = ({'train': 2}, [('ann', [b'one', b'two'])])


@pytest.mark.parametrize('mode', ['WAL', 'DELETE'])
def test_a_folder_that_cannot_be_written(folder, mode):
  _write(folder / 'x.sqlite', mode).close()
  with _unwritable(folder):
    assert _read(folder / 'x.sqlite') == _EXPECTED
  assert os.listdir(folder) == ['x.sqlite']


def test_a_log_next_to_the_file_is_read(folder):
  writer = _write(folder / 'x.sqlite')
  try:
    copy = folder / 'copy'
    copy.mkdir()
    for name in ('x.sqlite', 'x.sqlite-wal'):
      shutil.copy(folder / name, copy)
    with _unwritable(copy), pytest.raises(ValueError) as caught:
      _read(copy / 'x.sqlite')
    assert 'write-ahead (WAL) mode' in str(caught.value)
    assert 'x.sqlite-wal: copy both' in str(caught.value)
    assert 'damaged' not in str(caught.value)
    # With the log's index both are read as they are.
    assert _read(folder / 'x.sqlite') == _EXPECTED
  finally:
    writer.close()


@pytest.mark.parametrize(
  ('error', 'words', 'is_damage'),
  [
    ('database or disk is full', 'make room', False),
    ('disk I/O error', 'check the disk', False),
    ('unable to open database file', 'you can read it', False),
    ('attempt to write a readonly database', 'check the file', False),
    ('out of memory', 'check the file', False),
    ('database disk image is malformed', 'it is damaged', True),
    ('file is not a database', 'it is damaged or of another kind', True),
  ],
)
def test_only_damage_is_called_damage(
  tmp_path, monkeypatch, error, words, is_damage
):
  _write(tmp_path / 'x.sqlite', 'DELETE').close()

  class Failing(sqlite3.Connection):
    def execute(self, *unused_args):
      raise sqlite3.OperationalError(error)

  connect = sqlite3.connect
  monkeypatch.setattr(
    sqlite3, 'connect', lambda *a, **k: connect(*a, **k, factory=Failing)
  )
  with pytest.raises(ValueError, match=words) as caught:
    _read(tmp_path / 'x.sqlite')
  assert error in str(caught.value)
  assert ('damaged' in str(caught.value)) == is_damage
  assert 'delete' not in str(caught.value)
