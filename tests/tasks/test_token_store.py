"""Building and opening stores: order of words, faults, kills, two at once."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from si_federated.tasks.token_store import (
  TokenStoreError,
  build_store,
  open_or_build,
  open_store,
)


def fill(writer):
  writer.add_client('train', 'a', [b'x y x', b'y'])
  writer.add_client('train', 'b', [b'y z', b'w'])
  writer.add_client('train', 'nobody', [])
  writer.add_client('validation', 'c', [b'new y'])
  writer.add_client('test', 'd\xe9', [b'x', b'z  z'])


@pytest.fixture
def folder(tmp_path):
  return str(tmp_path / 'store')


def test_words_by_clients_then_bytes(folder):
  store = build_store(folder, fill, key='k')
  # y has two clients, the others one; x occurs more often, without effect.
  assert store.words == ('y', 'w', 'x', 'z')
  train = store.splits['train']
  assert train.tokens.tolist() == [2, 0, 2, 0, 0, 3, 1]
  assert train.sentence_offsets.tolist() == [0, 3, 4, 6, 7]
  assert train.client_offsets.tolist() == [0, 2, 4]
  # Words that only occur in other splits, and empty words, have no rank.
  assert store.splits['validation'].tokens.tolist() == [65_535, 0]
  assert store.splits['test'].tokens.tolist() == [2, 3, 65_535, 3]
  assert bytes(store.splits['test'].client_ids).decode() == 'd\xe9'
  assert store.meta['num_empty_clients'] == 1
  counts = np.fromfile(os.path.join(folder, 'word_counts.i8'), '<i8')
  assert counts.tolist() == [2, 1, 1, 1]


def test_given_words_keep_their_order(folder):
  store = build_store(folder, fill, key='k', words=['z', 'x'])
  assert store.words == ('z', 'x')
  assert store.splits['train'].tokens.tolist() == [
    1, 65_535, 1, 65_535, 65_535, 0, 65_535,
  ]  # fmt: skip


def test_ranking_in_chunks_gives_the_same(folder, monkeypatch):
  monkeypatch.setattr('si_federated.tasks.store_writer._CHUNK', 8)
  store = build_store(folder, fill, key='k')
  assert store.splits['train'].tokens.tolist() == [2, 0, 2, 0, 0, 3, 1]


def test_many_words(folder):
  def many(writer):
    words = [b'w%05d' % i for i in range(70_000)]
    writer.add_client('train', 'a', [b' '.join(words)])
    writer.add_client('train', 'b', [words[69_999]])

  store = build_store(folder, many, key='k')
  assert len(store.words) == 65_534
  assert store.words[0] == 'w69999'
  tokens = store.splits['train'].tokens
  assert tokens[0] == 1 and tokens[69_999] == 0 and tokens[69_000] == 65_535


def test_nothing_is_left_of_a_build_that_fails(folder):
  def broken(writer):
    fill(writer)
    raise ValueError('no good')

  with pytest.raises(ValueError, match='no good'):
    build_store(folder, broken, key='k')
  assert os.listdir(os.path.dirname(folder)) == []


def all_files():
  yield 'words.txt'
  for split in ('train', 'validation', 'test'):
    for name in (
      'tokens.u2',
      'sentence_offsets.i8',
      'client_offsets.i8',
      'client_ids.bin',
      'client_id_offsets.i8',
    ):
      yield f'{split}/{name}'


@pytest.mark.parametrize('name', list(all_files()))
def test_truncated_file_is_noticed_and_rebuilt(folder, name, caplog):
  build_store(folder, fill, key='k')
  path = os.path.join(folder, name)
  size = os.path.getsize(path)
  os.truncate(path, size - 1)
  with pytest.raises(TokenStoreError, match=f'{size - 1} bytes instead of'):
    open_store(folder, key='k')
  store = open_or_build(folder, fill, key='k')
  assert 'Rebuilding' in caplog.text
  assert store.splits['train'].tokens.tolist() == [2, 0, 2, 0, 0, 3, 1]
  assert os.listdir(os.path.dirname(folder)) == ['store']


@pytest.mark.parametrize(
  'content', ['', '{', '[]', '{}', '{"format_version": 99}', '\x00\xff']
)
def test_garbled_meta_is_reported_in_one_sentence(folder, content):
  build_store(folder, fill, key='k')
  with open(os.path.join(folder, 'meta.json'), 'w', encoding='latin-1') as file:
    file.write(content)
  with pytest.raises(TokenStoreError) as caught:
    open_store(folder)
  assert '\n' not in str(caught.value)
  assert open_or_build(folder, fill, key='k').words


def test_contradicting_counts_are_noticed(folder):
  build_store(folder, fill, key='k')
  path = os.path.join(folder, 'meta.json')
  with open(path) as file:
    meta = json.load(file)
  meta['splits']['train']['clients'] = 3
  with open(path, 'w') as file:
    json.dump(meta, file)
  with pytest.raises(TokenStoreError, match='disagree'):
    open_store(folder)


def test_another_key_is_built_and_the_same_is_not(folder):
  calls = []

  def counted(writer):
    calls.append(1)
    fill(writer)

  for key in ({'a': [1, 2]}, {'a': [1, 2]}, {'a': [1, 3]}):
    open_or_build(folder, counted, key=key)
  assert len(calls) == 2
  assert open_store(folder).meta['key'] == {'a': [1, 3]}


def test_folder_that_cannot_be_made_is_reported_in_one_sentence(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='cannot be written.*--data_dir'):
    open_or_build(str(tmp_path / 'file' / 'store'), fill, key='k')


_SLOW_BUILDER = """
import sys, time
from si_federated.tasks.token_store import build_store
def fill(writer):
  for split in ('train', 'validation', 'test'):
    for i in range(20):
      writer.add_client(split, f'{split}{i}', [b'a b c'] * 5)
  print('ready', flush=True)
  sys.stdin.readline()
