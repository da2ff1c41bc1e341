"""Graphs whose shapes don't depend on the data, as XLA compiles them.

On a processor, layers gather the valid tokens of a batch, so that padding costs
nothing. Their number is known only when the graph runs, but compilers such as
XLA need it when they compile. Graphs traced within `static_shapes`, or for XLA,
therefore compute the padding as well, and leave it out of results.
"""

from __future__ import annotations

import contextlib
import contextvars
from typing import Iterator

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

_static = contextvars.ContextVar('static_shapes', default=False)


@contextlib.contextmanager
def static_shapes(enabled: bool = True) -> Iterator[None]:
  """Traces graphs without data-dependent shapes.

  Results agree with those of other graphs to rounding. Time loops stay loops,
  which compile much faster than unrolled steps.

  Args:
    enabled: If false, the scope changes nothing.
  """
  token = _static.set(enabled or _static.get())
  try:
    yield
  finally:
    _static.reset(token)


def is_requested() -> bool:
  """Returns whether `static_shapes` is in effect."""
  return _static.get()


def shapes_are_static() -> bool:
  """Returns whether shapes must not depend on the data.

  They must not within `static_shapes`, and in functions that TensorFlow
  compiles with XLA (`jit_compile=True`).
  """
  return is_requested() or control_flow_util.GraphOrParentsInXlaContext(
    tf.compat.v1.get_default_graph()
  )
