"""Learning processes whose graphs do not hold the model's initial weights.

TFF writes initial weights into the graph of `initialize` as constants, of which
serialising and importing make some twenty copies. Here the graph makes zeros,
and the weights are put into the state afterwards.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms.functional_model import NamedModel


def make_zeros(shape: Sequence[int], dtype: Any) -> tf.Tensor:
  """Returns zeros, made where they are asked for.

  `tf.zeros` of a known shape becomes a constant when TensorFlow optimizes a
  graph, which then holds a model's size of zeros as long as it exists.

  Args:
    shape: Their shape.
    dtype: Their type.
  """
  return tf.raw_ops.Empty(
    shape=list(shape), dtype=tf.as_dtype(dtype), init=True
  )


@dataclasses.dataclass(frozen=True)
class _Zeros:
  """Zeros that are no constant in a graph, with what is asked of an array."""

  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  # What TensorFlow asks of a value that it is to convert. A conversion function
  # that is registered would keep this module, and TFF's processes with it, into
  # the end of Python, where they can no longer be ended without an error.
  def __tf_tensor__(
    self, dtype: tf.DType | None = None, name: str | None = None
  ) -> tf.Tensor:
    del name
    return make_zeros(self.shape, dtype or self.dtype)


def leave_out_values(model: tff.learning.models.FunctionalModel) -> NamedModel:
  """Returns a model whose initial weights are zeros, of which no graph grows.

  Args:
    model: The model.
  """

  def without_values(weight: np.ndarray) -> _Zeros:
    return _Zeros(weight.shape, weight.dtype)

  return NamedModel(
    variable_names=getattr(model, 'variable_names', ()),
    initial_weights=tf.nest.map_structure(
      without_values, model.initial_weights
    ),
    predict_on_batch_fn=model.predict_on_batch,
    loss_fn=model.loss,
    metrics_fns=(
      model.initialize_metrics_state,
      model.update_metrics_state,
      model.finalize_metrics,
    ),
    input_spec=model.input_spec,
  )


class StartedProcess:
  """A learning process that starts from weights which it is given.

  Attributes:
    next: As of `tff.learning.templates.LearningProcess`.
    get_model_weights: As there.
    set_model_weights: As there.
  """

  def __init__(
    self,
    process: tff.learning.templates.LearningProcess,
    initial_weights: Any,
  ):
    """Starts from weights.

    Args:
      process: The process, of a model as of `leave_out_values`.
      initial_weights: Trainable and other weights, as of
        `tff.learning.models.FunctionalModel`.
    """
    self._process = process
    self._initial_weights = initial_weights
    self.next = process.next
    self.get_model_weights = process.get_model_weights
    self.set_model_weights = process.set_model_weights

  def initialize(self) -> Any:
    """Returns the state before the first round."""
    trainable, non_trainable = self._initial_weights
    return self._process.set_model_weights(
      self._process.initialize(),
      tff.learning.models.ModelWeights(tuple(trainable), tuple(non_trainable)),
    )
