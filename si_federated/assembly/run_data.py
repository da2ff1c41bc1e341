"""Keeps a description of a run's data with its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

import numpy as np

from si_federated import config
from si_federated.tasks import (
  AnyTask,
  data_fingerprint,
  vocabulary_files,
)
from si_federated.training import run_folder


def keep(
  folder: run_folder.RunFolder,
  task: AnyTask,
  *,
  examples: np.ndarray,
  num_parameters: int,
  initial_facts: Optional[Mapping[str, Any]],
  is_private: bool = False,
) -> None:
  """Describes the run's data, or checks that they have not changed.

  Args:
    folder: The run's folder.
    task: The data.
    examples: The evaluation examples, `[N, T + 1]`.
    num_parameters: The number of trained parameters.
    initial_facts: `Start.facts` of the initial model, if one was read.
    is_private: Whether the run has noise, which must not be used again for
      other data.

  Raises:
    config.ConfigError: If the run in the folder began with other data, or is
      private and does not say with which.
  """
  vocabulary = task.vocabulary
  if (
    is_private
    and folder.has_rounds
    and not folder.read_json('task.json').get('train_fingerprint')
  ):
    raise config.ConfigError(
      f'{folder.path} no longer says in task.json which clients its private '
      'run began with, and noise must not be used again for others; restore '
      'that file, or give this run another --experiment_name.'
    )
  if folder.has_rounds and folder.has('task.json'):
    if vocabulary_files.load_vocabulary(folder.path) != vocabulary:
      raise config.ConfigError(
        f'The data of {task.name} are no longer those that the run in '
        f'{folder.path} began with (its vocabulary differs); give this run '
        'another --experiment_name.'
      )
    classes = run_folder.read_classes(folder.path)
    if classes != task.classes:
      raise config.ConfigError(
        f'The data of {task.name} are no longer those that the run in '
        f'{folder.path} began with (it has {len(classes)} classes); give this '
        'run another --experiment_name.'
      )
    kept = folder.read_json('task.json').get('train_fingerprint')
    # Noise is a function of the round, so that repeating a round with other
    # data would reveal the difference of the two sums.
    if kept is not None and kept != data_fingerprint.fingerprint(task.train):
      raise config.ConfigError(
        f'The data of {task.name} are no longer those that the run in '
        f'{folder.path} began with (its training clients differ); give this '
        'run another --experiment_name.'
      )
    # A run that still reads its initial model has not trained yet.
    if initial_facts is None:
      return
  vocabulary_files.save_vocabulary(vocabulary, folder.path)
  facts = {
    'name': task.name,
    'num_train_clients': len(task.train),
    'num_validation_clients': len(task.validation),
    'num_validation_examples': len(examples),
    'num_parameters': num_parameters,
    'train_fingerprint': data_fingerprint.fingerprint(task.train),
    **task.facts(examples),
  }
  if initial_facts is not None:
    facts['initial_model'] = dict(initial_facts)
  folder.write_json('task.json', facts)
