"""From flags to a learning process: algorithm, optimizers and transport.

A part of the composition root.
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow_federated as tff

from si_federated import config
from si_federated.aggregators import Mechanism
from si_federated.algorithms import (
  ALGORITHMS,
  LEARNING_RATE_SCHEDULES,
  OPTIMIZERS,
  StartedProcess,
  leave_out_values,
  spare,
  weights_type,
)
from si_federated.compression import (
  COMPRESSORS,
  build_download,
  build_upload,
)

# The arguments that come from flags of their own, or from other parts.
ALGORITHM_GIVEN = (
  'model',
  'client_optimizer',
  'server_optimizer',
  'aggregation_factory',
  'gradient_aggregation_factory',
  'client_weighting',
  'model_distributor',
  'seed',
)
# Clients release more than an update, each by a mechanism of its own.
_RELEASES = {'mime_lite': 2}
_NO_CLIENT_STEPS = ('fed_sgd',)
_PARTIAL = 'partial_training'


@dataclasses.dataclass(frozen=True)
class Process:
  """A learning process, and what it sends.

  Attributes:
    process: TFF's learning process, which starts from the model's weights.
    takes_client_numbers: Whether a client's datum is a mapping of its
      `examples` and its number, `client`, rather than its batches alone.
    bytes_per_client: From the metrics of a round, how many bytes a client
      sent, `up`, and received, `down`.
  """

  process: StartedProcess
  takes_client_numbers: bool
  bytes_per_client: Callable[[Mapping[str, Any]], dict[str, float]]


def check(experiment: config.ExperimentConfig) -> None:
  """Checks that algorithm, aggregator and compression go together.

  Args:
    experiment: What is to be run.

  Raises:
    config.ConfigError: If they do not.
  """
  algorithm = experiment.algorithm.name
  aggregator = experiment.aggregator.name
  if aggregator == 'distributed_dp':
    if experiment.compression.upload is not None:
      raise config.ConfigError(
        f'--compression={experiment.compression} can not be combined with '
        '--aggregator=distributed_dp: secure aggregation adds up what clients '
        'send, and can not decode it first; leave the upload as it is, which '
        'that aggregator quantises itself.'
      )
    if algorithm in _RELEASES:
      raise config.ConfigError(
        f'--algorithm={algorithm} releases a gradient beside the update, for '
        'which --aggregator=distributed_dp has no accounting; choose another '
        'aggregator.'
      )
  if algorithm in _NO_CLIENT_STEPS and experiment.client_epochs_per_round != 1:
    raise config.ConfigError(
      f"--algorithm={algorithm} takes one gradient of all of a client's "
      'examples; leave out --client_epochs_per_round.'
    )


def num_releases(experiment: config.ExperimentConfig) -> int:
  """Returns how many sums of what clients send a round releases.

  Args:
    experiment: What is to be run.
  """
  return _RELEASES.get(experiment.algorithm.name, 1)


def _build_optimizer(
  experiment: config.ExperimentConfig, side: str, variable_names: Sequence[str]
) -> tff.learning.optimizers.Optimizer:
  flag = f'{side}_optimizer'
  spec = getattr(experiment, flag)
  options = dict(spec.options)
  if side == 'server' and spec.name == 'sgdm':
    options.setdefault('momentum', experiment.server_momentum)
  rate = getattr(experiment, f'{side}_learning_rate')
  optimizer = dataclasses.replace(spec, options=tuple(options.items())).build(
    OPTIMIZERS, flag, learning_rate=rate
  )
  optimizer = spare(optimizer, variable_names)
  schedule = experiment.server_learning_rate_schedule
  if side == 'client' or schedule == config.ComponentSpec('constant'):
    return optimizer
  return tff.learning.optimizers.schedule_learning_rate(
    optimizer,
    schedule.build(
      LEARNING_RATE_SCHEDULES,
      'server_learning_rate_schedule',
      learning_rate=rate,
      total_rounds=experiment.total_rounds,
    ),
  )


def build_client_optimizer(
  experiment: config.ExperimentConfig,
  model: tff.learning.models.FunctionalModel,
) -> tff.learning.optimizers.Optimizer:
  """Builds what makes the steps on a client.

  Args:
    experiment: What is to be run.
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
  """Returns the aggregation factory, behind the upload's compression."""
  spec = experiment.compression.upload
  if spec is None:
    if experiment.algorithm.name != _PARTIAL:
      return mechanism.factory
    # What is not sent is measured, not computed.
    spec = config.ComponentSpec('float32')
  return build_upload(
    mechanism.factory,
    spec.build(COMPRESSORS, 'compression'),
    seed=experiment.client_seed,
  )


def _gradient_factory(
  experiment: config.ExperimentConfig, mechanism: Mechanism
) -> Any:
  """Returns the factory of a second release, with noise of its own."""
  factory: Any = mechanism.factory
  if mechanism.record is None:
    return factory
  if not hasattr(factory, 'release'):
    raise config.ConfigError(
      f'--algorithm={experiment.algorithm} releases a gradient beside the '
      'update, and an audit sees to updates alone; audit fed_avg.'
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
    experiment: What is to be run.
    model: The model to train.
    mechanism: How updates are combined, its noise calibrated.

  Returns:
    The process.

  Raises:
    config.ConfigError: If parts do not go together, or refuse an option.
  """
  check(experiment)
  name = experiment.algorithm.name
  builder = ALGORITHMS[name]
  names = getattr(model, 'variable_names', ())
  given: dict[str, Any] = {
    'model': leave_out_values(model),
    'client_optimizer': _build_optimizer(experiment, 'client', names),
    'server_optimizer': _build_optimizer(experiment, 'server', names),
    'aggregation_factory': _build_factory(experiment, mechanism),
    'client_weighting': mechanism.client_weighting,
    'model_distributor': _build_distributor(experiment, model),
    'seed': experiment.client_seed,
  }
  if name in _RELEASES:
    given['gradient_aggregation_factory'] = _gradient_factory(
      experiment, mechanism
    )
  accepted = inspect.signature(builder).parameters
  process = experiment.algorithm.build(
    ALGORITHMS,
    'algorithm',
    **{key: value for key, value in given.items() if key in accepted},
  )
  trainable, others = model.initial_weights
  update_bytes = _num_bytes(trainable)
  # A further release, a gradient, is not compressed, nor is what goes with the
  # model, the state of MimeLite's optimizer.
  more_up = (num_releases(experiment) - 1) * update_bytes
  more_down = 0
  if name == 'mime_lite':
    state_type = process.initialize.type_signature.result.member
    optimizer_type = state_type.client_work[0]
    more_down = sum(
      int(np.prod(leaf.shape or ())) * np.dtype(leaf.dtype).itemsize
      for leaf in tff.structure.flatten(optimizer_type)
    )
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
