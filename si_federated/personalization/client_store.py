"""One file per client, checked when read.

A file is a zip of numpy arrays, named by a digest of the client's name, which
may contain any character. It is written under a temporary name and renamed, so
that a client is stored whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, Union

import numpy as np

from si_federated import files

_FORMAT = 1


class StoreError(ValueError):
  """A file that can't be used; the message says which and why."""


class ClientStore:
  """The clients in a folder."""

  def __init__(self, folder: Union[str, os.PathLike]):
    """Initializes the store.

    Args:
      folder: The folder of the files; created with the first file.
    """
    self._folder = os.fspath(folder)

  def path(self, client_id: str) -> str:
    """Returns the path of a client's file, which need not exist."""
    digest = hashlib.sha256(client_id.encode()).hexdigest()[:32]
    return os.path.join(self._folder, f'{digest}.npz')

  def has(self, client_id: str) -> bool:
    """Returns whether a client has a file, whole or not."""
    return os.path.exists(self.path(client_id))

  def write(
    self, client_id: str, arrays: Mapping[str, np.ndarray], facts: Any
  ) -> None:
    """Writes or replaces a client's file.

    Args:
      client_id: The client's name.
      arrays: The arrays by name.
      facts: JSON values to store with them.
    """
    header = {'format': _FORMAT, 'client_id': client_id, 'facts': facts}
    files.write_archive(
      self.path(client_id),
      {'header': np.array(json.dumps(header)), **arrays},
      np.lib.format.write_array,
    )

  def read(
    self, client_id: str, shapes: Mapping[str, tuple[int, ...]]
  ) -> tuple[dict[str, np.ndarray], Any]:
    """Reads a client's file.

    Args:
      client_id: The client's name.
      shapes: The expected arrays and their shapes.

    Returns:
      The arrays and the facts.

    Raises:
      FileNotFoundError: If the client has no file.
      StoreError: If the file is truncated or garbled, or belongs to another
        client or model.
    """
    path = self.path(client_id)
    try:
      with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
      header = json.loads(arrays.pop('header').item())
      version, owner = header['format'], header['client_id']
      facts = header['facts']
    except FileNotFoundError:
      raise
    except files.ARCHIVE_ERRORS as error:
      files.raise_if_unreadable(error, path)
      raise StoreError(
        f'{path} is truncated or garbled ({error}); delete it to personalise '
        f'client {client_id!r} again.'
      ) from error
    if version != _FORMAT or owner != client_id:
      raise StoreError(
        f'{path} is of client {owner!r} in format {version}, but client '
        f'{client_id!r} in format {_FORMAT} is expected; delete it.'
      )
    for name in sorted(set(arrays) | set(shapes)):
      have = arrays[name].shape if name in arrays else 'nothing'
      want = tuple(shapes[name]) if name in shapes else 'nothing'
      if have != want:
        raise StoreError(
          f'{path} belongs to another model: {name} has {have}, but {want} is '
          'expected; delete it.'
        )
    return arrays, facts
