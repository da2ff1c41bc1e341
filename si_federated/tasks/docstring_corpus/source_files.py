"""The places of the files that tasks read, and of their stores."""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Callable

from si_federated import files


def tff_folder() -> str:
  """Returns the folder into which TFF downloads its data."""
  return os.path.join(os.path.expanduser('~'), '.tff')


def tff_database(
  name: str, load: Callable[[], object], *, what: str, advice: str
) -> str:
  """Returns the path of a TFF data file, downloaded if it is missing.

  Args:
    name: The file's name.
    load: Makes TFF download it.
    what: The file's content, for the message.
    advice: The end of the message, about what to do without the file.

  Returns:
    The path.

  Raises:
    ValueError: It is missing and cannot be downloaded.
  """
  path = os.path.join(tff_folder(), name)
  if os.path.isfile(path):
    return path
  try:
    load()
  except (Exception, KeyboardInterrupt) as error:
    # TFF would take a partial file for the whole one next time.
    with contextlib.suppress(OSError):
      os.unlink(path)
    if isinstance(error, KeyboardInterrupt):
      raise
    raise ValueError(
      f'{what} cannot be downloaded ({error}); {advice}.'
    ) from error
  return path


def stamp(path: str) -> list[int]:
  """Returns the size and time of a file, which change when the file does."""
  status = os.stat(path)
  return [status.st_size, status.st_mtime_ns]


def store_folder(path: str, *, suffix: str, task: str) -> str:
  """Returns the folder for the store made from a file.

  Args:
    path: The file.
    suffix: Replaces the extension of the file in the name of the folder.
    task: The name of the task, a prefix of the folder's name in the user's
      cache folder. The store goes there if the file's folder is read-only.

  Returns:
    The folder, which need not exist.
  """
  path = os.path.realpath(path)
  adjacent = os.path.splitext(path)[0] + suffix
  if os.path.isdir(adjacent) or os.access(os.path.dirname(path), os.W_OK):
    return adjacent
  name = hashlib.sha256(os.fsencode(adjacent)).hexdigest()[:16]
  return os.path.join(files.cache_folder(), f'{task}-{name}')
