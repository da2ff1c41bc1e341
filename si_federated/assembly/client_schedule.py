"""Builds the schedule of clients, and what it shares with the mechanism."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from si_federated import config, files
from si_federated.assembly.learning_process import traits_of
from si_federated.assembly.registries import build_part, builder
from si_federated.privacy import (
  band_choice,
  schedules,
  separation_choice,
  workloads,
)


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
  if separation is None and chooses_separation(experiment):
    separation = _chosen_separation(experiment, num_clients)
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


def chooses_separation(experiment: config.ExperimentConfig) -> bool:
  """Returns whether `bands=auto` may choose the separation of a schedule.

  For groups that take turns, that is their number.
  """
  schedule = builder(experiment, 'participation')
  return bool(
    getattr(schedule, 'chosen_by_bands', '') and bands_are_open(experiment)
  )


def bands_are_open(experiment: config.ExperimentConfig) -> bool:
  """Returns whether `bands=auto` chooses the bands of the aggregator."""
  return dict(experiment.aggregator.options).get('bands') == 'auto'


def _chosen_separation(
  experiment: config.ExperimentConfig, num_clients: int
) -> int:
  """Returns the separation that is best at the target epsilon."""
  options = dict(experiment.aggregator.options)
  rounds, epsilon = experiment.total_rounds, experiment.target_epsilon
  if not rounds or epsilon is None or not 0 < epsilon < math.inf:
    raise config.ConfigError(
      f'--aggregator={experiment.aggregator} chooses the separation of '
      f'--participation={experiment.participation}, or its groups, for a '
      'finite --target_epsilon; give one, or --min_separation.'
    )
  if num_clients < experiment.clients_per_round:
    # Any number: the schedule then raises an error for too few clients.
    return 1
  kind = getattr(builder(experiment, 'participation'), 'chosen_by_bands', '')
  setting: dict[str, Any] = {
    'num_clients': num_clients,
    'clients_per_round': experiment.clients_per_round,
    'target_epsilon': epsilon,
    'delta': default_delta(experiment, num_clients),
    'releases': traits_of(experiment).releases_per_round,
    'objective': str(options.get('objective', 'rms')),
  }
  momentum = float(options.get('momentum') or 0)
  cool_down = float(options.get('cool_down') or 0)

  def choose() -> int:
    given = {
      **setting,
      'workload': workloads.server_sgd(
        rounds, momentum=momentum, falling=cool_down
      ),
      'cache': strategy_cache(),
    }
    if kind == 'separation':
      return separation_choice.choose_separation(rounds, **given)
    best, _ = band_choice.choose_groups(rounds, **given)
    return best.groups

  return _remembered(
    {
      'version': 1,
      'chosen': kind,
      'rounds': rounds,
      'momentum': momentum,
      'cool_down': cool_down,
      **setting,
    },
    choose,
  )


def _remembered(
  parameters: Mapping[str, Any], choose: Callable[[], int]
) -> int:
  """Returns a choice from the cache, or makes and stores it.

  It takes up to a minute, also when a run is resumed.

  Args:
    parameters: All values that determine the choice, fit for JSON.
    choose: Makes it.
  """
  text = json.dumps(parameters, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:20]
  path = os.path.join(strategy_cache(), f'separation-{digest}.json')
  with contextlib.suppress(OSError, ValueError, TypeError):
    with open(path, encoding='utf-8') as file:
      found = json.load(file)
    if isinstance(found, int) and found >= 1:
      return found
  chosen = choose()
  files.write_atomically(path, json.dumps(chosen))
  return chosen


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
