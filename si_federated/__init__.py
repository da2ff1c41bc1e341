"""Federated learning with scale-invariant language models."""

from __future__ import annotations

import importlib
from typing import Any

# Where modules went that users import from here.
_MOVED = {
  'adapter_files': 'si_federated.weights.adapter_files',
  'trained_model': 'si_federated.inference.trained_model',
}


def __getattr__(name: str) -> Any:
  if name in _MOVED:
    return importlib.import_module(_MOVED[name])
  # Read when asked for: metadata are slow, and a plain checkout has none.
  if name == '__version__':
    from importlib import metadata

    try:
      return metadata.version('si_federated')
    except metadata.PackageNotFoundError:
      return '0.0.0'
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
