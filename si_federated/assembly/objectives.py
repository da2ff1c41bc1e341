"""What a task and a model must agree on: tokens or classes are predicted.

A part of the composition root.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import config
from si_federated.algorithms import OBJECTIVES, NamedModel, leave_out_values
from si_federated.models import MODELS
from si_federated.tasks import TASKS, AnyTask
from si_federated.training import evaluation

# What tasks may tell the builders of models.
MODEL_GIVEN = ('vocab_size', 'num_classes')


def _required(builder: Callable) -> set[str]:
  return {
    name
    for name, parameter in inspect.signature(builder).parameters.items()
    if parameter.default is inspect.Parameter.empty
  }


def check(experiment: config.ExperimentConfig) -> None:
  """Checks that task and model predict the same, before any data is read.

  Args:
    experiment: What is to be run.

  Raises:
    config.ConfigError: If they do not, or texts are longer than the model can
      take.
  """
  task, model = experiment.task.name, experiment.model.name
  if task not in TASKS:  # Data that no task reads, as of pretraining.
    return
  kind: Any = typing.get_type_hints(TASKS[task]).get('return')
  if not hasattr(kind, 'MODEL_ARGUMENTS'):  # A user's, without annotations.
    return
  given = set(kind.MODEL_ARGUMENTS)
  if _required(MODELS[model]) != given:
    fitting = [n for n, b in MODELS.items() if _required(b) == given]
    what = {'next_token': 'the next token', 'class': 'the class of a text'}
    raise config.ConfigError(
      f'--model={model} does not fit --task={task}, where '
      f'{what[kind.OBJECTIVE]} is predicted; choose one of '
      f'{", ".join(fitting)}.'
    )
  parameters = inspect.signature(MODELS[model]).parameters
  options = dict(experiment.model.options)
  if 'max_length' not in parameters or options.get('preset') is not None:
    return
  longest = options.get('max_length', parameters['max_length'].default)
  if isinstance(longest, int) and longest < experiment.sequence_length:
    raise config.ConfigError(
      f'--sequence_length={experiment.sequence_length} is more than the '
      f'{longest} positions of --model={experiment.model}; raise its option '
      'max_length or shorten the sequences.'
    )


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
    count_tokens: Whether clients weigh by tokens, not by examples.
    compute_dtype: What its layers compute in.
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


def build_evaluation(
  task: AnyTask, model: NamedModel, examples: np.ndarray
) -> Callable[[tff.learning.models.ModelWeights], dict[str, float]]:
  """Builds the evaluation of weights on examples of a task.

  Args:
    task: The task.
    model: Its model.
    examples: As its populations give them, `[N, T + 1]`.
  """
  return evaluation.build_evaluation(
    model=leave_out_values(model),
    examples=examples,
    inputs_and_labels=task.inputs_and_labels,
  )
