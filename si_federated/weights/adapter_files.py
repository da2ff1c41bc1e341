"""Files of trained adapters, without the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from si_federated import config, files
from si_federated.algorithms.variable_creation import zero_values
from si_federated.models import TRANSFORMS, adapters
from si_federated.tasks import load_vocabulary
from si_federated.training import run_folder
from si_federated.weights import named_variables, run_weights, weight_files

# The entry, next to the weights, of the transform that attaches them.
_TRANSFORM = 'transform'


def write(
  run: str, path: str, build_model: Callable[..., tf.keras.Model]
) -> dict[str, Any]:
  """Writes the adapters of a run, and the other weights that it trained.

  Args:
    run: The folder of a run with `--transform=lora` or `ffa_lora`.
    path: The file to write, `.npz`.
    build_model: Builds a run's model from its configuration and number of ids.

  Returns:
    `checkpoint`, their checkpoint, and `weights`, their names.

  Raises:
    config.ConfigError: If the run has no adapters or no whole checkpoint.
  """
  experiment = run_folder.read_config(run)
  vocabulary = load_vocabulary(run)
  with zero_values():
    model, variables = named_variables.build_named(
      lambda: build_model(
        experiment, vocabulary.size, **run_folder.model_labels(run)
      )
    )
    parts = adapters.adapters_of(model)
    if not parts:
      raise config.ConfigError(
        f'{run} has no adapters to write: its --transform is '
        f'{experiment.transform}, not lora or ffa_lora.'
      )
    file, weights = run_weights.newest_weights(
      run_folder.RunFolder(run).checkpoints.newest(), model, variables
    )
    kept = {id(v) for part in parts for v in (part.a, part.b)}
    kept |= {id(variable) for variable in model.trainable_variables}
    chosen = {
      name: weights[name]
      for name, variable in variables.items()
      if id(variable) in kept
    }
  files.write_archive(
    path,
    {_TRANSFORM: np.array(str(experiment.transform)), **chosen},
    np.lib.format.write_array,
  )
  return {'checkpoint': os.path.abspath(file), 'weights': list(chosen)}


def attach(model: tf.keras.Model, path: str) -> tf.keras.Model:
  """Attaches the adapters of a file to a model.

  Args:
    model: The model that they were trained on, without a transform; it is
      modified.
    path: A file from `write`.

  Returns:
    The model; `si_federated.models.adapters.merge_adapters` merges them.

  Raises:
    ValueError: If the file has no adapters, or those of another model.
  """
  weights: Mapping[str, np.ndarray] = weight_files.read(path)[0]
  if _TRANSFORM not in weights:
    raise ValueError(
      f'{path} has weights, but no adapters; give a file that '
      'experiments.export wrote with --formats=adapters.'
    )
  spec = config.ComponentSpec.parse(str(weights[_TRANSFORM]))
  model = spec.build(TRANSFORMS, 'transform', model=model)
  names = adapters.stable_names(variable.name for variable in model.variables)
  variables = dict(zip(names, model.variables))
  learned = {n: w for n, w in weights.items() if n != _TRANSFORM}
  differing = [
    name
    for name, weight in learned.items()
    if name not in variables or tuple(variables[name].shape) != weight.shape
  ]
  if differing:
    raise ValueError(
      f'{path} belongs to another model, which has {differing[0]} of shape '
      f'{learned[differing[0]].shape}.'
    )
  named_variables.assign(variables, learned)
  return model
