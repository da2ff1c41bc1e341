"""Checkpoints of a learning process: one file each, checked when read.

A checkpoint is a zip of numpy arrays, one for each leaf of the state, named by
its path. The checksums of zip reveal truncated and garbled files, and numpy
reads a checkpoint without TFF.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Union

import numpy as np
import tree
from absl import logging

from si_federated import files

_FORMAT = 1
_FILE_NAME = re.compile(r'round_(\d+)\.npz')
_WEIGHTS = 'state/global_model_weights'


class CheckpointError(ValueError):
  """A checkpoint can't be used; the message names it and the reason."""


class NotFiniteError(ValueError):
  """Weights can't be used because they are not finite."""


def check_finite(weights: Mapping[str, np.ndarray], path: str) -> None:
  """Checks weights that were read from a file.

  Args:
    weights: The weights by name; arrays that are not numbers are ignored.
    path: The file, for the message.

  Raises:
    NotFiniteError: If a weight is infinite or NaN.
  """
  bad = [
    name
    for name, value in weights.items()
    if np.issubdtype(value.dtype, np.inexact) and not np.isfinite(value).all()
  ]
  if bad:
    raise NotFiniteError(
      f'{path} has weights that are not finite, in {len(bad)} of '
      f'{len(weights)} arrays, the first of them {bad[0]}: its training '
      'diverged; use a run with lower learning rates, or an earlier checkpoint.'
    )


def _leaves(state: Any) -> dict[str, np.ndarray]:
  return {
    '/'.join(['state', *(str(key) for key in path)]): np.asarray(leaf)
    for path, leaf in tree.flatten_with_path(state)
  }


def _read(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  try:
    with np.load(path, allow_pickle=False) as archive:
      arrays = {name: archive[name] for name in archive.files}
    facts = json.loads(arrays.pop('facts').item())
  except files.ARCHIVE_ERRORS as error:
    files.raise_if_unreadable(error, path)
    raise CheckpointError(f'{path} is truncated or garbled: {error}') from error
  if facts.get('format') != _FORMAT:
    raise CheckpointError(
      f'{path} has format {facts.get("format")}; this version reads {_FORMAT}.'
    )
  return arrays, facts


def read_weights(path: str, kind: str = 'trainable') -> list[np.ndarray]:
  """Reads the model's weights from a checkpoint.

  Args:
    path: The checkpoint's file.
    kind: `'trainable'`, or `'non_trainable'` for frozen ones.

  Returns:
    The weights in the order of the variables' creation.

  Raises:
    CheckpointError: If the file is truncated, garbled or of another format.
    NotFiniteError: If a weight is infinite or NaN.
  """
  arrays, _ = _read(path)
  weights: dict[str, np.ndarray] = {}
  while (name := f'{_WEIGHTS}/{kind}/{len(weights)}') in arrays:
    weights[name] = arrays[name]
  check_finite(weights, path)
  return list(weights.values())


def read_list(path: str, name: str) -> list[np.ndarray]:
  """Reads a list of arrays from the state in a checkpoint.

  Args:
    path: The checkpoint's file.
    name: The list's name, which no other part of the state has.

  Raises:
    CheckpointError: If the file is truncated, garbled or of another format.
  """
  arrays, _ = _read(path)
  found = {}
  for key, value in arrays.items():
    *_, parent, last = ['', *key.split('/')]
    if parent == name:
      found[int(last)] = value
  return [found[index] for index in sorted(found)]


class Checkpoints:
  """The checkpoints in a folder."""

  def __init__(self, folder: Union[str, os.PathLike], keep: int = 3):
    """Initializes the folder's checkpoints.

    Args:
      folder: The folder; created when the first is saved.
      keep: The number of newest checkpoints to keep; at least 2, so that a
        fallback exists.

    Raises:
      ValueError: If `keep` is less than 2.
    """
    if keep < 2:
      raise ValueError(f'keep must be at least 2, found {keep}.')
    self._folder = os.fspath(folder)
    self._keep = keep

  def _paths(self) -> Iterator[tuple[int, str]]:
    """Yields round and file, the newest first."""
    if not os.path.isdir(self._folder):
      return
    found = []
    for name in os.listdir(self._folder):
      match = _FILE_NAME.fullmatch(name)
      if match:
        found.append((int(match[1]), os.path.join(self._folder, name)))
    yield from sorted(found, reverse=True)

  def newest(self) -> list[str]:
    """Returns the files of all checkpoints, the newest first."""
    return [path for _, path in self._paths()]

  def save(self, state: Any, round_num: int, facts: dict[str, Any]) -> str:
    """Saves the state after a round and removes old checkpoints.

    Args:
      state: The learning process's state.
      round_num: The number of rounds done.
      facts: Further JSON values and numpy arrays to keep with it.

    Returns:
      The file.
    """
    path = os.path.join(self._folder, f'round_{round_num:06d}.npz')
    facts = {**facts, 'format': _FORMAT, 'round_num': round_num}
    text = json.dumps(facts, default=np.ndarray.tolist)
    files.write_archive(
      path,
      {'facts': np.array(text), **_leaves(state)},
      np.lib.format.write_array,
    )
    for _, old in list(self._paths())[self._keep :]:
      os.unlink(old)
    return path

  def restore(self, initial_state: Any) -> tuple[Any, int, dict[str, Any]]:
    """Restores the newest whole checkpoint.

    Args:
      initial_state: The state of the process before its first round. It is
        returned if there is no checkpoint, and gives the result's structure.

    Returns:
      The state, the number of rounds done, and the facts kept with it.

    Raises:
      CheckpointError: If there are checkpoints but none is whole, or if the
        newest whole one belongs to another model or algorithm.
    """
    expected = _leaves(initial_state)
    garbled: list[str] = []
    for round_num, path in self._paths():
      try:
        arrays, facts = _read(path)
      except CheckpointError as error:
        logging.warning('%s Falling back to the checkpoint before it.', error)
        garbled.append(path)
        continue
      for name in sorted(set(expected) | set(arrays)):
        have = arrays[name].shape if name in arrays else 'nothing'
        want = expected[name].shape if name in expected else 'nothing'
        if have != want:
          raise CheckpointError(
            f'{path} belongs to another model or algorithm: {name} has {have}, '
            f'but {want} is expected.'
          )
      leaves = [
        arrays[name].astype(value.dtype, copy=False)[()]
        for name, value in expected.items()
      ]
      for bad in garbled:
        os.replace(bad, f'{bad}.garbled')
      return tree.unflatten_as(initial_state, leaves), round_num, facts
    if garbled:
      raise CheckpointError(
        f'No checkpoint in {self._folder} is whole; remove the folder of the '
        'experiment to start again.'
      )
    return initial_state, 0, {}
