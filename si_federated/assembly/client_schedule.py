"""Builds the schedule of clients, and what it shares with the mechanism."""

from __future__ import annotations

import math
import os

from si_federated import config, files
from si_federated.assembly.learning_process import traits_of
from si_federated.assembly.registries import build_part, builder
from si_federated.privacy import band_choice, schedules, workloads


def build_schedule(
  experiment: config.ExperimentConfig,
  num_clients: int,
  num_canaries: int = 0,
) -> schedules.Schedule:
  """Builds the schedule of clients.

  Args:
    experiment: The experiment.
    num_clients: The number of training clients.
    num_canaries: The number of canaries of an audit, which take places as
      clients do in cohorts of a maximum size.

  Returns:
    The schedule.

  Raises:
    config.ConfigError: If the schedule does not exist, has an option out of
      range, or lacks clients for a round.
  """
  separation = experiment.min_separation
  if separation is None and chooses_groups(experiment):
    separation = _chosen_groups(experiment, num_clients)
  schedule = build_part(
    experiment,
    'participation',
    num_clients=num_clients,
    clients_per_round=experiment.clients_per_round,
    seed=experiment.client_seed,
    min_separation=separation,
    max_participations=experiment.max_participations,
    num_guests=num_canaries,
  )
  if experiment.total_rounds:
    try:
      schedule.check_rounds(experiment.total_rounds)
    except ValueError as error:
      raise config.ConfigError(
        f'--participation={experiment.participation}: {error}'
      ) from error
  return schedule


def chooses_groups(experiment: config.ExperimentConfig) -> bool:
  """Returns whether `bands=auto` may choose the groups of a schedule."""
  schedule = builder(experiment, 'participation')
  return bool(
    getattr(schedule, 'groups_by_bands', False) and bands_are_open(experiment)
  )


def bands_are_open(experiment: config.ExperimentConfig) -> bool:
  """Returns whether `bands=auto` chooses the bands of the aggregator."""
  return dict(experiment.aggregator.options).get('bands') == 'auto'


def _chosen_groups(
  experiment: config.ExperimentConfig, num_clients: int
) -> int:
  """Returns the number of groups that is best at the target epsilon."""
  options = dict(experiment.aggregator.options)
  rounds, epsilon = experiment.total_rounds, experiment.target_epsilon
  if not rounds or epsilon is None or not 0 < epsilon < math.inf:
    raise config.ConfigError(
      f'--aggregator={experiment.aggregator} chooses the groups of '
      f'--participation={experiment.participation} for a finite '
      '--target_epsilon; give one, or --min_separation, the number of groups.'
    )
  if num_clients < experiment.clients_per_round:
    # The schedule says so.
    return 1
  objective = str(options.get('objective', 'rms'))
  best, _ = band_choice.choose_groups(
    rounds,
    num_clients=num_clients,
    clients_per_round=experiment.clients_per_round,
    target_epsilon=epsilon,
    delta=default_delta(experiment, num_clients),
    releases=traits_of(experiment).releases_per_round,
    workload=workloads.server_sgd(
      rounds,
      momentum=float(options.get('momentum') or 0),
      falling=float(options.get('cool_down') or 0),
    ),
    objective=objective,
    cache=strategy_cache(),
  )
  return best.groups


def strategy_cache() -> str:
  """Returns the folder that keeps optimised strategies."""
  return os.path.join(files.cache_folder(), 'strategies')


def default_delta(
  experiment: config.ExperimentConfig, num_clients: int
) -> float:
  """Returns the delta of the flag, or a default for the population's size.

  Args:
    experiment: The experiment.
    num_clients: The number of training clients.
  """
  if experiment.delta is not None:
    return experiment.delta
  return float(max(num_clients, 2)) ** -1.1
