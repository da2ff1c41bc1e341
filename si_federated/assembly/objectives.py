"""The objective that a task and a model share: next tokens or classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import OBJECTIVES, NamedModel, leave_out_values
from si_federated.tasks import AnyTask
from si_federated.training import evaluation


def build_functional_model(
  task: AnyTask,
  keras_model_fn: Callable[[], tf.keras.Model],
  *,
  count_tokens: bool = True,
  compute_dtype: str = 'float32',
) -> NamedModel:
  """Builds the model that clients train on a task.

  Args:
    task: The task.
    keras_model_fn: Returns a new Keras model that fits it.
    count_tokens: Whether tokens weight clients, rather than examples.
    compute_dtype: The dtype that its layers compute in.
  """
  options: Mapping[str, Any] = task.objective_options
  return OBJECTIVES[task.OBJECTIVE](
    keras_model_fn,
    loss=task.loss,
    element_spec=task.element_spec,
    count_tokens=count_tokens,
    compute_dtype=compute_dtype,
    **options,
  )


def metric_names(model: tff.learning.models.FunctionalModel) -> list[str]:
  """Returns the names of a model's metrics.

  Args:
    model: The model.
  """
  with tf.Graph().as_default():
    return list(model.finalize_metrics(model.initialize_metrics_state()))


def build_evaluation(
  task: AnyTask, model: NamedModel, examples: np.ndarray
) -> Callable[[tff.learning.models.ModelWeights], dict[str, float]]:
  """Builds the evaluation of weights on examples of a task.

  Args:
    task: The task.
    model: Its model.
    examples: Examples of its populations, `[N, T + 1]`.
  """
  return evaluation.build_evaluation(
    model=leave_out_values(model),
    examples=examples,
    inputs_and_labels=task.inputs_and_labels,
  )
