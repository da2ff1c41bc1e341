"""Builds the privacy of a run: mechanism with its noise, and ledger."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Optional

from si_federated import config
from si_federated.aggregators import NOISE_FROM_CLIENTS, Mechanism
from si_federated.assembly import (
  audit_stage,
  client_schedule,
  earlier_run,
  privacy_disclosures,
)
from si_federated.assembly.learning_process import traits_of
from si_federated.assembly.registries import build_part
from si_federated.privacy import (
  accounting,
  ledger,
  schedules,
  strategies,
  strategy_files,
)


def build_mechanism(
  experiment: config.ExperimentConfig,
  schedule: Optional[schedules.Schedule] = None,
) -> Mechanism:
  """Builds the aggregator; its noise is set by `calibrate`.

  Args:
    experiment: The experiment.
    schedule: The clients of each round. If given, its own guarantees are the
      default of the contract, which it must meet.

  Returns:
    The mechanism.

  Raises:
    config.ConfigError: If flags cannot be combined, or the schedule does not
      meet the mechanism's contract.
  """
  separation = experiment.min_separation
  participations = experiment.max_participations
  met, block = None, 0
  if schedule is not None and experiment.total_rounds:
    met = schedule.contract(experiment.total_rounds)
    if separation is None and (
      met.min_separation > 1
      or met.participations == 1
      or met.block
      or client_schedule.bands_are_open(experiment)
    ):
      separation, block = met.min_separation, met.block
    if participations is None:
      participations = met.participations
  if (
    experiment.aggregator.name in NOISE_FROM_CLIENTS
    and schedule
    and schedule.amplification
  ):
    raise config.ConfigError(
      f'--participation={experiment.participation} has cohorts of varying '
      f'size, and with --aggregator={experiment.aggregator} each of '
      '--clients_per_round '
      'clients adds its share of the noise; choose another --participation.'
    )
  noise = experiment.noise_multiplier
  before = earlier_run.read(
    experiment, None if schedule is None else schedule.num_clients
  )
  mechanism = build_part(
    experiment,
    'aggregator',
    clip_norm=experiment.clip_norm if before is None else before.clip_norm,
    # The noise for a target epsilon depends on the strategy.
    noise_multiplier=1.0 if noise is None else noise,
    clients_per_round=experiment.clients_per_round,
    total_rounds=experiment.total_rounds,
    min_separation=separation,
    max_participations=participations,
    noise_seed=experiment.noise_seed,
    noise_cohort_size=experiment.noise_cohort_size,
    block=block,
    cache_dir=client_schedule.strategy_cache(),
  )
  if met is not None and mechanism.contract is not None:
    try:
      mechanism.contract.check_covers(
        met, what=f'--participation={experiment.participation}'
      )
    except ValueError as error:
      raise config.ConfigError(str(error)) from error
  return mechanism


def keep_strategy(
  mechanism: Mechanism, path: str, *, resumed: bool
) -> Mechanism:
  """Stores the strategy of a run in a file, which a resumed run reads.

  The noise of all rounds must use one strategy, but a user's file can change,
  and an optimizer can find another result on another machine.

  Args:
    mechanism: From `build_mechanism`.
    path: The file in the run's folder.
    resumed: Whether the run has checkpoints.

  Returns:
    The mechanism, with the strategy in the file.

  Raises:
    config.ConfigError: If the file can't be read, or has another kind.
  """
  strategy = getattr(mechanism.record, 'strategy', None)
  # Flags alone determine a tree.
  if strategy is None or isinstance(strategy, strategies.Tree):
    return mechanism
  if not resumed:
    strategy_files.save(path, strategy)
    return mechanism
  if not os.path.exists(path):
    # Older runs have no such file; their ledger checks the strategy.
    return mechanism
  try:
    return mechanism.with_strategy(strategy_files.load(path))
  except ValueError as error:
    raise config.ConfigError(
      f"The run's own strategy cannot be used ({error}); restore that file, or "
      'start a new run under another --experiment_name.'
    ) from error


def calibrate(
  experiment: config.ExperimentConfig,
  mechanism: Mechanism,
  *,
  delta: Optional[float],
  schedule: Optional[schedules.Schedule] = None,
  dimension: Optional[int] = None,
) -> Mechanism:
  """Returns a mechanism with the requested noise.

  Args:
    experiment: The experiment.
    mechanism: From `build_mechanism`.
    delta: The delta for the noise of a target epsilon.
    schedule: The clients of each round, whose sampling can amplify privacy.
    dimension: The number of trained weights, which some accounting needs.

  Raises:
    config.ConfigError: If no noise gives the epsilon.
  """
  if dimension is not None:
    mechanism = mechanism.for_dimension(dimension)
  record: Any = mechanism.record
  if record is None:
    return mechanism
  # A mechanism with this record releases each of a round's sums.
  if (releases := traits_of(experiment).releases_per_round) > 1:
    record = dataclasses.replace(record, releases=releases)
  if (before := earlier_run.read(experiment)) is not None:
    if not isinstance(record, accounting.PrivacyRecord):
      raise config.ConfigError(
        f'--clip_norm_from cannot be added to --aggregator='
        f'{experiment.aggregator}, whose noise is not Gaussian; give the clip '
        'norm, or choose another aggregator.'
      )
    record = dataclasses.replace(record, earlier=(before.record,))
  if schedule is not None and schedule.amplification is not None:
    # Records that this sampling does not amplify keep their larger epsilon.
    with contextlib.suppress(TypeError, ValueError):
      record = dataclasses.replace(record, amplification=schedule.amplification)
  if experiment.target_epsilon is not None:
    if delta is None:
      raise config.ConfigError('--target_epsilon needs --delta.')
    try:
      record = accounting.calibrate(
        record, target_epsilon=experiment.target_epsilon, delta=delta
      )
    except ValueError as error:
      raise config.ConfigError(
        f'--aggregator={experiment.aggregator}: {error}'
      ) from error
  return mechanism.with_record(record)


def delta_notices(
  mechanism: Mechanism, delta: float, num_clients: int
) -> list[str]:
  """Returns a warning if a delta is too large to mean privacy, else nothing.

  Args:
    mechanism: The aggregator.
    delta: Its delta.
    num_clients: The number of training clients.
  """
  if mechanism.record is None or delta <= 1 / num_clients:
    return []
  return [
    f'--delta={delta:.3g} is above 1/{num_clients}, one over the number of '
    'clients: publishing the data of a few clients would satisfy it. Choose a '
    'smaller delta, or leave the flag out.'
  ]


def simulated_population(
  experiment: config.ExperimentConfig, mechanism: Mechanism, num_clients: int
) -> Optional[dict[str, Any]]:
  """Describes the population that the noise of a larger cohort simulates.

  Each client takes part as often as in this run. With cohorts k times as large,
  the population is therefore k times as large, and the default delta smaller.

  Args:
    experiment: The experiment.
    mechanism: The aggregator, with calibrated noise.
    num_clients: The number of training clients.

  Returns:
    Its size, delta and epsilon; None if no larger cohort is simulated.
  """
  size = mechanism.noise_cohort_size
  record: Any = mechanism.record
  if size is None or record is None:
    return None
  population = num_clients * size // experiment.clients_per_round
  delta = client_schedule.default_delta(experiment, population)
  sampling = record.amplification
  if sampling is not None and sampling.max_cohort_size is not None:
    # Larger cohorts are truncated at a size that is larger in proportion.
    larger = {
      name: getattr(sampling, name) * size // experiment.clients_per_round
      for name in ('max_cohort_size', 'num_clients')
    }
    record = dataclasses.replace(
      record, amplification=dataclasses.replace(sampling, **larger)
    )
  return {
    'num_clients': population,
    'delta': delta,
    'epsilon': record.epsilon(delta) if record.noise_multiplier else None,
  }


def _chosen_bands(
  experiment: config.ExperimentConfig, mechanism: Mechanism
) -> Optional[dict[str, Any]]:
  """Returns what `bands=auto` chose, if it did."""
  record: Any = mechanism.record
  if not client_schedule.bands_are_open(experiment):
    return None
  amplification = record.amplification
  return {
    'bands': record.strategy.bands,
    'groups': amplification and amplification.groups,
    'for_epsilon': experiment.target_epsilon,
  }


def _update_noise(mechanism: Mechanism) -> Optional[float]:
  """Returns the updates' noise multiplier, if counts have another one."""
  factory: Any = mechanism.factory
  adaptive = getattr(factory, 'adaptive', None)
  if adaptive is None or mechanism.record is None:
    return None
  return adaptive.split(
    mechanism.record.noise_multiplier, factory.settings.cohort_size
  )[0]


