"""Learning processes whose graphs do not contain the model's initial weights.

TFF writes initial weights into the graph of `initialize` as constants, which
are copied some twenty times while the graph is serialized and imported. Here
the graph makes placeholder zeros, and the state gets the weights afterwards.
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
  """Returns zeros that are made when the graph runs.

  TensorFlow's graph optimizer turns `tf.zeros` of a known shape into a
  constant, which takes memory until the graph is deleted.

  Args:
    shape: The shape.
    dtype: The type.
  """
  return tf.raw_ops.Empty(
    shape=list(shape), dtype=tf.as_dtype(dtype), init=True
  )


@dataclasses.dataclass(frozen=True)
class _PlaceholderZeros:
  """Stands for an array of zeros without becoming a constant in a graph."""

  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  # TensorFlow's conversion protocol. A registered conversion function would
  # keep this module and TFF's processes alive until Python exits, when ending
  # them raises an error.
  def __tf_tensor__(
    self, dtype: tf.DType | None = None, name: str | None = None
  ) -> tf.Tensor:
    del name
    return make_zeros(self.shape, dtype or self.dtype)


def leave_out_values(model: tff.learning.models.FunctionalModel) -> NamedModel:
  """Returns a model whose initial weights are placeholder zeros.

  So graphs do not embed the weights; pass them to `StartedProcess`.

  Args:
    model: The model.
  """
  return NamedModel(
    variable_names=getattr(model, 'variable_names', ()),
    initial_weights=tf.nest.map_structure(
      lambda weight: _PlaceholderZeros(weight.shape, weight.dtype),
      model.initial_weights,
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
  """A learning process that starts from given weights.

  Attributes:
    next: See `tff.learning.templates.LearningProcess`.
    get_model_weights: See there.
    set_model_weights: See there.
  """

  def __init__(
    self,
    process: tff.learning.templates.LearningProcess,
    initial_weights: Any,
  ):
    """Initializes the process.

    Args:
      process: A process whose model is from `leave_out_values`.
      initial_weights: Trainable and other weights; see
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
