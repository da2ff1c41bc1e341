"""The checks of an experiment before any data is read."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from si_federated import config
from si_federated.aggregators import NOISE_FROM_CLIENTS, is_private
from si_federated.assembly import (
  client_schedule,
  expert_options,
  registries,
)
from si_federated.assembly.learning_process import traits_of
from si_federated.models import MODELS
from si_federated.tasks import TASKS

_PRIVACY_FLAGS = (
  'clip_norm',
  'clip_norm_from',
  'noise_multiplier',
  'target_epsilon',
  'noise_cohort_size',
  'noise_seed',
)


def check(experiment: config.ExperimentConfig) -> None:
  """Checks an experiment as far as possible without its data.

  Args:
    experiment: The experiment.

  Raises:
    config.ConfigError: If a part or an option does not exist, a flag is missing
      or has no effect, or parts cannot be combined.
  """
  registries.check_names(experiment)
  _check_privacy(experiment)
  _check_participation(experiment)
  _check_algorithm(experiment)
  _check_objective(experiment)
  expert_options.check(experiment)


def planned_for_rounds(experiment: config.ExperimentConfig) -> list[str]:
  """Returns the parts that depend on the number of rounds, as phrases.

  Args:
    experiment: The experiment.
  """
  planned = []
  if is_private(experiment.aggregator.name):
    planned.append(f'the guarantee of --aggregator={experiment.aggregator}')
  schedule = experiment.server_learning_rate_schedule
  if schedule.name != type(experiment).server_learning_rate_schedule.name:
    planned.append(f'--server_learning_rate_schedule={schedule}')
  return planned


def _parameters(
  experiment: config.ExperimentConfig, flag: str
) -> Mapping[str, inspect.Parameter]:
  return inspect.signature(registries.builder(experiment, flag)).parameters


def _check_privacy(experiment: config.ExperimentConfig) -> None:
  """Checks that the flags of privacy can be combined."""
  name = experiment.aggregator.name
  parameters = _parameters(experiment, 'aggregator')
  if not is_private(name):
    for flag in _PRIVACY_FLAGS:
      if getattr(experiment, flag) is not None:
        raise config.ConfigError(
          f'--{flag} has no effect on --aggregator={name}, which is not '
          'private; choose a private aggregator or leave it out.'
        )
    return
  for flag in _PRIVACY_FLAGS:
    if (
      flag in parameters
      and parameters[flag].default is inspect.Parameter.empty
      and flag != 'noise_multiplier'
      and getattr(experiment, flag) is None
      and not (flag == 'clip_norm' and experiment.clip_norm_from is not None)
    ):
      raise config.ConfigError(f'--aggregator={name} needs --{flag}.')
    if (
      flag not in (*parameters, 'target_epsilon', 'clip_norm_from')
      and getattr(experiment, flag) is not None
    ):
      raise config.ConfigError(
        f'--{flag} has no effect on --aggregator={name}; leave it out.'
      )
  if experiment.noise_multiplier is None and experiment.target_epsilon is None:
    raise config.ConfigError(
      f'--aggregator={name} needs --noise_multiplier or --target_epsilon; '
      '--noise_multiplier=0 clips without noise.'
    )


def _check_participation(experiment: config.ExperimentConfig) -> None:
  """Checks that a schedule has the separation that it needs."""
  separation = _parameters(experiment, 'participation').get('min_separation')
  if (
    separation is not None
    and separation.default is separation.empty
    and experiment.min_separation is None
    and not client_schedule.chooses_separation(experiment)
  ):
    raise config.ConfigError(
      f'--participation={experiment.participation.name} needs '
      '--min_separation, in rounds.'
    )


def _check_algorithm(experiment: config.ExperimentConfig) -> None:
  """Checks that algorithm, aggregator and compression can be combined."""
  algorithm, aggregator = experiment.algorithm.name, experiment.aggregator.name
  traits = traits_of(experiment)
  if aggregator in NOISE_FROM_CLIENTS:
    if experiment.compression.upload is not None:
      raise config.ConfigError(
        f'--compression={experiment.compression} cannot be combined with '
        f'--aggregator={aggregator}: secure aggregation adds up encoded '
        'updates without decoding them. Leave out the compression of uploads, '
        'which that aggregator quantises itself.'
      )
    if traits.releases_per_round > 1:
      raise config.ConfigError(
        f'--algorithm={algorithm} also releases a gradient, for which '
        f'--aggregator={aggregator} has no accounting; choose another '
        'aggregator.'
      )
  if not traits.makes_client_steps and experiment.client_epochs_per_round != 1:
    raise config.ConfigError(
      f"--algorithm={algorithm} takes one gradient of all of a client's "
      'examples; leave out --client_epochs_per_round.'
    )


def _required(builder: Callable) -> set[str]:
  return {
    name
    for name, parameter in inspect.signature(builder).parameters.items()
    if parameter.default is inspect.Parameter.empty
  }


def _check_objective(experiment: config.ExperimentConfig) -> None:
  """Checks that task and model have the same objective and fit in length."""
  task, model = experiment.task.name, experiment.model.name
  if task not in TASKS:  # In pretraining on plain text.
    return
  kind: Any = typing.get_type_hints(TASKS[task]).get('return')
  if not hasattr(kind, 'MODEL_ARGUMENTS'):  # A user's task, not annotated.
    return
  given = set(kind.MODEL_ARGUMENTS)
  if _required(MODELS[model]) != given:
    fitting = [n for n, b in MODELS.items() if _required(b) == given]
    what = {'next_token': 'the next token', 'class': 'the class of a text'}
    raise config.ConfigError(
      f'--model={model} does not fit --task={task}, which predicts '
      f'{what[kind.OBJECTIVE]}; choose one of '
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
