"""Strategies on disk, and a cache of those that are slow to optimise."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, Optional, Union

import numpy as np

from si_federated.privacy import strategies

_Path = Union[str, os.PathLike]
# The version of each kind's optimiser, if not 1; raise it with each change.
_VERSIONS = {'blt': 2}


def save(path: _Path, strategy: strategies.Strategy) -> None:
  """Writes a strategy to an `.npz` file, atomically.

  Args:
    path: The file.
    strategy: Any strategy except a tree, which has no matrix to store.
  """
  # In memory first: on a full disk `savez` would leave an open archive behind.
  content = io.BytesIO()
  np.savez(content, **_arrays(strategy))
  path = os.fspath(path)
  folder = os.path.dirname(path) or '.'
  os.makedirs(folder, exist_ok=True)
  # `files.remove_leftovers` knows such names.
  handle, temporary = tempfile.mkstemp(
    dir=folder, prefix=f'.{os.path.basename(path)}.'
  )
  try:
    with os.fdopen(handle, 'wb') as file:
      file.write(content.getbuffer())
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    os.unlink(temporary)
    reason = f'{error.strerror}; the strategy was not written'
    raise OSError(error.errno, reason, path) from error
  except BaseException:
    os.unlink(temporary)
    raise


def _arrays(strategy: strategies.Strategy) -> dict[str, Any]:
  """Returns the arrays from which `load` recovers a strategy."""
  arrays: dict[str, Any] = {'kind': np.array(strategy.kind)}
  if isinstance(strategy, strategies.Tree):
    raise ValueError('A tree has no matrix to write to a file.')
  if isinstance(strategy, strategies.Blt):
    arrays.update(
      decay=strategy.decay, scale=strategy.scale, rounds=strategy.rounds
    )
  elif isinstance(strategy, strategies.BandedInverse):
    arrays.update(inverse=strategy.leading, rounds=strategy.rounds)
  elif isinstance(strategy, strategies.Toeplitz):
    arrays.update(coefficients=strategy.coefficients, rounds=strategy.rounds)
  else:
    arrays['matrix'] = strategy.lower
  return arrays


def facts(strategy: strategies.Strategy) -> dict[str, Any]:
  """Returns plain values, fit for JSON, that identify a strategy.

  Args:
    strategy: Any strategy.

  Returns:
    All parameters that determine the strategy, and so its epsilon. A general
    matrix has the SHA-256 `digest` of its entries instead, row by row as
    little-endian float64.
  """
  if isinstance(strategy, strategies.Tree):
    return dataclasses.asdict(strategy)
  found: dict[str, Any] = {'rounds': strategy.rounds}
  for name, value in _arrays(strategy).items():
    if name == 'matrix':
      entries = np.ascontiguousarray(value, '<f8').tobytes()
      found['digest'] = hashlib.sha256(entries).hexdigest()
    else:
      found[name] = value.tolist() if isinstance(value, np.ndarray) else value
  return found


def load(path: _Path) -> strategies.Strategy:
  """Reads a strategy from an `.npz` file and checks it.

  Args:
    path: The file, from `save` or another program. The latter's contains an
      array `matrix`: C, float64, square, lower triangular, with a positive
      diagonal.

  Returns:
    The strategy.

  Raises:
    ValueError: If the file is missing or damaged, or contains no strategy.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {key: file[key] for key in file.files}
  except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as e:
    raise ValueError(
      f'{os.fspath(path)} cannot be read as an .npz file of a strategy: {e}'
    ) from e
  except (AttributeError, TypeError) as e:
    raise ValueError(
      f'{os.fspath(path)} is a single array; save it by np.savez(path, '
      'matrix=...).'
    ) from e
  try:
    kind = str(arrays.get('kind', ''))
    if 'matrix' in arrays:
      matrix = strategies.Matrix(arrays['matrix'], kind or 'dense')
      if not kind and matrix.bands < matrix.rounds:
        return strategies.Matrix(arrays['matrix'], 'banded')
      return matrix
    if 'decay' in arrays:
      return strategies.Blt.from_parameters(
        arrays['decay'], arrays['scale'], int(arrays['rounds'])
      )
    if 'inverse' in arrays:
      return strategies.BandedInverse.from_inverse(
        arrays['inverse'], int(arrays['rounds'])
      )
    return strategies.Toeplitz(
      arrays['coefficients'], int(arrays['rounds']), kind or 'banded_toeplitz'
    )
  except KeyError as e:
    raise ValueError(
      f'{os.fspath(path)} contains {sorted(arrays)}, but no array {e}; save '
      'the strategy by np.savez(path, matrix=...).'
    ) from e
  except (TypeError, ValueError) as e:
    raise ValueError(f'{os.fspath(path)}: {e}') from e


def of_run(found: Mapping[str, Any], path: _Path) -> strategies.Strategy:
  """Returns the strategy that a run's privacy.json describes.

  Args:
    found: The description, from `facts`.
    path: The file with the run's strategy; trees have none.

  Returns:
    The strategy.

  Raises:
    ValueError: If the file is missing, damaged, or contains another strategy.
  """
  try:
    if found['kind'] == 'tree':
      return strategies.Tree(**found)
  except (KeyError, TypeError) as e:
    raise ValueError(f'{dict(found)} is not the description of a tree.') from e
  strategy = load(path)
  if facts(strategy) != found:
    raise ValueError(
      f'{os.fspath(path)} does not contain the strategy of privacy.json.'
    )
  return strategy


def cached(
  folder: Optional[_Path],
  parameters: dict[str, Any],
  build: Callable[[], strategies.Strategy],
) -> strategies.Strategy:
  """Returns a strategy from a folder, or builds it and stores it there.

  Args:
    folder: The cache of strategies; None only builds.
    parameters: All values that determine the strategy, fit for JSON; the file's
      name is a digest of them.
    build: Makes the strategy; also called if the file can't be read.

  Returns:
    The strategy.
  """
  if folder is None:
    return build()
  version = _VERSIONS.get(str(parameters.get('kind')), 1)
  text = json.dumps({'version': version, **parameters}, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:20]
  path = os.path.join(
    folder, f'{parameters.get("kind", "strategy")}-{digest}.npz'
  )
  if os.path.exists(path):
    with contextlib.suppress(ValueError):
      return load(path)
  strategy = build()
  save(path, strategy)
  return strategy
