"""Builds the learning process: algorithm, optimizers and transport."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow_federated as tff

from si_federated import config
from si_federated.aggregators import Mechanism
from si_federated.algorithms import (
  ALGORITHM_TRAITS,
  StartedProcess,
  Traits,
  for_variables,
  leave_out_values,
  weights_type,
)
from si_federated.assembly.registries import build_part
from si_federated.compression import (
  COMPRESSORS,
  build_download,
  build_upload,
)


@dataclasses.dataclass(frozen=True)
class Process:
  """A learning process, and the size of its transfers.

  Attributes:
    process: TFF's learning process, which starts from the model's weights.
    takes_client_numbers: Whether a client's datum is a mapping of its
      `examples` and its number, `client`, rather than its batches alone.
    bytes_per_client: Returns, from the metrics of a round, the bytes that a
      client sent, `up`, and received, `down`.
  """

  process: StartedProcess
  takes_client_numbers: bool
  bytes_per_client: Callable[[Mapping[str, Any]], dict[str, float]]


def traits_of(experiment: config.ExperimentConfig) -> Traits:
  """Returns the traits of the experiment's algorithm."""
  return ALGORITHM_TRAITS.get(experiment.algorithm.name, Traits())


def _build_optimizer(
  experiment: config.ExperimentConfig, side: str, variable_names: Sequence[str]
) -> tff.learning.optimizers.Optimizer:
  flag = f'{side}_optimizer'
  rate = getattr(experiment, f'{side}_learning_rate')
  available: dict[str, Any] = {'learning_rate': rate}
  options = dict(getattr(experiment, flag).options)
  if side == 'server' and 'momentum' not in options:
    available['momentum'] = experiment.server_momentum
  optimizer = build_part(experiment, flag, **available)
  try:
    optimizer = for_variables(optimizer, variable_names)
  except ValueError as error:
    raise config.ConfigError(f'--{flag}: {error}') from error
  schedule = experiment.server_learning_rate_schedule
  if (
    side == 'client'
    or schedule == type(experiment).server_learning_rate_schedule
  ):
    return optimizer
  return tff.learning.optimizers.schedule_learning_rate(
    optimizer,
    build_part(
      experiment,
      'server_learning_rate_schedule',
      learning_rate=rate,
      total_rounds=experiment.total_rounds,
    ),
  )


def build_client_optimizer(
  experiment: config.ExperimentConfig,
  model: tff.learning.models.FunctionalModel,
) -> tff.learning.optimizers.Optimizer:
  """Builds the optimizer of the steps on a client.

  Args:
    experiment: The experiment.
    model: The model to train.
  """
  names = getattr(model, 'variable_names', ())
  return _build_optimizer(experiment, 'client', names)


def _num_bytes(weights: Any) -> int:
  return sum(np.asarray(weight).nbytes for weight in weights)


def _build_distributor(
  experiment: config.ExperimentConfig,
  model: tff.learning.models.FunctionalModel,
) -> Optional[tff.learning.templates.DistributionProcess]:
  spec = experiment.compression.download
  if spec is None:
    return None
  return build_download(
    spec.build(COMPRESSORS, 'compression'),
    weights_type(model),
    seed=experiment.client_seed,
  )


def _build_factory(
  experiment: config.ExperimentConfig, mechanism: Mechanism
) -> Any:
  """Returns the aggregation factory, with the upload's compression."""
  spec = experiment.compression.upload
  if spec is None:
    if not traits_of(experiment).sends_parts:
      return mechanism.factory
    # The upload's size is measured, not computed.
    spec = config.ComponentSpec('float32')
  return build_upload(
    mechanism.factory,
    spec.build(COMPRESSORS, 'compression'),
    seed=experiment.client_seed,
  )


def _gradient_factory(
  experiment: config.ExperimentConfig, mechanism: Mechanism
) -> Any:
  """Returns the factory of a second release, with independent noise."""
  factory: Any = mechanism.factory
  if mechanism.record is None:
    return factory
  if not hasattr(factory, 'release'):
    raise config.ConfigError(
      f'--algorithm={experiment.algorithm} also releases a gradient, but an '
      'audit covers updates only; audit fed_avg.'
    )
  return dataclasses.replace(factory, release=1)


def build(
  experiment: config.ExperimentConfig,
  *,
  model: tff.learning.models.FunctionalModel,
  mechanism: Mechanism,
) -> Process:
  """Builds the learning process of an experiment.

  Args:
    experiment: The experiment.
    model: The model to train.
    mechanism: The aggregator, with calibrated noise.

  Returns:
    The process.

  Raises:
    config.ConfigError: If parts cannot be combined, or refuse an option.
  """
  releases = traits_of(experiment).releases_per_round
  names = getattr(model, 'variable_names', ())
  available: dict[str, Any] = {
    'model': leave_out_values(model),
    'client_optimizer': _build_optimizer(experiment, 'client', names),
    'server_optimizer': _build_optimizer(experiment, 'server', names),
    'aggregation_factory': _build_factory(experiment, mechanism),
    'client_weighting': mechanism.client_weighting,
    'model_distributor': _build_distributor(experiment, model),
    'seed': experiment.client_seed,
  }
  if releases > 1:
    available['gradient_aggregation_factory'] = _gradient_factory(
      experiment, mechanism
    )
  process = build_part(experiment, 'algorithm', **available)
  trainable, others = model.initial_weights
  update_bytes = _num_bytes(trainable)
  # A second release, a gradient, is not compressed; neither is the optimizer's
  # state, which clients then receive with the model.
  more_up = (releases - 1) * update_bytes
  more_down = 0
  if releases > 1:
    state_type = process.initialize.type_signature.result.member
    optimizer_type = state_type.client_work[0]
    more_down = sum(
      int(np.prod(leaf.shape or ())) * np.dtype(leaf.dtype).itemsize
      for leaf in tff.structure.flatten(optimizer_type)
    )
  if mechanism.sends_scales:
    # Float32, for each release.
    more_down += 4 * releases * sum(np.size(weight) for weight in trainable)
  down = update_bytes + _num_bytes(others)

  def bytes_per_client(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
      'up': more_up
      + _measured(metrics, 'aggregator', 'bytes_up_per_client', update_bytes),
      'down': more_down
      + _measured(metrics, 'distributor', 'bytes_down_per_client', down),
    }

  data_type = process.next.type_signature.parameter[1].member
  return Process(
    StartedProcess(process, model.initial_weights),
    not isinstance(data_type, tff.SequenceType),
    bytes_per_client,
  )


def _measured(
  metrics: Mapping[str, Any], part: str, name: str, otherwise: float
) -> float:
  measured = metrics.get(part)
  if isinstance(measured, collections.abc.Mapping) and name in measured:
    return float(measured[name])
  return float(otherwise)
