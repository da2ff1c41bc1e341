"""The parts of an experiment by flag, and the function that builds one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from si_federated import config
from si_federated.aggregators import AGGREGATORS
from si_federated.algorithms import (
  ALGORITHMS,
  LEARNING_RATE_SCHEDULES,
  OPTIMIZERS,
)
from si_federated.compression import COMPRESSORS
from si_federated.diagnostics.plan import DIAGNOSTICS
from si_federated.models import MODELS, TRANSFORMS
from si_federated.privacy.schedules import SCHEDULES
from si_federated.runtime import RUNTIMES
from si_federated.tasks import TASKS, VOCABULARIES

REGISTRIES: dict[str, dict[str, Callable[..., Any]]] = {
  'task': TASKS,
  'vocabulary': VOCABULARIES,
  'model': MODELS,
  'transform': TRANSFORMS,
  'algorithm': ALGORITHMS,
  'aggregator': AGGREGATORS,
  'participation': SCHEDULES,
  'runtime': RUNTIMES,
  'client_optimizer': OPTIMIZERS,
  'server_optimizer': OPTIMIZERS,
  'server_learning_rate_schedule': LEARNING_RATE_SCHEDULES,
  'compression': COMPRESSORS,
  'diagnostics': DIAGNOSTICS,
}
# Arguments of builders that are not options of the part, since they come from
# flags of their own or from other parts.
_GIVEN: dict[str, tuple[str, ...]] = {
  'task': ('data_dir', 'vocab_size', 'sequence_length'),
  'model': ('vocab_size', 'num_classes'),
  'transform': ('model',),
  'algorithm': (
    'model',
    'client_optimizer',
    'server_optimizer',
    'aggregation_factory',
    'gradient_aggregation_factory',
    'client_weighting',
    'model_distributor',
    'seed',
  ),
  'aggregator': (
    'clip_norm',
    'noise_multiplier',
    'clients_per_round',
    'total_rounds',
    'min_separation',
    'max_participations',
    'noise_seed',
    'noise_cohort_size',
    'block',
    'cache_dir',
  ),
  'participation': (
    'num_clients',
    'clients_per_round',
    'seed',
    'min_separation',
    'max_participations',
    'num_guests',
  ),
  'client_optimizer': ('learning_rate',),
  'server_optimizer': ('learning_rate',),
  'server_learning_rate_schedule': ('learning_rate', 'total_rounds'),
}


def check_names(experiment: config.ExperimentConfig) -> None:
  """Checks the name and the options of every part.

  Args:
    experiment: The experiment.

  Raises:
    config.ConfigError: If a part or an option does not exist.
  """
  for flag, registry in REGISTRIES.items():
    getattr(experiment, flag).check(registry, flag, _GIVEN.get(flag, ()))


def builder(
  experiment: config.ExperimentConfig, flag: str
) -> Callable[..., Any]:
  """Returns the builder that a flag names.

  Args:
    experiment: The experiment.
    flag: A key of `REGISTRIES`.
  """
  return REGISTRIES[flag][getattr(experiment, flag).name]


def build_part(
  experiment: config.ExperimentConfig, flag: str, **available: Any
) -> Any:
  """Builds the part that a flag names.

  Args:
    experiment: The experiment.
    flag: A key of `REGISTRIES`.
    **available: Arguments that do not come from the part's options; the builder
      gets those that it accepts.

  Returns:
    The part.

  Raises:
    config.ConfigError: If the builder rejects an option's value.
  """
  return getattr(experiment, flag).build(REGISTRIES[flag], flag, **available)
