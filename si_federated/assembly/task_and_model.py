"""Builds the data and the Keras model of an experiment."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Optional

import numpy as np
import tensorflow as tf

from si_federated import config
from si_federated.assembly import registries
from si_federated.assembly.registries import build_part
from si_federated.models.transforms import stable_names
from si_federated.tasks import AnyTask, mixing
from si_federated.weights import initial_model

# The most names that a message lists.
_LISTED = 4


def build_task(experiment: config.ExperimentConfig) -> AnyTask:
  """Builds the task of an experiment: reads or prepares its data.

  Args:
    experiment: The experiment.

  Returns:
    The task.

  Raises:
    config.ConfigError: If the data is missing or unusable.
  """
  # Built before the data, so that a wrong option or a missing package is
  # reported first.
  build_part(experiment, 'vocabulary')
  task = build_part(
    experiment,
    'task',
    data_dir=experiment.data_dir,
    vocab_size=experiment.vocab_size,
    sequence_length=experiment.sequence_length,
  )
  task = cut_into_tokens(experiment, task)
  return mixing.mix(task, experiment.client_similarity, experiment.client_seed)


def cut_into_tokens(
  experiment: config.ExperimentConfig, task: AnyTask
) -> AnyTask:
  """Returns a task of words, encoded in the tokens of `--vocabulary`.

  Args:
    experiment: The experiment.
    task: The task in words.

  Raises:
    config.ConfigError: If the task has no such tokens.
  """
  try:
    return build_part(experiment, 'vocabulary')(task)
  except ValueError as error:
    if isinstance(error, config.ConfigError):
      raise
    raise config.ConfigError(
      f'--vocabulary={experiment.vocabulary}: {error}'
    ) from error


def build_model(
  experiment: config.ExperimentConfig, vocab_size: int, **labels: int
) -> tf.keras.Model:
  """Builds the Keras model of an experiment, with its seed.

  Args:
    experiment: The experiment.
    vocab_size: The number of ids, including special ones.
    **labels: Further arguments from the task: `num_classes` if it has classes.

  Returns:
    A new model.

  Raises:
    config.ConfigError: If the model refuses an option's value.
  """
  # TFF passes the weights to the graph, which must not contain the seed.
  if tf.executing_eagerly():
    tf.keras.utils.set_random_seed(experiment.model_seed)
  model = build_part(experiment, 'model', vocab_size=vocab_size, **labels)
  return build_part(experiment, 'transform', model=model)


def prepare_model(
  experiment: config.ExperimentConfig, task: AnyTask, *, resumed: bool
) -> tuple[Optional[initial_model.Start], Callable[[], tf.keras.Model]]:
  """Loads the initial weights of an experiment from `--initial_model`.

  Args:
    experiment: The experiment.
    task: Its task.
    resumed: Whether a checkpoint has the weights; then none are read.

  Returns:
    The initial weights, if any were read; and a function that returns a new
    model with these weights.

  Raises:
    config.ConfigError: If the initial model can't be read or does not fit.
  """

  def new_model() -> tf.keras.Model:
    return build_model(experiment, **task.model_arguments)

  if experiment.initial_model is None or resumed:
    return None, new_model

  def builder(settings: config.ExperimentConfig) -> initial_model.Builder:
    return lambda vocab_size: build_model(
      settings, **{**task.model_arguments, 'vocab_size': vocab_size}
    )

  start = initial_model.load(experiment.initial_model, build_model).fit(
    builder(experiment),
    task.vocabulary,
    experiment.reinitialized_variables,
    build_plain=builder(
      dataclasses.replace(experiment, transform=config.ComponentSpec('none'))
    ),
  )
  return start, lambda: start.build(new_model)


def frozen_at_random(
  experiment: config.ExperimentConfig,
  task: AnyTask,
  start: Optional[initial_model.Start],
  keras_model: tf.keras.Model,
) -> list[str]:
  """Returns a sentence that names the weights frozen at random values, if any.

  Args:
    experiment: The experiment.
    task: Its task.
    start: The initial weights, if any were read.
    keras_model: The model. FFA-LoRA's first factors are random on purpose, and
      not named.
  """
  names = [
    name
    for name in _frozen(keras_model)
    if not name.rpartition('/')[2].startswith('lora_a')
  ]
  if names:
    known = set(start.weights) if start else _of_preset(experiment, task)
    names = [name for name in names if name not in known]
  if not names:
    return []
  more = len(names) - _LISTED
  listed = ', '.join(names[:_LISTED]) + (
    f' and {more} more' if more > 0 else ''
  )
  remedy = (
    'leave them out of --reinitialized_variables'
    if start
    else 'give a trained model with --initial_model'
  )
  options = inspect.signature(
    registries.builder(experiment, 'transform')
  ).parameters
  option = (
    'name them in its option trained'
    if 'trained' in options
    else 'leave them out of its option variables'
  )
  return [
    f'--transform={experiment.transform} freezes these weights at random '
    f'values: {listed}. To keep them frozen, {remedy}; to train them, {option}.'
  ]


def _frozen(keras_model: tf.keras.Model) -> dict[str, np.ndarray]:
  weights = keras_model.non_trainable_weights
  names = stable_names(weight.name for weight in weights)
  return dict(zip(names, tf.keras.backend.batch_get_value(weights)))


def _of_preset(experiment: config.ExperimentConfig, task: AnyTask) -> set[str]:
  """Returns the frozen weights of a preset, which no seed changes."""
  if 'preset' not in dict(experiment.model.options):
    return set()
  # The experiment's own seed comes last, and so determines what is drawn later.
  other, same = (
    _frozen(
      build_model(
        dataclasses.replace(experiment, model_seed=seed), **task.model_arguments
      )
    )
    for seed in (experiment.model_seed ^ 1, experiment.model_seed)
  )
  return {name for name in same if np.array_equal(same[name], other[name])}
