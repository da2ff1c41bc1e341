"""Records rounds of clients in files, to replay with nothing but JAX.

A recording is a folder: `recording.json` lists rounds; arrays and programs are
files named by their contents; and it includes the worker, `replay.py` and the
modules that they import. `jax_replay.py` reads it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from si_federated import files
from si_federated.runtime import jax_replay, jax_worker

# A recording can be replayed on devices of these platforms.
PLATFORMS = ('cpu', 'cuda')


class Recording:
  """A recording that grows by one round at a time."""

  def __init__(self, folder: str | os.PathLike):
    """Starts a recording.

    Args:
      folder: Its folder, created if missing.

    Raises:
      ValueError: If the folder is not empty.
    """
    self.folder = pathlib.Path(folder).expanduser()
    self._index: dict[str, Any] = {
      'version': jax_replay.VERSION,
      'rounds': [],
    }
    if self.folder.exists() and any(self.folder.iterdir()):
      raise ValueError(f'{self.folder} is not empty: record into a new folder.')
    for name, source in (
      ('replay.py', jax_replay.__file__),
      ('jax_worker.py', jax_worker.__file__),
    ):
      self.add_file(name, pathlib.Path(source).read_bytes())
    self._write_index()

  def add_file(self, name: str, content: bytes) -> None:
    """Writes a file, such as a module that `replay.py` imports."""
    files.write_atomically(self.folder / name, content)

  def add_array(self, array: np.ndarray) -> str:
    """Stores an array and returns its name."""
    content = io.BytesIO()
    np.save(content, np.asarray(array), allow_pickle=False)
    return self._keep(content.getvalue(), 'npy')

  def add_arrays(self, arrays: Sequence[np.ndarray]) -> list[str]:
    """Stores arrays and returns their names."""
    return [self.add_array(array) for array in arrays]

  def add_program(self, program: bytes) -> str:
    """Stores an exported program and returns its name."""
    return self._keep(program, 'bin')

  def _keep(self, content: bytes, suffix: str) -> str:
    digest = hashlib.sha256(content).hexdigest()[: jax_replay.DIGITS]
    name = f'contents/{digest}.{suffix}'
    if not (self.folder / name).exists():
      self.add_file(name, content)
    return name

  def add_round(self, entry: Mapping[str, Any]) -> None:
    """Adds a round whose arrays and programs are already stored."""
    self._index['rounds'].append(dict(entry))
    self._write_index()

  def extend_round(self, **more: Any) -> None:
    """Adds facts to the last round."""
    self._index['rounds'][-1].update(more)
    self._write_index()

  def _write_index(self) -> None:
    text = json.dumps(self._index, indent=1) + '\n'
    self.add_file(jax_replay.INDEX, text.encode())
