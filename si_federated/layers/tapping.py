"""Recording of values inside layers, for diagnostics of a batch."""

from __future__ import annotations

import contextlib
import threading
from typing import Dict, Iterator, List, Tuple

import tensorflow as tf

# Recorded values: (scope of the layer, name) -> values in order of the calls.
Taps = Dict[Tuple[str, str], List[tf.Tensor]]

_state = threading.local()


@contextlib.contextmanager
def record() -> Iterator[Taps]:
  """Records the values that layers `tap` in eager calls of this thread.

  Yields:
    The dictionary to which values are added.
  """
  before = getattr(_state, 'taps', None)
  taps: Taps = {}
  _state.taps = taps
  try:
    yield taps
  finally:
    _state.taps = before


def tap(name: str, value: tf.Tensor) -> None:
  """Adds a tensor to the current record, if any; does nothing in graphs.

  Args:
    name: What the tensor is, such as `attention`.
    value: The tensor.
  """
  taps = getattr(_state, 'taps', None)
  if taps is not None and tf.executing_eagerly():
    scope = tf.get_current_name_scope()
    taps.setdefault((scope, name), []).append(value)
