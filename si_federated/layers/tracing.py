"""Detection of layer calls that only build a Keras model."""

from __future__ import annotations

import contextlib
from typing import Any, ContextManager

import tensorflow as tf


def is_building_in_graph(inputs: Any) -> bool:
  """Returns whether Keras calls a layer only to infer shapes.

  A functional model of TensorFlow Federated first rebuilds the Keras model in a
  function of a TensorFlow 1 graph, on placeholders that are never fed. Control
  flow and random operations from that call would still run, and fail.

  Args:
    inputs: The layer's input.

  Returns:
    Whether control flow and random operations must be left out.
  """
  return hasattr(inputs, '_keras_history') and is_rebuilding()


def is_rebuilding() -> bool:
  """Returns whether this is a function of a TensorFlow 1 graph.

  There, calls without the argument `training` are those of
  `is_building_in_graph`.
  """
  return (
    not tf.compat.v1.executing_eagerly_outside_functions()
    and tf.inside_function()
  )


def variable_scope() -> ContextManager:
  """Returns a context for creating variables in a layer's `call`.

  As in Keras, it lifts them out of a function that is being traced, but not out
  of TensorFlow Federated's TensorFlow 1 graphs, where they stand for tensors.
  """
  if tf.compat.v1.executing_eagerly_outside_functions():
    return tf.init_scope()
  return contextlib.nullcontext()
