"""Atomic writing of files, locks, and errors of reading."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, BinaryIO, Union

# Errors of a machine, which do not depend on the content of a file.
_OF_MACHINES = frozenset(
  [
    errno.EACCES, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.ENOSPC, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT,
  ]
)  # fmt: skip

# What numpy and zipfile raise for a truncated or garbled `.npz` file.
ARCHIVE_ERRORS = (
  OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError,
  zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def raise_if_unreadable(
  error: BaseException, path: Union[str, os.PathLike]
) -> None:
  """Distinguishes a file that cannot be read now from a damaged one.

  Args:
    error: The error raised by reading the file.
    path: The file.

  Raises:
    OSError: If the error does not depend on the file's content, such as an
      input/output error or too many open files; the message names the file.
  """
  if isinstance(error, OSError) and error.errno in _OF_MACHINES:
    raise OSError(
      f'{os.fspath(path)} cannot be read ({error.strerror}); correct that, and '
      'try again.'
    ) from error


# Temporary names, of `atomic_file` (from `mkstemp`) and of TFF.
_LEFTOVER = re.compile(r'\..+\.[a-z0-9_]{8}|.+\.csv_temp\d{4}')


@contextlib.contextmanager
def atomic_file(path: Union[str, os.PathLike]) -> Iterator[BinaryIO]:
  """Opens a file under a temporary name, and renames it after the block.

  Args:
    path: The final path of the file; its folder is made if missing.

  Yields:
    The open binary file. If the block raises, this file is removed and any
    earlier file at `path` stays.

  Raises:
    OSError: If it can't be written; the message names `path`, not the
      temporary file.
  """
  path = os.fspath(path)
  folder = os.path.dirname(path) or '.'
  os.makedirs(folder, exist_ok=True)
  with _naming(path):
    handle, temporary = tempfile.mkstemp(
      dir=folder, prefix=f'.{os.path.basename(path)}.'
    )
    try:
      with os.fdopen(handle, 'wb') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      umask = os.umask(0)
      os.umask(umask)
      # Only the owner can read the files of mkstemp.
      os.chmod(temporary, 0o666 & ~umask)
      os.replace(temporary, path)
    except BaseException:
      os.unlink(temporary)
      raise


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Names a file in system errors that name none, or its temporary copy."""
  try:
    yield
  except OSError as error:
    prefix = os.path.join(
      os.path.dirname(path) or '.', f'.{os.path.basename(path)}.'
    )
    if error.errno is not None and (
      error.filename is None or str(error.filename).startswith(prefix)
    ):
      raise OSError(
        error.errno, f'{os.strerror(error.errno)}; it was not written', path
      ) from error
    raise


def write_archive(
  path: Union[str, os.PathLike],
  arrays: Mapping[str, Any],
  write_array: Callable[[Any, Any], None],
) -> None:
  """Writes arrays to an `.npz` file atomically, in the format of `numpy.savez`.

  If the disk is full, `savez` leaves an open archive behind, whose destructor
  then complains that the file is closed.

  Args:
    path: The path of the file.
    arrays: The arrays by name.
    write_array: `numpy.lib.format.write_array`; this module needs no numpy.

  Raises:
    OSError: If it can't be written; the message names the file.
  """
  with atomic_file(path) as file, zipfile.ZipFile(file, 'w') as archive:
    for name, value in arrays.items():
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as entry:
        write_array(entry, value)


def write_atomically(
  path: Union[str, os.PathLike], content: Union[str, bytes]
) -> None:
  """Writes a whole file atomically.

  Args:
    path: The path of the file.
    content: Text (written as UTF-8) or bytes.
  """
  with atomic_file(path) as file:
    file.write(content.encode() if isinstance(content, str) else content)


def append(path: Union[str, os.PathLike], text: str) -> None:
  """Appends text to a file, all or nothing.

  A kill cannot interrupt the single write. If the disk is full, the part that
  was written is removed.

  Args:
    path: The path of the file, which must exist.
    text: What to append.

  Raises:
    OSError: If it can't be written; the message names the file.
  """
  path = os.fspath(path)
  with _naming(path), open(path, 'r+b', buffering=0) as file:
    end = file.seek(0, os.SEEK_END)
    data = text.encode()
    try:
      while data:
        data = data[file.write(data) :]
    except OSError:
      file.truncate(end)
      raise


