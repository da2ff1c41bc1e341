"""Canary clients, for audits: known updates added to those of clients.

A canary's update is a random direction as long as the clip norm (Andrew et al.
2023, arXiv 2302.03098). As sums are linear and such an update is not clipped,
canaries are added on the server, to the mean of each cohort.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.aggregators import correlated_noise, keyed_noise
from si_federated.privacy import schedules

# Distinct from the keys of noise, whose rows are smaller.
_STREAM = 1 << 62
# Keeps the samples apart from other numbers drawn from the same seed.
_SAMPLING = 1


def direction(
  canary_seed: int, canary: tf.Tensor, shapes: Sequence[Any]
) -> list[tf.Tensor]:
  """Returns a canary's direction, of norm 1 over all variables.

  Args:
    canary_seed: The seed of all canaries.
    canary: The canary's index.
    shapes: The variables' shapes.

  Returns:
    Float32 tensors of these shapes.
  """
  parts = keyed_noise.standard_normals(
    tf.constant([canary_seed, _STREAM], tf.int64),
    canary,
    [tf.TensorShape(shape) for shape in shapes],
  )
  norm = tf.linalg.global_norm(parts)
  return [part / norm for part in parts]


def schedule(
  *,
  num_canaries: int,
  rounds: int,
  participations: int,
  separation: int,
  amplification: Optional[schedules.Amplification] = None,
  canary_seed: int = 0,
) -> np.ndarray:
  """Returns which canaries take part in each round.

  A canary takes part as often as the contract allows, at the least separation;
  first rounds are spread evenly. Where the accounting counts on sampling,
  canaries are sampled as clients are, independently of them.

  Args:
    num_canaries: The number of canaries.
    rounds: The number of rounds.
    participations: The most rounds of one client.
    separation: The least distance of two rounds of a client.
    amplification: The sampling of clients, if the accounting counts on it.
    canary_seed: The seed of all canaries, which determines the samples.

  Returns:
    The indices of canaries, shape `[rounds, most of a round]`, padded with -1.

  Raises:
    ValueError: If there are fewer than two canaries.
  """
  if num_canaries < 2:
    raise ValueError(
      f'num_canaries is {num_canaries}; an audit needs at least 2.'
    )
  if amplification is not None:
    return _table(_sampled(num_canaries, rounds, amplification, canary_seed))
  span = (min(participations, -(-rounds // separation)) - 1) * separation
  firsts = max(rounds - span, 1)
  cohorts: list[list[int]] = [[] for _ in range(rounds)]
  for canary in range(num_canaries):
    first = canary * firsts // num_canaries
    for time in range(first, min(first + span, rounds - 1) + 1, separation):
      cohorts[time].append(canary)
  return _table(cohorts)


def _sampled(
  num_canaries: int,
  rounds: int,
  amplification: schedules.Amplification,
  canary_seed: int,
) -> list[np.ndarray]:
  """Returns the cohorts of Poisson sampling, within groups that take turns.

  In balls in bins, canaries draw their group, or none, instead.
  """
  generator = np.random.default_rng([canary_seed, _SAMPLING])
  if amplification.kind == 'balls_in_bins':
    drawn = generator.random(num_canaries) // amplification.probability
    return [
      np.flatnonzero(drawn == time % amplification.groups)
      for time in range(rounds)
    ]
  group = np.arange(num_canaries) % amplification.groups
  return [
    np.flatnonzero(
      (generator.random(num_canaries) < amplification.probability)
      & (group == time % amplification.groups)
    )
    for time in range(rounds)
  ]


def _table(cohorts: Sequence[Any]) -> np.ndarray:
  table = np.full((len(cohorts), max(1, *map(len, cohorts))), -1, np.int32)
  for row, cohort in zip(table, cohorts):
    row[: len(cohort)] = cohort
  return table


@dataclasses.dataclass(frozen=True, eq=False)
class CanaryFactory(tff.aggregators.UnweightedAggregationFactory):
  """A private aggregation with canaries in its cohorts.

  Attributes:
    inner: The private aggregation, of a fixed clip norm.
    canary_seed: The seed of all canaries.
    cohorts: From `schedule`.
  """

  inner: correlated_noise.CorrelatedNoiseFactory
  canary_seed: int
  cohorts: np.ndarray

  def __post_init__(self):
    if (
      not isinstance(self.inner, correlated_noise.CorrelatedNoiseFactory)
      or self.inner.adaptive is not None
    ):
      raise ValueError(
        'Canaries need a fixed clip norm and noise added by the server; choose '
        'gaussian, tree, banded, blt or dense.'
      )

  def create(self, value_type: Any) -> tff.templates.AggregationProcess:
    """Creates the process.

    Args:
      value_type: The type of an update: floats in any structure.
    """
    inner = self.inner.create(value_type)
    settings = self.inner.settings
    length = settings.clip_norm / settings.cohort_size
    inner_type = inner.initialize.type_signature.result.member

    @tff.tensorflow.computation(inner_type)
    def begin(state):
      return collections.OrderedDict(
        round_num=tf.constant(0, tf.int64), inner=state
      )

    state_type = begin.type_signature.result

    @tff.tensorflow.computation(state_type)
    def get_inner(state):
      return state['inner']

    @tff.tensorflow.computation(state_type, inner_type, value_type)
    def add_canaries(state, inner_state, mean):
      cohort = tf.gather(tf.constant(self.cohorts), state['round_num'])
      parts = tf.nest.flatten(mean)
      shapes = [part.shape for part in parts]

      def add(i, sums):
        one = direction(self.canary_seed, cohort[i], shapes)
        return i + 1, [total + part for total, part in zip(sums, one)]

      count = tf.reduce_sum(tf.cast(cohort >= 0, tf.int32))
      _, sums = tf.while_loop(
        lambda i, _: i < count,
        add,
        (0, [tf.zeros(shape) for shape in shapes]),
        parallel_iterations=1,
      )
      return (
        collections.OrderedDict(
          round_num=state['round_num'] + 1, inner=inner_state
        ),
        tf.nest.pack_sequence_as(
          mean, [part + length * more for part, more in zip(parts, sums)]
        ),
      )

    @tff.federated_computation()
    def initialize():
      return tff.federated_map(begin, inner.initialize())

    @tff.federated_computation(
      initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
    )
    def next_round(state, value):
      output = inner.next(tff.federated_map(get_inner, state), value)
      result = tff.federated_map(
        add_canaries, (state, output.state, output.result)
      )
      return tff.templates.MeasuredProcessOutput(
        result[0], result[1], output.measurements
      )

    return tff.templates.AggregationProcess(initialize, next_round)


def scores(
  released: Sequence[np.ndarray], *, canary_seed: int, num_canaries: int
) -> np.ndarray:
  """Returns the cosine of each canary with the change of the model.

  Args:
    released: The change of the model, an array for each variable.
    canary_seed: The seed of all canaries.
    num_canaries: The number of canaries.

  Returns:
    Shape `[num_canaries]`.

  Raises:
    ValueError: If the change is zero or not finite.
  """
  norm = float(np.sqrt(sum(np.sum(np.square(part)) for part in released)))
  if not (norm > 0 and np.isfinite(norm)):
    raise ValueError(
      f'The change of the model has norm {norm}; there is nothing to audit.'
    )
  unit = [tf.constant(part / norm, tf.float32) for part in released]

  @tf.function
  def score(canary):
    parts = direction(canary_seed, canary, [part.shape for part in unit])
    return tf.add_n(
      [tf.reduce_sum(one * other) for one, other in zip(parts, unit)]
    )

  return np.array(
    [float(score(tf.constant(canary))) for canary in range(num_canaries)]
  )