def build_ledger(
  experiment: config.ExperimentConfig,
  mechanism: Mechanism,
  *,
  train_metrics: Sequence[str],
  num_clients: int,
  added: Optional[audit_stage.Canaries] = None,
) -> ledger.Ledger:
  """Builds the ledger of a run.

  Args:
    experiment: The experiment.
    mechanism: The aggregator.
    train_metrics: The names of the training metrics, which have no noise.
    num_clients: The number of training clients.
    added: Canaries in the cohorts.
  """
  strategy = getattr(mechanism.record, 'strategy', None)
  before = earlier_run.read(experiment, num_clients)
  delta = client_schedule.default_delta(experiment, num_clients)
  return ledger.Ledger(
    mechanism=str(experiment.aggregator),
    delta=delta,
    contract=mechanism.contract,
    record=mechanism.record,
    simulated_because=privacy_disclosures.simulated_because(
      experiment, mechanism
    ),
    facts={
      'strategy': strategy and strategy_files.facts(strategy),
      'clip_norm': experiment.clip_norm if before is None else before.clip_norm,
      'clip_norm_from': before and before.facts,
      'participation': str(experiment.participation),
      'clients_per_round': experiment.clients_per_round,
      'num_clients': num_clients,
      'client_seed': experiment.client_seed,
      'noise_cohort_size': mechanism.noise_cohort_size,
      'simulated_population': simulated_population(
        experiment, mechanism, num_clients
      ),
      'client_similarity': experiment.client_similarity,
      'chosen_bands': _chosen_bands(experiment, mechanism),
      # A secret seed is part of the state, so that resuming can't change it.
      'noise_seed_is_secret': experiment.noise_seed is None
      and experiment.aggregator.name not in NOISE_FROM_CLIENTS,
      'canaries': added and dataclasses.asdict(added),
    },
    trust_model=privacy_disclosures.trust_model(experiment, mechanism),
    update_noise=_update_noise(mechanism),
    released=privacy_disclosures.released(experiment, mechanism),
    unnoised=privacy_disclosures.unnoised(experiment, mechanism, train_metrics),
    not_covered=privacy_disclosures.not_covered(experiment),
  )
