"""The private aggregation: clip, sum, add (correlated) noise, divide.

A matrix mechanism with strategy matrix C releases x + C^-1 z, where row t of x
is the sum of round t's clipped updates, and z is independent Gaussian noise
(Denisov et al. 2022, arXiv 2202.08312).
Server SGD, with or without momentum, on such noisy updates is DP-FTRL (Kairouz
et al. 2021, arXiv 2103.00039); with the identity for C it is DP-FedAvg (McMahan
et al. 2018, arXiv 1710.06963).
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, Optional

import tensorflow as tf
import tensorflow_federated as tff

from si_federated.aggregators import (
  adaptive_clip,
  clipping,
  keyed_noise,
  mechanism,
  noise_generators,
  private_settings,
  update_scaling,
)
from si_federated.privacy import accounting, participation, strategies
from si_federated.privacy import record as record_lib

UNNOISED_MEASUREMENTS = ('clip_fraction', 'nonfinite_updates')


@dataclasses.dataclass(frozen=True, eq=False)
class CorrelatedNoiseFactory(tff.aggregators.UnweightedAggregationFactory):
  """Makes the aggregation process of a matrix mechanism.

  The state is the number of the round, the seed, the clip norm and the buffers
  of the noise, so that resuming from a saved state is exact. It must be kept as
  secret as the updates, since the seed determines the noise. Measurements are
  `clip_norm` and `UNNOISED_MEASUREMENTS`: the fraction of the updates that were
  clipped, and the number of those that were not finite.

  Attributes:
    strategy: The correlation of the noise.
    settings: Clip norm, noise and cohort. The clip norm is the initial one if
      the clip is adaptive; without noise no buffers are kept.
    keep_rows: See `noise_generators.for_strategy`.
    adaptive: How the clip norm adapts; None for a fixed one.
    scaling: How coordinates are scaled before clipping and noise; None for no
      scaling.
    release: The index of this sum among those released each round. It gives
      each sum its own noise although all share a noise seed.
  """

  strategy: strategies.Strategy
  settings: private_settings.PrivateSettings
  keep_rows: Optional[bool] = None
  adaptive: Optional[adaptive_clip.AdaptiveClip] = None
  release: int = 0
  scaling: Optional[update_scaling.UpdateScaling] = None

  def __post_init__(self):
    if self.scaling is not None and self.strategy.kind != 'identity':
      raise ValueError(
        'Correlated noise needs fixed scales: noise drawn at one scale does '
        'not cancel in rounds with another.'
      )
    if self.adaptive is not None and self.strategy.kind != 'identity':
      raise ValueError(
        'Correlated noise needs a fixed clip norm: noise drawn for one norm '
        'does not cancel in rounds with another.'
      )
    self._noise()

  def _noise(self) -> tuple[float, float]:
    """Returns the noise of the sum in clip norms, and that of the count.

    The sum is divided by the clients per round, even if the noise is that of a
    larger cohort.
    """
    settings = self.settings
    noise_multiplier, count_noise = settings.noise_multiplier, 0.0
    if self.adaptive is not None:
      noise_multiplier, count_noise = self.adaptive.split(
        noise_multiplier, settings.cohort_size
      )
    return (
      noise_multiplier * settings.clients_per_round / settings.cohort_size,
      count_noise,
    )

  def with_record(self, record: record_lib.Record) -> CorrelatedNoiseFactory:
    """Returns the factory with the noise multiplier of a record."""
    return dataclasses.replace(
      self,
      settings=dataclasses.replace(
        self.settings, noise_multiplier=record.noise_multiplier
      ),
    )

  def create(self, value_type: Any) -> tff.templates.AggregationProcess:
    """Creates the process.

    Args:
      value_type: The type of an update: floats in any structure.

    Returns:
      The process.

    Raises:
      TypeError: If a variable has another type.
    """
    settings = self.settings
    shapes = _float_shapes(value_type)
    generator = None
    if settings.noise_multiplier:
      generator = noise_generators.for_strategy(
        self.strategy, keep_rows=self.keep_rows
      )

    @tff.tensorflow.computation
    def initial():
      state = collections.OrderedDict(
        round_num=tf.constant(0, tf.int64),
        seed=keyed_noise.initial_seed(settings.noise_seed, self.release),
        clip_norm=tf.constant(settings.clip_norm, tf.float32),
      )
      if generator is not None and generator.num_buffers:
        state['buffers'] = [
          tf.zeros([generator.num_buffers, *shape]) for shape in shapes
        ]
      if self.scaling is not None:
        state['scaling'] = self.scaling.initial(shapes)
      return state

    state_type = initial.type_signature.result

    @tff.tensorflow.computation(state_type)
    def get_clipping(state):
      if self.scaling is None:
        return state['clip_norm']
      return collections.OrderedDict(
        clip_norm=state['clip_norm'], scales=state['scaling']['scales']
      )

    @tff.tensorflow.computation(value_type, get_clipping.type_signature.result)
    def at_client(update, clip_norm):
      if self.scaling is not None:
        update = update_scaling.divided(update, clip_norm['scales'])
        clip_norm = clip_norm['clip_norm']
      clipped, was_clipped, is_finite = clipping.clip_update(update, clip_norm)
      result = collections.OrderedDict(
        update=clipped,
        clipped=tf.cast(was_clipped, tf.float32),
        nonfinite=1 - tf.cast(is_finite, tf.float32),
        clients=tf.constant(1.0),
      )
      if self.adaptive is not None:
        result['centred'] = adaptive_clip.centred_count(clipped, was_clipped)
      return result

    @tff.tensorflow.computation(state_type, at_client.type_signature.result)
    def at_server(state, total):
      t = self._check_round(state['round_num'])
      state = collections.OrderedDict(state, round_num=t + 1)
      measurements = collections.OrderedDict(
        clip_norm=state['clip_norm'],
        clip_fraction=total['clipped'] / tf.maximum(total['clients'], 1),
        nonfinite_updates=total['nonfinite'],
      )
      update = total['update']
      if generator is not None:
        update, state = self._add_noise(generator, t, state, update)
      mean = tf.nest.map_structure(
        lambda part: part / tf.cast(settings.clients_per_round, part.dtype),
        update,
      )
      if self.scaling is not None:
        mean = update_scaling.multiplied(mean, state['scaling']['scales'])
        released = [tf.cast(part, tf.float32) for part in tf.nest.flatten(mean)]
        state['scaling'] = self.scaling.next(state['scaling'], t, released)
      if self.adaptive is not None:
        state['clip_norm'] = self._next_clip_norm(t, state, total, len(shapes))
      return state, mean, measurements

    @tff.federated_computation()
    def initialize():
      return tff.federated_eval(initial, tff.SERVER)

    @tff.federated_computation(
      initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
    )
    def next_round(state, value):
      clip_norm = tff.federated_broadcast(
        tff.federated_map(get_clipping, state)
      )
      total = tff.federated_sum(
        tff.federated_map(at_client, (value, clip_norm))
      )
      output = tff.federated_map(at_server, (state, total))
      return tff.templates.MeasuredProcessOutput(
        output[0], output[1], output[2]
      )

    return tff.templates.AggregationProcess(initialize, next_round)

  def _check_round(self, round_num):
    rounds = self.strategy.rounds
    check = tf.debugging.assert_less(
      round_num,
      tf.constant(rounds, tf.int64),
      message=f'The noise was made for {rounds} rounds.',
    )
    with tf.control_dependencies([check]):
      return tf.identity(round_num)

  def _add_noise(self, generator, t, state, update):
    """Returns the noisy sum and the state with new buffers."""
    noise_multiplier, _ = self._noise()
    parts = tf.nest.flatten(update)
    noise, buffers = generator(
      state['seed'],
      t,
      list(state.get('buffers', [])),
      [part.shape for part in parts],
    )
    if buffers:
      state = collections.OrderedDict(state, buffers=buffers)
    stddev = noise_multiplier * state['clip_norm']
    noisy = [
      part + tf.cast(stddev * row, part.dtype)
      for part, row in zip(parts, noise)
    ]
    return tf.nest.pack_sequence_as(update, noisy), state

  def _next_clip_norm(self, t, state, total, stream):
    _, count_noise = self._noise()
    (unit,) = keyed_noise.standard_normals(
      state['seed'], t, [tf.TensorShape([])], first_stream=stream
    )
    part = total['centred'] / self.settings.clients_per_round
    unclipped = 0.5 + part + count_noise * unit
    assert self.adaptive is not None
    return self.adaptive.update(state['clip_norm'], unclipped)


def _float_shapes(value_type):
  """Returns the shapes of the variables in the order of `tf.nest`."""
  specs = tf.nest.flatten(
    tff.types.type_to_tf_tensor_specs(tff.to_type(value_type))
  )
  for spec in specs:
    if not spec.dtype.is_floating:
      raise TypeError(
        f'Noise is added to floats only; a variable has type {spec.dtype}.'
      )
  return [spec.shape for spec in specs]


def build_mechanism(
  strategy: strategies.Strategy,
  settings: private_settings.PrivateSettings,
  contract: Optional[participation.Participation] = None,
  **options: Any,
) -> mechanism.Mechanism:
  """Returns the mechanism of a strategy.

  Args:
    strategy: The correlation of the noise.
    settings: Clip norm, noise and participation.
    contract: The participation, by default that of the settings.
    **options: Options of `CorrelatedNoiseFactory`.
  """
  contract = contract or settings.contract()
  return mechanism.Mechanism(
    factory=CorrelatedNoiseFactory(strategy, settings, **options),
    client_weighting='uniform',
    record=accounting.PrivacyRecord(
      strategy, settings.noise_multiplier, contract
    ),
    contract=contract,
    noise_cohort_size=settings.noise_cohort_size,
    unnoised_measurements=UNNOISED_MEASUREMENTS,
    sends_scales=options.get('scaling') is not None,
  )
