"""Builds the data and the Keras model of an experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Optional

import tensorflow as tf

from si_federated import config
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
    vocab_size: The number of ids, special ones included.
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
    resumed: Whether a checkpoint has the weights, so that they are not read.

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


def frozen_at_random(keras_model: tf.keras.Model) -> list[str]:
  """Returns a sentence that names the weights frozen at random values, if any.

  Args:
    keras_model: A model that was not initialized from another one. FFA-LoRA's
      first factors are meant to be random, and are not named.
  """
  names = [
    name
    for name in stable_names(w.name for w in keras_model.non_trainable_weights)
    if not name.rpartition('/')[2].startswith('lora_a')
  ]
  if not names:
    return []
  more = len(names) - _LISTED
  listed = ', '.join(names[:_LISTED]) + (
    f' and {more} more' if more > 0 else ''
  )
  return [
    f'Without --initial_model these weights stay at random values: {listed}. '
    'Give a trained model by --initial_model, or train them: --transform=none.'
  ]
