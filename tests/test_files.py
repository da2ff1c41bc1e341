from __future__ import annotations

import errno
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from si_federated import files


def test_writes_text_and_bytes(tmp_path):
  files.write_atomically(tmp_path / 'new' / 'a', 'é\n')
  files.write_atomically(tmp_path / 'b', b'\x00')
  assert (tmp_path / 'new' / 'a').read_bytes() == 'é\n'.encode()
  assert (tmp_path / 'b').read_bytes() == b'\x00'


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
  path = tmp_path / 'a'
  files.write_atomically(path, 'old')
  with pytest.raises(RuntimeError), files.atomic_file(path) as file:
    file.write(b'half')
    raise RuntimeError
  assert path.read_text() == 'old'
  assert os.listdir(tmp_path) == ['a']


def test_the_tests_have_a_cache_of_their_own():
  code = 'from si_federated import files; print(files.cache_folder())'
  done = subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  )
  folder = files.cache_folder()
  assert done.stdout == f'{folder}\n'
  assert pathlib.Path(folder).parent.name.startswith('si_federated-tests-')


def test_cache_folder(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert files.cache_folder() == str(tmp_path / 'si_federated')
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  for value in ('', 'relative/path'):
    monkeypatch.setenv('XDG_CACHE_HOME', value)
    expected = tmp_path / 'home' / '.cache' / 'si_federated'
    assert files.cache_folder() == str(expected)
  assert os.listdir(tmp_path) == []


def test_without_a_home_the_cache_is_temporary(monkeypatch, tmp_path, caplog):
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
  # Nothing can be made below a file, and '~' is unknown without a home.
  blocked = tmp_path / 'file'
  blocked.write_text('')
  expected = str(tmp_path / f'si_federated-{os.getuid()}' / 'cache')
  monkeypatch.setenv('HOME', str(blocked))
  assert files.cache_folder() == expected
  assert f'{blocked}/.cache/si_federated cannot be written' in caplog.text
  monkeypatch.setenv('HOME', '~')
  assert files.cache_folder() == expected
  assert 'XDG_CACHE_HOME' in caplog.messages[-1]


def test_a_held_lock_raises(tmp_path):
  folder = tmp_path / 'new'
  message = f'Another process is writing to {folder}; wait for it.'
  with (
    files.lock_folder(folder, 'writing to'),
    pytest.raises(files.LockedError, match=re.escape(message)),
  ):
    files.lock_folder(folder, 'writing to')
  files.lock_folder(folder, 'writing to').close()


@pytest.mark.parametrize('code', [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_folder_without_locks_is_warned_of_once(
  tmp_path, monkeypatch, caplog, code
):
  def fail(file, operation):
    del file, operation
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr('fcntl.flock', fail)
  files.lock_folder(tmp_path, 'writing to').close()
  files.lock_folder(tmp_path, 'writing to').close()
  (message,) = caplog.messages
  assert message.startswith(f'{tmp_path} has no file locks')


def test_faults_of_the_machine_are_not_those_of_a_file():
  with pytest.raises(OSError, match=r'x\.npz cannot be read \(Input/output'):
    files.raise_if_unreadable(OSError(errno.EIO, 'Input/output error'), 'x.npz')
  for error in (
    ValueError('bad'), OSError('not a file of numpy'),
    OSError(errno.EINVAL, 'Invalid argument'),
  ):  # fmt: skip
    files.raise_if_unreadable(error, 'x.npz')


_FULL_DISK = """
import resource, signal, sys
import numpy as np
from si_federated import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
path, kind = sys.argv[1:]
try:
  if kind == 'archive':
    files.write_archive(path, {'a': np.zeros(100_000), 'b': np.zeros(9)},
      np.lib.format.write_array)
  elif kind == 'appended':
    files.append(path, 'x' * 800_000)
  else:
    files.write_atomically(path, bytes(800_000))
except OSError as error:
  print(error)
"""


@pytest.mark.parametrize('kind', ['archive', 'bytes', 'appended'])
def test_a_full_disk_is_reported_in_one_sentence_with_the_path(tmp_path, kind):
  path = tmp_path / 'a.npz'
  path.write_text('old')
  result = subprocess.run(
    [sys.executable, '-c', _FULL_DISK, str(path), kind],
    capture_output=True,
    check=True,
    text=True,
  )
  assert result.stdout == (
    f"[Errno 27] File too large; it was not written: '{path}'\n"
  )
  assert result.stderr == ''
  assert path.read_text() == 'old'
  assert os.listdir(tmp_path) == ['a.npz']


def test_an_archive_is_read_by_numpy(tmp_path):
  arrays = {'a/0': np.arange(3, dtype=np.int16), 'b': np.array('word')}
  files.write_archive(tmp_path / 'a.npz', arrays, np.lib.format.write_array)
  with np.load(tmp_path / 'a.npz', allow_pickle=False) as found:
    assert found.files == ['a/0', 'b']
    assert found['a/0'].dtype == np.int16
    assert found['a/0'].tolist() == [0, 1, 2]
    assert found['b'].item() == 'word'


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
  kept = ['.lock', '.hidden', 'a.npz', '.b.npz', 'round.abcdefgh', 'x_temp1234']
  left = ['.a.npz.abc_d3fg', '.metrics.csv.abcdefgh', 'metrics.csv_temp1234']
  for name in (*kept, *left):
    (tmp_path / name).write_text('')
  (tmp_path / '.folder.abcdefgh').mkdir()
  files.remove_leftovers(tmp_path)
  assert sorted(os.listdir(tmp_path)) == sorted([*kept, '.folder.abcdefgh'])
  files.remove_leftovers(tmp_path / 'missing')


def test_the_names_of_unfinished_files_are_those_of_leftovers(tmp_path):
  with files.atomic_file(tmp_path / 'a.npz') as file:
    file.write(b'x')
    (name,) = os.listdir(tmp_path)
    files.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []
    (tmp_path / name).write_text('')
