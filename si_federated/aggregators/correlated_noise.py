"""The one private aggregation: clip, sum, add (correlated) noise, divide.

A matrix mechanism of strategy C releases x + C^-1 z, x being the sums of the
clipped updates of each round (Denisov et al. 2022, arXiv 2202.08312). Server
SGD, with momentum or not, on such noisy updates is DP-FTRL (Kairouz et al.
2021, arXiv 2103.00039); with the identity for C it is DP-FedAvg (McMahan et al.
2018, arXiv 1710.06963).
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
)
from si_federated.privacy import accounting, participation, strategies

UNNOISED_MEASUREMENTS = ('clip_fraction', 'nonfinite_updates')


@dataclasses.dataclass(frozen=True, eq=False)
class CorrelatedNoiseFactory(tff.aggregators.UnweightedAggregationFactory):
  """Makes the aggregation process of a matrix mechanism.

  The state is the number of the round, the seed, the clip norm and the buffers
  of the noise, so that going on from a saved state is exact. It must be kept as
  secret as the updates: the seed makes the noise. Measurements are `clip_norm`,
  and `UNNOISED_MEASUREMENTS`: the part of the updates that were clipped, and
  the number of those that were not finite.

  Attributes:
    strategy: The correlation of the noise.
    clip_norm: The most that the L2 norm of a client's update counts; the
      initial one if the clip is adaptive.
    noise_multiplier: The standard deviation of z relative to the clip norm, on
      the sum of clipped updates. Without noise no buffers are kept.
    clients_per_round: The number that the sum is divided by.
    noise_seed: What the noise is made from, or None for the system's entropy.
    noise_cohort_size: If given, the noise is as small as it would be relative
      to a cohort of this size.
    keep_rows: See `noise_generators.for_strategy`.
    adaptive: How the clip norm adapts; None for a fixed one.
    release: Which of the sums that are released each round this is; those of
      the same noise seed have noise of their own.
  """

  strategy: strategies.Strategy
  clip_norm: float
  noise_multiplier: float
  clients_per_round: int
  noise_seed: Optional[int] = None
  noise_cohort_size: Optional[int] = None
  keep_rows: Optional[bool] = None
  adaptive: Optional[adaptive_clip.AdaptiveClip] = None
  release: int = 0

  def __post_init__(self):
    mechanism.check_clip_and_noise(
      self.clip_norm, self.noise_multiplier, self.clients_per_round
    )
    keyed_noise.check_seed(self.noise_seed)
    size = self.noise_cohort_size
    if size is not None and size < self.clients_per_round:
      raise ValueError(
        f'noise_cohort_size is {size}, below the {self.clients_per_round} '
        'clients per round; it simulates a larger cohort.'
      )
    if self.adaptive is not None and self.strategy.kind != 'identity':
      raise ValueError(
        'Correlated noise needs a fixed clip norm, as noise made for one norm '
        'does not cancel in rounds of another.'
      )
    self._noise()

  def _noise(self) -> tuple[float, float]:
    """Returns what to multiply z and the clip norm by, and the count's noise.

    The sum is divided by the clients per round, though the noise may be that
    of a larger cohort.
    """
    cohort_size = self.noise_cohort_size or self.clients_per_round
    noise_multiplier, count_noise = self.noise_multiplier, 0.0
    if self.adaptive is not None:
      noise_multiplier, count_noise = self.adaptive.split(
        noise_multiplier, cohort_size
      )
    return noise_multiplier * self.clients_per_round / cohort_size, count_noise

  def with_noise_multiplier(
    self, noise_multiplier: float
  ) -> CorrelatedNoiseFactory:
    """Returns the factory with another noise multiplier."""
    return dataclasses.replace(self, noise_multiplier=noise_multiplier)

  def create(self, value_type: Any) -> tff.templates.AggregationProcess:
    """Makes the process.

    Args:
      value_type: The type of an update: floats in any structure.

    Returns:
      The process.

    Raises:
      TypeError: If a variable is not of floats.
    """
    shapes = _float_shapes(value_type)
    generator = None
    if self.noise_multiplier:
      generator = noise_generators.for_strategy(
        self.strategy, keep_rows=self.keep_rows
      )

    @tff.tensorflow.computation
    def initial():
      state = collections.OrderedDict(
        round_num=tf.constant(0, tf.int64),
        seed=keyed_noise.initial_seed(self.noise_seed, self.release),
        clip_norm=tf.constant(self.clip_norm, tf.float32),
      )
      if generator is not None and generator.num_buffers:
        state['buffers'] = [
          tf.zeros([generator.num_buffers, *shape]) for shape in shapes
        ]
      return state

    state_type = initial.type_signature.result

    @tff.tensorflow.computation(state_type)
    def get_clip_norm(state):
      return state['clip_norm']

    @tff.tensorflow.computation(value_type, tf.float32)
    def at_client(update, clip_norm):
      clipped, was_clipped, is_finite = clipping.clip_update(update, clip_norm)
      return collections.OrderedDict(
        update=clipped,
        clipped=tf.cast(was_clipped, tf.float32),
        nonfinite=1 - tf.cast(is_finite, tf.float32),
        clients=tf.constant(1.0),
      )

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
        lambda part: part / tf.cast(self.clients_per_round, part.dtype), update
      )
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
        tff.federated_map(get_clip_norm, state)
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
    # Counts are centred at one half, as in TensorFlow Privacy: this makes the
    # sensitivity 1/2.
    count = 0.5 * total['clients'] - total['clipped']
    unclipped = 0.5 + count / self.clients_per_round + count_noise * unit
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
        f'Noise is added to floats only; a variable is of type {spec.dtype}.'
      )
  return [spec.shape for spec in specs]


def build_mechanism(
  factory: CorrelatedNoiseFactory, contract: participation.Participation
) -> mechanism.Mechanism:
  """Returns the mechanism of a factory.

  Args:
    factory: Makes the noise.
    contract: The participation of clients that it is built for.
  """
  return mechanism.Mechanism(
    factory=factory,
    client_weighting='uniform',
    record=accounting.PrivacyRecord(
      factory.strategy, factory.noise_multiplier, contract
    ),
    contract=contract,
    noise_cohort_size=factory.noise_cohort_size,
    unnoised_measurements=UNNOISED_MEASUREMENTS,
  )
