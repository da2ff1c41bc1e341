"""The weights of a run's model, from its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from si_federated import config
from si_federated.algorithms.variable_creation import zero_values
from si_federated.models import adapters
from si_federated.training import checkpoints
from si_federated.weights.named_variables import build_named


def plain_weights(
  files: Sequence[str], build: Callable[[], tf.keras.Model]
) -> tuple[str, dict[str, np.ndarray]]:
  """Reads the weights of a run's model, with its adapters merged.

  Args:
    files: Checkpoints, the preferred one first.
    build: Builds the model as it was trained.

  Returns:
    The first whole checkpoint, and the weights by name, as the model without a
    transform has them.

  Raises:
    config.ConfigError: If no checkpoint is whole, or they have another model.
  """
  with zero_values():
    model, variables = build_named(build)
    file, weights = newest_weights(files, model, variables)
    return file, adapters.merge_weights(model, variables, weights)


def newest_weights(
  files: Sequence[str],
  model: tf.keras.Model,
  variables: Mapping[str, tf.Variable],
) -> tuple[str, dict[str, np.ndarray]]:
  """Reads the weights of the first whole checkpoint.

  Args:
    files: Checkpoints, the preferred one first.
    model: The model, as it was trained.
    variables: The model's variables, from `named_variables.build_named`.

  Returns:
    The checkpoint, and the weights by name.

  Raises:
    config.ConfigError: If no checkpoint is whole, or they have another model.
  """
  problems = []
  for file in files:
    try:
      return file, _checkpoint_weights(file, model, variables)
    except checkpoints.CheckpointError as error:
      problems.append(str(error))
  raise config.ConfigError(' '.join(problems) or 'There is no checkpoint yet.')


def _checkpoint_weights(
  file: str, model: tf.keras.Model, variables: Mapping[str, tf.Variable]
) -> dict[str, np.ndarray]:
  """Reads the weights of a model from a checkpoint of its training.

  Args:
    file: The checkpoint.
    model: The model, as it was trained.
    variables: The model's variables, from `named_variables.build_named`.

  Returns:
    The weights by name.

  Raises:
    checkpoints.CheckpointError: If the file is truncated or garbled.
    config.ConfigError: If it belongs to another model.
  """
  trainable = {id(variable) for variable in model.trainable_variables}
  parts = {True: checkpoints.read_weights(file), False: []}
  if len(trainable) < len(variables):
    parts[False] = checkpoints.read_weights(file, 'non_trainable')
  expected = {
    kind: [
      (name, tuple(variable.shape))
      for name, variable in variables.items()
      if (id(variable) in trainable) == kind
    ]
    for kind in parts
  }
  weights: dict[str, np.ndarray] = {}
  for kind, named in expected.items():
    if [shape for _, shape in named] != [w.shape for w in parts[kind]]:
      raise config.ConfigError(
        f'{file} has weights with other shapes than its model.'
      )
    weights.update((name, w) for (name, _), w in zip(named, parts[kind]))
  return {name: weights[name] for name in variables}
