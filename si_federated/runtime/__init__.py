"""Where TFF computations run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from si_federated.runtime.local import (
  ClientError,
  LocalContext,
  set_local_context,
)
from si_federated.runtime.native import set_tff_context

RUNTIMES: dict[str, Callable[..., Any]] = {
  'local': set_local_context,
  'tff': set_tff_context,
}

__all__ = [
  'RUNTIMES',
  'ClientError',
  'LocalContext',
  'set_local_context',
  'set_tff_context',
]