store = build_store(sys.argv[1], fill, key='k')
print(len(store.splits['train'].client_offsets) - 1, flush=True)
"""


@pytest.fixture
def start_builder(folder):
  started = []

  def start():
    process = subprocess.Popen(
      [sys.executable, '-c', textwrap.dedent(_SLOW_BUILDER), folder],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()
    process.communicate()


def test_a_killed_build_leaves_no_store_and_is_cleaned_up(
  folder, start_builder
):
  process = start_builder()
  assert process.stdout.readline() == 'ready\n'
  parent = os.path.dirname(folder)
  (temporary,) = os.listdir(parent)
  # While the builder lives, other builds do not touch its folder.
  build_store(folder + '2', fill, key='k')
  assert temporary in os.listdir(parent)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert temporary in os.listdir(parent)
  with pytest.raises(TokenStoreError):
    open_store(folder)
  build_store(folder, fill, key='k')
  assert sorted(os.listdir(parent)) == ['store', 'store2']


def test_two_builders_at_once_both_end_well(folder, start_builder):
  builders = [start_builder(), start_builder()]
  for process in builders:
    assert process.stdout.readline() == 'ready\n'
  for process in builders:
    process.stdin.write('\n')
    process.stdin.flush()
  for process in builders:
    assert process.stdout.readline() == '20\n'
    assert process.wait() == 0
  assert os.listdir(os.path.dirname(folder)) == ['store']


def test_folders_without_a_lock_are_removed_when_old(folder, monkeypatch):
  parent = os.path.dirname(folder)
  left = os.path.join(parent, '.store.building-abc')
  os.mkdir(left)
  build_store(folder, fill, key='k')
  assert os.path.isdir(left)  # It may be about to get its lock.
  old = time.time() - 2 * 3600
  os.utime(left, (old, old))
  build_store(folder + '2', fill, key='k')
  assert not os.path.exists(left)


def test_without_locks_a_build_under_way_is_left_alone(folder, monkeypatch):
  def fail(file, operation):
    del file, operation
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr('fcntl.flock', fail)
  left = os.path.join(os.path.dirname(folder), '.store.building-abc')
  os.mkdir(left)
  with open(os.path.join(left, '.lock'), 'w'):
    pass
  build_store(folder, fill, key='k')
  assert os.path.isdir(left)
  old = time.time() - 2 * 3600
  os.utime(left, (old, old))
  build_store(folder + '2', fill, key='k')
  assert not os.path.exists(left)
