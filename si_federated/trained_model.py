"""The model of a run, ready to be used."""

from __future__ import annotations

import dataclasses
import os

import tensorflow as tf

from si_federated import config
from si_federated import experiment as experiment_lib
from si_federated.tasks import Vocabulary
from si_federated.training import checkpoints
from si_federated.training import run_folder as run_folder_lib


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """The model of a run.

  Attributes:
    config: What the run was made from.
    vocabulary: The words it knows.
    model: The Keras model, from ids `[B, T]` to logits `[B, T, V]`.
    checkpoint: The file that its weights are from.
  """

  config: config.ExperimentConfig
  vocabulary: Vocabulary
  model: tf.keras.Model
  checkpoint: str


def load_model(path: str) -> TrainedModel:
  """Loads the model of a run from its newest whole checkpoint.

  Args:
    path: The run's folder.

  Returns:
    The model with what it needs to be used.

  Raises:
    config.ConfigError: If the folder holds no run or no whole checkpoint.
  """
  experiment = run_folder_lib.read_config(path)
  words_file = os.path.join(path, 'vocabulary.txt')
  if not os.path.exists(words_file):
    raise config.ConfigError(f'{path} has no vocabulary.txt yet.')
  vocabulary = Vocabulary.load(words_file)
  # A checkpoint has the weights in the order of their creation, which need not
  # be that of the layers.
  created: list[tf.Variable] = []

  def record(next_creator, **kwargs):
    created.append(next_creator(**kwargs))
    return created[-1]

  with tf.variable_creator_scope(record):
    model = experiment_lib.build_model(experiment, vocabulary.size)
  own = {id(variable) for variable in model.trainable_variables}
  variables = [variable for variable in created if id(variable) in own]
  problems = []
  for file in run_folder_lib.RunFolder(path).checkpoints.newest():
    try:
      weights = checkpoints.read_weights(file)
    except checkpoints.CheckpointError as error:
      problems.append(str(error))
      continue
    shapes = [tuple(variable.shape) for variable in variables]
    if [weight.shape for weight in weights] != shapes:
      raise config.ConfigError(
        f'{file} holds weights of other shapes than the model '
        f'{experiment.model} of {words_file} has.'
      )
    for variable, weight in zip(variables, weights):
      variable.assign(weight)
    return TrainedModel(experiment, vocabulary, model, file)
  raise config.ConfigError(
    ' '.join(problems)
    or f'{path} has no checkpoint yet; wait for the first, or start the run.'
  )
