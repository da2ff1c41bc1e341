"""Whether an initial model was trained on the clients of a private run."""

from __future__ import annotations

import os
from typing import Optional

from si_federated import config
from si_federated.training import run_folder
from si_federated.weights import weight_files


def reason_against(experiment: config.ExperimentConfig) -> Optional[str]:
  """Returns a clause if the initial model undoes a guarantee, else None.

  The run's models also reveal what the initial model reveals about the data it
  was trained on. So the guarantee fails for clients whose data trained the
  initial model, or a model that it started from. The run of `--clip_norm_from`
  is an exception: its privacy is counted.

  Args:
    experiment: The experiment.
  """
  path = experiment.initial_model
  seen: set[str] = set()
  while path is not None:
    if not os.path.exists(path) and weight_files.find(path) is None:
      return (
        'it cannot be checked whether the initial model was trained on these '
        f'clients, because {path} no longer exists'
      )
    folder = _run_of(path)
    if folder in seen:
      return None
    seen.add(folder)
    try:
      held = run_folder.read_config(folder)
    except config.ConfigError:
      # A file of weights, whose origin is unknown.
      return None
    if _trains_on_clients_of(held, folder, experiment) and not _is_counted(
      folder, experiment
    ):
      privacy = run_folder.read_privacy(folder)
      how = 'without differential privacy'
      if privacy.get('private'):
        how = (
          f'with an epsilon of {privacy["epsilon"]:.4g} at delta '
          f'{privacy["delta"]:.3g}, which is not added to this one'
        )
      return f'the initial model was trained on these clients {how} ({path})'
    path = held.initial_model
  return None


def _run_of(path: str) -> str:
  """Returns the folder of the run that a path of `--initial_model` is in."""
  path = os.path.realpath(path)
  if os.path.isfile(path):
    return os.path.dirname(os.path.dirname(path))
  return path


def _trains_on_clients_of(
  held: config.ExperimentConfig,
  folder: str,
  experiment: config.ExperimentConfig,
) -> bool:
  return (
    held.task == experiment.task
    and held.data_dir == experiment.data_dir
    and run_folder.read_text_files(folder) is None
  )


def _is_counted(folder: str, experiment: config.ExperimentConfig) -> bool:
  counted = experiment.clip_norm_from
  return counted is not None and os.path.realpath(counted) == folder
