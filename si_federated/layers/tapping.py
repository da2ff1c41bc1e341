"""A look at what layers compute inside, for diagnostics of a batch."""

from __future__ import annotations

import contextlib
import threading
from typing import Dict, Iterator, List, Tuple

import tensorflow as tf

# What was seen: (scope of the layer, name) -> values in the order of the calls.
Taps = Dict[Tuple[str, str], List[tf.Tensor]]

_state = threading.local()


@contextlib.contextmanager
def record() -> Iterator[Taps]:
  """Collects what layers that are called eagerly in this thread `tap`.

  Yields:
    A dictionary that fills up.
  """
  before = getattr(_state, 'taps', None)
  taps: Taps = {}
  _state.taps = taps
  try:
    yield taps
  finally:
    _state.taps = before


def tap(name: str, value: tf.Tensor) -> None:
  """Shows a tensor to whoever records; nothing happens in graphs.

  Args:
    name: What it is, such as `attention`.
    value: The tensor.
  """
  taps = getattr(_state, 'taps', None)
  if taps is not None and tf.executing_eagerly():
    scope = tf.get_current_name_scope()
    taps.setdefault((scope, name), []).append(value)
