"""The store of clients and its faults."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from si_federated.personalization import client_store

_ARRAYS = {
  'expert/0': np.arange(6, dtype=np.float32).reshape(2, 3),
  'gate/bias': np.zeros([1], np.float32),
}
_SHAPES = {name: array.shape for name, array in _ARRAYS.items()}
_NAMES = ['plain', 'a/b/../c', 'ünï\ncode', 'x' * 5000, '']


@pytest.fixture(name='store')
def _store(tmp_path):
  return client_store.ClientStore(tmp_path / 'clients')


@pytest.mark.parametrize('name', _NAMES, ids=repr)
def test_what_is_written_is_read(store, name, tmp_path):
  store.write(name, _ARRAYS, {'results': [1.5, None, 'x']})
  arrays, facts = store.read(name, _SHAPES)
  assert facts == {'results': [1.5, None, 'x']}
  for key, array in _ARRAYS.items():
    np.testing.assert_array_equal(arrays[key], array)
    assert arrays[key].dtype == array.dtype
  # Any name gives one file in the folder, and nothing else.
  assert [p.name for p in (tmp_path / 'clients').iterdir()] == [
    os.path.basename(store.path(name))
  ]


def test_clients_do_not_share_a_file(store):
  assert len({store.path(name) for name in _NAMES}) == len(_NAMES)


def test_a_client_without_a_file(store):
  assert not store.has('nobody')
  with pytest.raises(FileNotFoundError):
    store.read('nobody', _SHAPES)


@pytest.mark.parametrize('size', [0, 1, 50, -1])
def test_truncated(store, size):
  store.write('x', _ARRAYS, {})
  with open(store.path('x'), 'rb') as file:
    whole = file.read()
  with open(store.path('x'), 'wb') as file:
    file.write(whole[:size])
  with pytest.raises(client_store.StoreError, match='truncated or garbled'):
    store.read('x', _SHAPES)


def test_a_file_that_cannot_be_read_now_is_not_garbled(store, monkeypatch):
  store.write('x', _ARRAYS, {})

  def fail(*unused_args, **unused_kwargs):
    raise OSError(errno.EMFILE, 'Too many open files')

  monkeypatch.setattr(np, 'load', fail)
  with pytest.raises(OSError, match='Too many open files') as caught:
    store.read('x', _SHAPES)
  assert 'delete' not in str(caught.value)


def test_garbled(store):
  store.write('x', _ARRAYS, {})
  with open(store.path('x'), 'r+b') as file:
    start = file.read().index(_ARRAYS['expert/0'].tobytes())
    file.seek(start)
    file.write(b'\xff' * 8)
  with pytest.raises(client_store.StoreError, match='truncated or garbled'):
    store.read('x', _SHAPES)


def test_no_pickle(store):
  os.makedirs(os.path.dirname(store.path('x')))
  with open(store.path('x'), 'wb') as file:
    np.savez(file, header=np.array([{'a': 1}], dtype=object))
  with pytest.raises(client_store.StoreError, match='garbled'):
    store.read('x', _SHAPES)


@pytest.mark.parametrize(
  'shapes',
  [
    {**_SHAPES, 'expert/0': (3, 2)},
    {**_SHAPES, 'expert/1': (1,)},
    {'expert/0': (2, 3)},
  ],
)
def test_of_another_model(store, shapes):
  store.write('x', _ARRAYS, {})
  with pytest.raises(client_store.StoreError, match='belongs to another model'):
    store.read('x', shapes)


def test_of_another_client(store):
  store.write('x', _ARRAYS, {})
  os.rename(store.path('x'), store.path('y'))
  with pytest.raises(client_store.StoreError, match="of client 'x'"):
    store.read('y', _SHAPES)


def test_a_failed_write_leaves_what_was_there(store, monkeypatch, tmp_path):
  store.write('x', _ARRAYS, {'turn': 1})

  def fail(*args, **kwargs):
    raise OSError('disk full')

  monkeypatch.setattr(np.lib.format, 'write_array', fail)
  with pytest.raises(OSError, match='disk full'):
    store.write('x', _ARRAYS, {'turn': 2})
  assert store.read('x', _SHAPES)[1] == {'turn': 1}
  assert len(list((tmp_path / 'clients').iterdir())) == 1
