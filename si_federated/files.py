"""Writing files so that none is ever seen half written."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, Union


@contextlib.contextmanager
def atomic_file(path: Union[str, os.PathLike]) -> Iterator[BinaryIO]:
  """Opens a file under a temporary name, renamed when the block has ended.

  Args:
    path: Where the file will be; its folder is made if missing.

  Yields:
    The open binary file. If the block raises, the file goes away and what was
    at `path` before stays.
  """
  path = os.fspath(path)
  folder = os.path.dirname(path) or '.'
  os.makedirs(folder, exist_ok=True)
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
    # mkstemp's files are for their owner alone.
    os.chmod(temporary, 0o666 & ~umask)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def write_atomically(
  path: Union[str, os.PathLike], content: Union[str, bytes]
) -> None:
  """Writes a whole file at once.

  Args:
    path: Where the file will be.
    content: Text (written as UTF-8) or bytes.
  """
  with atomic_file(path) as file:
    file.write(content.encode() if isinstance(content, str) else content)


def cache_folder() -> str:
  """Returns the folder for what takes long to make.

  It is `si_federated` in `$XDG_CACHE_HOME` or `~/.cache`.
  """
  base = os.environ.get('XDG_CACHE_HOME', '')
  if not os.path.isabs(base):  # What the XDG specification asks for.
    base = os.path.join(os.path.expanduser('~'), '.cache')
  return os.path.join(base, 'si_federated')
