"""Federated learning with scale-invariant language models."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
  # Read when asked for: metadata are slow, and a plain checkout has none.
  if name == '__version__':
    from importlib import metadata

    try:
      return metadata.version('si_federated')
    except metadata.PackageNotFoundError:
      return '0.0.0'
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