def whole_lines(path: Union[str, os.PathLike]) -> list[str]:
  """Reads the lines of a file that `append` extends.

  Args:
    path: The path of the file.

  Returns:
    The lines with their ends. A last line without its end, which a machine that
    loses power can leave, is not among them.
  """
  with open(path, encoding='utf-8', newline='') as file:
    return [line for line in file if line.endswith('\n')]


def remove_leftovers(folder: Union[str, os.PathLike]) -> None:
  """Removes temporary files that killed processes left behind.

  Args:
    folder: The folder, to which no other process must be writing; it need not
      exist.
  """
  if not os.path.isdir(folder):
    return
  with os.scandir(os.fspath(folder)) as entries:
    for entry in entries:
      if _LEFTOVER.fullmatch(entry.name) and entry.is_file():
        os.unlink(entry.path)


class LockedError(ValueError):
  """Another process holds a lock."""


def lock_folder(folder: Union[str, os.PathLike], doing: str) -> IO[str]:
  """Locks a folder against other processes.

  Some network file systems have no locks; there it only warns, once a folder.

  Args:
    folder: The folder, made if missing.
    doing: The activity of a process with the lock, for the message before the
      folder's name, such as 'exporting to'.

  Returns:
    The file `.lock` of the folder; the lock lasts until it is closed.

  Raises:
    LockedError: If another process holds the lock.
    OSError: If the file can't be opened.
  """
  os.makedirs(folder, exist_ok=True)
  file = open(os.path.join(folder, '.lock'), 'w')  # noqa: SIM115
  try:
    has_locks = try_lock(file)
  except LockedError as error:
    file.close()
    raise LockedError(
      f'Another process is {doing} {os.fspath(folder)}; wait for it.'
    ) from error
  except BaseException:
    file.close()
    raise
  if not has_locks:
    _warn_of_no_locks(os.path.abspath(folder))
  return file


def try_lock(file: IO[str]) -> bool:
  """Locks an open file against other processes.

  Args:
    file: The file; the lock lasts until it is closed.

  Returns:
    Whether there are locks where the file is.

  Raises:
    LockedError: If another process holds the lock.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise LockedError(f'{file.name} is locked by another process.') from error
  except OSError:
    return False
  return True


@functools.cache
def _warn_of_no_locks(folder: str) -> None:
  logging.warning(
    '%s has no file locks, like some network file systems: make sure that no '
    'other process writes there.',
    folder,
  )


def cache_folder() -> str:
  """Returns the folder for results that take long to compute.

  It is `si_federated` in `$XDG_CACHE_HOME` or `~/.cache`. If that is not
  writable, it is a temporary folder of this user, which a warning names.
  """
  base = os.environ.get('XDG_CACHE_HOME', '')
  if not os.path.isabs(base):  # As the XDG specification requires.
    base = os.path.join(os.path.expanduser('~'), '.cache')
  folder = os.path.join(base, 'si_federated')
  if os.path.isabs(folder) and _is_writable(folder):
    return folder
  return _temporary_cache(folder)


def _is_writable(folder: str) -> bool:
  """Whether a folder can be written to, or created if it is missing."""
  while not os.path.lexists(folder):
    folder = os.path.dirname(folder)
  return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


@functools.cache
def _temporary_cache(instead_of: str) -> str:
  folder = os.path.join(
    tempfile.gettempdir(), f'si_federated-{os.getuid()}', 'cache'
  )
  # Other users can write to the folder of temporary files, too.
  parent = os.path.dirname(folder)
  os.makedirs(parent, mode=0o700, exist_ok=True)
  if os.stat(parent).st_uid != os.getuid():
    folder = tempfile.mkdtemp(prefix='si_federated-')
  logging.warning(
    '%s cannot be written; caches for later runs go to %s (set '
    'XDG_CACHE_HOME to name another folder).',
    instead_of,
    folder,
  )
  return folder
