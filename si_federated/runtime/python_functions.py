"""Python functions in TensorFlow graphs: `tf.numpy_function`, `tf.py_function`.

A graph refers to such a function by a number that this process assigned.
TensorFlow drops the function with the Python object of the graph, and TFF drops
that object once it has serialized the computation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tensorflow.python.ops import script_ops

_OPERATIONS = frozenset({'EagerPyFunc', 'PyFunc', 'PyFuncStateless'})

REFUSAL = (
  'it calls Python functions (tf.numpy_function, tf.py_function), which exist '
  'only in the process that made them; write them with operations of '
  'TensorFlow, or use --runtime=local.'
)

# The Python functions of every graph made since this module was imported.
# TensorFlow itself keeps only those of functions that are traced eagerly.
_kept: list[Any] = []


def keep() -> None:
  """Keeps the Python functions of all graphs that are made from now on."""
  registry: Any = script_ops._py_funcs
  if getattr(registry, 'keeps_functions', False):
    return
  insert = registry.insert

  def insert_and_keep(function: Any) -> Any:
    _kept.append(function)
    return insert(function)

  registry.insert = insert_and_keep
  registry.keeps_functions = True


def are_called(nodes: Iterable[Any]) -> bool:
  """Whether a graph calls Python functions.

  Args:
    nodes: Its nodes, those in functions included.
  """
  return any(node.op in _OPERATIONS for node in nodes)
