"""Clients and settings from the options of expert personalization."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Optional

import numpy as np

from si_federated import config
from si_federated.assembly.learning_process import traits_of
from si_federated.assembly.registries import builder
from si_federated.personalization import (
  ExpertSettings,
  client_hashing,
  experts,
)
from si_federated.tasks import AnyTask


def options_of(experiment: config.ExperimentConfig) -> dict[str, Any]:
  """Returns all options of the algorithm, defaults included.

  Args:
    experiment: The experiment.
  """
  return {
    **{
      name: parameter.default
      for name, parameter in inspect.signature(
        builder(experiment, 'algorithm')
      ).parameters.items()
    },
    **dict(experiment.algorithm.options),
  }


def settings_of(experiment: config.ExperimentConfig) -> ExpertSettings:
  """Returns the settings by which clients train their experts.

  Args:
    experiment: The experiment.

  Raises:
    ValueError: If an option is out of range.
  """
  options = options_of(experiment)
  given: dict[str, Any] = {
    'batch_size': experiment.client_batch_size,
    'seed': experiment.client_seed,
  }
  return ExpertSettings(
    **given,
    **{
      field.name: options[field.name]
      for field in dataclasses.fields(ExpertSettings)
      if field.name not in given
    },
  )


def check(experiment: config.ExperimentConfig) -> None:
  """Checks the options of the experts, before any data is read.

  Args:
    experiment: The experiment.

  Raises:
    config.ConfigError: If one is out of range.
  """
  if not traits_of(experiment).trains_experts:
    return
  options = options_of(experiment)
  try:
    settings_of(experiment)
    if not 0 <= options['opt_out'] < 1:
      raise ValueError(
        'opt_out is a share of the clients, from 0 to below 1: '
        f'{options["opt_out"]}.'
      )
    if options['opt_out'] and experiment.client_similarity:
      raise ValueError(
        f'with --client_similarity={experiment.client_similarity} other '
        'clients get sentences of those that opt out; leave out one of the '
        'two.'
      )
    if not isinstance(options['num_clients'], int) or (
      options['num_clients'] < 1
    ):
      raise ValueError(
        f'num_clients must be a whole number of at least 1: '
        f'{options["num_clients"]}.'
      )
  except (TypeError, ValueError) as error:
    raise config.ConfigError(
      f'--algorithm={experiment.algorithm}: {error}'
    ) from error


def task_of_rounds(
  experiment: config.ExperimentConfig, task: AnyTask
) -> AnyTask:
  """Returns the part of a task that the rounds use.

  Args:
    experiment: The experiment.
    task: The whole task.

  Returns:
    The task; with experts, its training clients are those that have not opted
    out, each with only the examples that it trains on later, so that it can be
    evaluated on the others.

  Raises:
    config.ConfigError: If all clients have opted out.
  """
  if not traits_of(experiment).trains_experts:
    return task
  seed, population = experiment.client_seed, task.train
  fraction = options_of(experiment)['opt_out']
  members = [
    index
    for index in range(len(population))
    if not client_hashing.has_opted_out(
      population.client_id(index), seed=seed, fraction=fraction
    )
  ]
  if not members:
    raise config.ConfigError(
      f'--algorithm={experiment.algorithm}: all {len(population)} clients have '
      'opted out; lower opt_out.'
    )

  def training_rows(index: int) -> Optional[np.ndarray]:
    parts = experts.rows(
      population.num_examples(index), population.client_id(index), seed=seed
    )
    # Clients with too few examples for experts are not evaluated, so that the
    # rounds use all of their examples.
    return None if parts is None else parts[0]

  part: Any = population.subset(members, training_rows)
  return dataclasses.replace(task, train=part)
