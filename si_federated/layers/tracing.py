"""How Keras calls a layer while a model is put together."""

from __future__ import annotations

import contextlib
from typing import Any, ContextManager

import tensorflow as tf


def is_building_in_graph(inputs: Any) -> bool:
  """Whether Keras calls a layer only to find out the shapes of a model.

  A functional model of TensorFlow Federated builds the Keras model again inside
  a function of a TensorFlow 1 graph, on placeholders that are never fed, before
  it calls it on data. Whatever control flow and random operations that leaves
  in the graph would be run all the same, and fail.

  Args:
    inputs: What the layer is called on.

  Returns:
    Whether control flow and random operations must be left out.
  """
  return (
    hasattr(inputs, '_keras_history')
    and not tf.compat.v1.executing_eagerly_outside_functions()
    and tf.inside_function()
  )


def variable_scope() -> ContextManager:
  """Returns a context for creating variables in a layer's `call`, as Keras's.

  It lifts them out of a function that is being traced, but not out of the
  TensorFlow 1 graphs of TensorFlow Federated, where they stand for tensors.
  """
  if tf.compat.v1.executing_eagerly_outside_functions():
    return tf.init_scope()
  return contextlib.nullcontext()
