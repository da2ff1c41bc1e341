"""Builds and opens folders of token arrays, atomically."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from typing import Any, Callable, Iterable, Mapping, Sequence, TypeVar

import tqdm

from si_federated import files
from si_federated.tasks.store_writer import (
  FORMAT_VERSION,
  META_NAME,
  SPLITS,
  WORDS_NAME,
  StoreWriter,
)
from si_federated.tasks.token_arrays import TokenArrays

_T = TypeVar('_T')
_LOGGER = logging.getLogger(__name__)
_LOCK = 'building.lock'
_BUILDING = '.building-'
# A temporary folder without a lock file is stale after this time.
_STALE_SECONDS = 3600.0


class TokenStoreError(ValueError):
  """A folder does not contain a complete store of the expected kind."""


@dataclasses.dataclass(frozen=True)
class TokenStore:
  """An open store: the word list and the arrays of the three splits."""

  folder: str
  words: tuple[str, ...]
  splits: Mapping[str, TokenArrays]
  meta: Mapping[str, Any]


def open_store(folder: str, *, key: Any = None) -> TokenStore:
  """Opens a complete store; reads only its metadata and word list.

  Args:
    folder: A folder that `build_store` wrote.
    key: The key that the store must have; None accepts any.

  Returns:
    The store.

  Raises:
    TokenStoreError: The folder is missing, has another format or key, or
      contains a file whose size has changed.
  """
  try:
    with open(os.path.join(folder, META_NAME), encoding='utf-8') as file:
      meta = json.load(file)
    if meta['format_version'] != FORMAT_VERSION:
      raise TokenStoreError(f'{folder} has a token store of another format.')
    for name, size in meta['sizes'].items():
      actual = os.path.getsize(os.path.join(folder, name))
      if actual != size:
        raise TokenStoreError(
          f'{os.path.join(folder, name)} has {actual} bytes instead of {size}: '
          'the token store is damaged; delete the folder to rebuild it.'
        )
    if key is not None and meta['key'] != json.loads(json.dumps(key)):
      raise TokenStoreError(f'{folder} was built from other data.')
    with open(os.path.join(folder, WORDS_NAME), encoding='utf-8') as file:
      words = tuple(file.read().split('\n')[:-1])
    splits = {
      split: TokenArrays.map_folder(os.path.join(folder, split))
      for split in SPLITS
    }
    for split, arrays in splits.items():
      expected = meta['splits'][split]
      found = (len(arrays.client_id_offsets) - 1, len(arrays.tokens))
      if found != (expected['clients'], expected['words']):
        raise TokenStoreError(
          f'{META_NAME} and the {split} files in {folder} disagree; delete the '
          'folder to rebuild it.'
        )
  except TokenStoreError:
    raise
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise TokenStoreError(
      f'{folder} has no complete token store ({error}).'
    ) from None
  return TokenStore(folder, words, splits, meta)


def try_open_store(folder: str, *, key: Any = None) -> TokenStore | None:
  """Returns the store, or None where `open_store` would raise."""
  with contextlib.suppress(TokenStoreError):
    return open_store(folder, key=key)
  return None


def build_store(
  folder: str,
  fill: Callable[[StoreWriter], None],
  *,
  key: Any,
  words: Sequence[str] | None = None,
) -> TokenStore:
  """Builds a store under a temporary name and renames it when complete.

  A killed build leaves only a temporary folder, which the next build removes.
  If two builds run concurrently, the first to finish is kept and both return
  it.

  Args:
    folder: The folder of the store; a store with another key is replaced.
    fill: Adds all clients to the given writer.
    key: A JSON value that identifies the source of the store.
    words: The words by rank; None ranks the words of the training split.

  Returns:
    The opened store.

  Raises:
    OSError: The folder cannot be written.
  """
  folder = os.path.abspath(folder)
  parent, name = os.path.split(folder)
  os.makedirs(parent, exist_ok=True)
  _remove_leftovers(parent)
  temporary = tempfile.mkdtemp(prefix=f'.{name}{_BUILDING}', dir=parent)
  try:
    with _held_lock(temporary):
      writer = StoreWriter(temporary, words)
      try:
        fill(writer)
        writer.finish(key)
      finally:
        writer.close()
      os.unlink(os.path.join(temporary, _LOCK))
      _put_in_place(temporary, folder, key)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return open_store(folder, key=key)


def open_or_build(
  folder: str,
  fill: Callable[[StoreWriter], None],
  *,
  key: Any,
  words: Sequence[str] | None = None,
) -> TokenStore:
  """Opens a store, or builds it if it is missing, damaged or outdated.

  Args and Returns are those of `build_store`.

  Raises:
    ValueError: The store cannot be written, or `fill` raises it.
  """
  try:
    return open_store(folder, key=key)
  except TokenStoreError as error:
    if os.path.exists(folder):
      _LOGGER.warning('%s Rebuilding it.', error)
  try:
    return build_store(folder, fill, key=key, words=words)
  except OSError as error:
    raise ValueError(
      f'The token store {folder} cannot be written '
      f'({error.strerror or error}); name a folder with free space by '
      '--data_dir or XDG_CACHE_HOME.'
    ) from error


def progress_bar(
  items: Iterable[_T], *, total: int, label: str
) -> Iterable[_T]:
  """Shows progress on stderr, less often if it is not a terminal."""
  interval = 0.2 if sys.stderr.isatty() else 10.0
  return tqdm.tqdm(items, desc=label, total=total, mininterval=interval)


@contextlib.contextmanager
def _held_lock(folder: str):
  """Marks a temporary folder as in use by this process."""
  path = os.path.join(folder, _LOCK)
  with open(path + '.new', 'w') as file:
    files.try_lock(file)
    os.rename(path + '.new', path)  # Visible only once locked.
    yield


def _remove_leftovers(parent: str) -> None:
  """Deletes temporary folders of builds that died."""
  for name in os.listdir(parent):
    if not name.startswith('.') or _BUILDING not in name:
      continue
    path = os.path.join(parent, name)
    with contextlib.suppress(OSError, files.LockedError):
      try:
        with open(os.path.join(path, _LOCK)) as file:
          is_known = files.try_lock(file)
      except FileNotFoundError:
        is_known = False
      # Without a lock, only its age shows whether a build is under way.
      if is_known or time.time() - os.path.getmtime(path) >= _STALE_SECONDS:
        shutil.rmtree(path, ignore_errors=True)


def _put_in_place(temporary: str, folder: str, key: Any) -> None:
  """Renames a complete store unless another build finished first."""
  for _ in range(20):
    try:
      os.rename(temporary, folder)
      return
    except OSError:
      if not os.path.lexists(folder):
        raise
    if try_open_store(folder, key=key) is not None:
      return
    # The existing folder is damaged or has another key: move it and retry.
    away = tempfile.mkdtemp(
      prefix=f'.{os.path.basename(folder)}{_BUILDING}',
      dir=os.path.dirname(folder),
    )
    with contextlib.suppress(OSError):
      os.rename(folder, os.path.join(away, 'replaced'))
    shutil.rmtree(away, ignore_errors=True)
  raise OSError(f'{folder} cannot be replaced; delete it and try again.')
