"""Canary clients, for audits: known updates added to those of clients.

A canary's update is a random direction (Andrew et al. 2023, arXiv 2302.03098),
longer than the clip norm. The server clips it as it clips clients' updates,
and, since sums are linear, adds it to the mean of the cohort. About half of the
canaries, chosen by coins, take part in no round: they show chance scores.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.aggregators import clipping, correlated_noise, keyed_noise
from si_federated.privacy import sampled_schedules, schedules, strategies

# The name of the weighted sum of releases in a state.
SUMS = 'audit_sums'

# Distinct from the keys of noise, whose rows are smaller.
_STREAM = 1 << 62
# Keep samples and coins independent of other draws from the same seed.
_SAMPLING = 1
_COINS = 2
# The norm of an update before clipping, in clip norms.
_LENGTH = 10.0
# The fewest canaries that take part, and the fewest held out.
_FEWEST = 4


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


def members(num_canaries: int, canary_seed: int) -> np.ndarray:
  """Returns which canaries take part in a run, by independent fair coins.

  Args:
    num_canaries: The number of canaries.
    canary_seed: The seed of all canaries.

  Returns:
    Booleans of shape `[num_canaries]`.

  Raises:
    ValueError: If there are too few of a kind for an audit.
  """
  generator = np.random.default_rng([canary_seed, _COINS])
  found = generator.random(num_canaries) < 0.5
  if min(found.sum(), (~found).sum()) < _FEWEST:
    raise ValueError(
      f'Of {num_canaries} canaries, {found.sum()} take part and '
      f'{(~found).sum()} are held out; an audit needs at least {_FEWEST} of '
      'each: choose more.'
    )
  return found


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """The canaries of each round, and the weights with which to find them.

  Attributes:
    cohorts: The indices of canaries, shape `[rounds, most of a round]`, padded
      with -1.
    weights: The weight of each round's release in the sum that best reveals
      them, shape `[rounds]`.
  """

  cohorts: np.ndarray
  weights: np.ndarray


def schedule(
  *,
  num_canaries: int,
  strategy: strategies.Strategy,
  participations: int,
  separation: int,
  amplification: Optional[schedules.Amplification] = None,
  canary_seed: int = 0,
  drawn: Optional[Sequence[np.ndarray]] = None,
) -> Plan:
  """Returns which canaries take part in each round.

  All members take part in the same rounds: as often as the contract allows, at
  the least separation, starting with the round that makes them most visible. If
  the accounting relies on sampling, they are sampled as clients are, but
  independently, in the rounds of one group, which with balls in bins each
  canary draws. If cohorts have a maximum size, the clients' schedule draws all
  canaries, and those held out take up places but send no update: so the
  population, on whose size the cost of truncation depends, is the same for all.

  With u marking the rounds in which canaries may take part and C the strategy,
  the weights of the releases x + C^-1 z are C^T C u. No other linear sum better
  separates a canary in all of these rounds from the noise.

  Args:
    num_canaries: The number of canaries, those held out included.
    strategy: The correlation of the noise, for all rounds.
    participations: The most rounds of one client.
    separation: The least distance of two rounds of a client.
    amplification: The sampling of clients, if the accounting relies on it.
    canary_seed: The seed of all canaries, which determines the samples.
    drawn: The indices of all canaries that were drawn in each round, if cohorts
      have a maximum size.

  Raises:
    ValueError: If there are too few canaries, or the draws are missing.
  """
  taken = np.flatnonzero(members(num_canaries, canary_seed))
  matrix, rounds = strategy.matrix(), strategy.rounds
  times = np.arange(rounds)
  if amplification is not None:
    rows = _possible(rounds, amplification)[None]
    if (drawn is None) != (amplification.max_cohort_size is None):
      raise ValueError(
        'Canaries are drawn with the clients if, and only if, cohorts have a '
        'maximum size; give the draws of the schedule.'
      )
    cohorts = (
      _sampled(taken, rounds, amplification, canary_seed)
      if drawn is None
      else [cohort[np.isin(cohort, taken)] for cohort in drawn]
    )
  else:
    span = (min(participations, -(-rounds // separation)) - 1) * separation
    firsts = np.arange(max(rounds - span, 1))[:, None]
    after = times - firsts
    rows = ((after >= 0) & (after <= span) & (after % separation == 0)).astype(
      float
    )
    best = np.square(rows @ matrix.T).sum(axis=1).argmax()
    rows = rows[best : best + 1]
    cohorts = [taken if row else taken[:0] for row in rows[0]]
  return Plan(_table(cohorts), matrix.T @ (matrix @ rows[0]))


def _possible(
  rounds: int, amplification: schedules.Amplification
) -> np.ndarray:
  """Returns 1 for each round that a canary may be in, else 0.

  These are the rounds of one group; or all rounds, if there are no groups or if
  a canary's group is secret.
  """
  if amplification.kind in ('balls_in_bins', 'b_min_sep'):
    return np.ones(rounds)
  return (np.arange(rounds) % amplification.groups == 0).astype(float)


def _sampled(
  taken: np.ndarray,
  rounds: int,
  amplification: schedules.Amplification,
  canary_seed: int,
) -> list[np.ndarray]:
  """Returns the cohorts of Poisson sampling, of a group whenever it has a turn.

  In balls in bins, canaries draw their group, or none, instead; if clients
  pause after a round, so do they.
  """
  generator = np.random.default_rng([canary_seed, _SAMPLING])
  if amplification.kind == 'b_min_sep':
    clients = sampled_schedules.SeparatedClients(
      len(taken), amplification, generator
    )
    return [taken[clients.draw(generator)] for _ in range(rounds)]
  if amplification.kind == 'balls_in_bins':
    drawn = generator.random(len(taken)) // amplification.probability
    return [
      taken[drawn == time % amplification.groups] for time in range(rounds)
    ]
  return [
    taken[generator.random(len(taken)) < amplification.probability * possible]
    for possible in _possible(rounds, amplification)
  ]


def _table(cohorts: Sequence[np.ndarray]) -> np.ndarray:
  table = np.full((len(cohorts), max(1, *map(len, cohorts))), -1, np.int32)
  for row, cohort in zip(table, cohorts):
    row[: len(cohort)] = cohort
  return table


@dataclasses.dataclass(frozen=True, eq=False)
class CanaryFactory(tff.aggregators.UnweightedAggregationFactory):
  """A private aggregation with canaries in its cohorts.

  Attributes:
    inner: The private aggregation, with a fixed clip norm.
    canary_seed: The seed of all canaries.
    plan: From `schedule`.
  """

  inner: correlated_noise.CorrelatedNoiseFactory
  canary_seed: int
  plan: Plan

  def __post_init__(self):
    if (
      not isinstance(self.inner, correlated_noise.CorrelatedNoiseFactory)
      or self.inner.adaptive is not None
      or self.inner.scaling is not None
    ):
      raise ValueError(
        'Canaries need a fixed clip norm and noise added by the server; choose '
        'gaussian, tree, banded, blt or dense.'
      )

  def create(self, value_type: Any) -> tff.templates.AggregationProcess:
    """Creates the process.

    Its state includes the weighted sum of all releases so far, `SUMS`.

    Args:
      value_type: The type of an update: floats in any structure.
    """
    inner = self.inner.create(value_type)
    settings = self.inner.settings
    value_shapes = [part.shape for part in tff.structure.flatten(value_type)]
    inner_type = inner.initialize.type_signature.result.member

    @tff.tensorflow.computation(inner_type)
    def begin(state):
      return collections.OrderedDict(
        [
          ('round_num', tf.constant(0, tf.int64)),
          ('inner', state),
          (SUMS, [tf.zeros(shape) for shape in value_shapes]),
        ]
      )

    state_type = begin.type_signature.result

    @tff.tensorflow.computation(state_type)
    def get_inner(state):
      return state['inner']

    @tff.tensorflow.computation(state_type, inner_type, value_type)
    def add_canaries(state, inner_state, mean):
      cohort = tf.gather(tf.constant(self.plan.cohorts), state['round_num'])
      parts = tf.nest.flatten(mean)
      shapes = [part.shape for part in parts]

      def add(i, sums):
        one = direction(self.canary_seed, cohort[i], shapes)
        clipped, _, _ = clipping.clip_update(
          [_LENGTH * settings.clip_norm * part for part in one],
          tf.constant(settings.clip_norm),
        )
        return i + 1, [total + part for total, part in zip(sums, clipped)]

      count = tf.reduce_sum(tf.cast(cohort >= 0, tf.int32))
      _, sums = tf.while_loop(
        lambda i, _: i < count,
        add,
        (0, [tf.zeros(shape) for shape in shapes]),
        parallel_iterations=1,
      )
      released = [
        part + tf.cast(more / settings.cohort_size, part.dtype)
        for part, more in zip(parts, sums)
      ]
      weight = tf.gather(
        tf.constant(self.plan.weights, tf.float32), state['round_num']
      )
      return (
        collections.OrderedDict(
          [
            ('round_num', state['round_num'] + 1),
            ('inner', inner_state),
            (
              SUMS,
              [
                total + weight * tf.cast(part, tf.float32)
                for total, part in zip(state[SUMS], released)
              ],
            ),
          ]
        ),
        tf.nest.pack_sequence_as(mean, released),
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
  """Returns the cosine of each canary with the weighted sum of releases.

  Args:
    released: `SUMS` of the last state, an array for each variable.
    canary_seed: The seed of all canaries.
    num_canaries: The number of canaries.

  Returns:
    Shape `[num_canaries]`.

  Raises:
    ValueError: If the sum is zero or not finite.
  """
  norm = float(np.sqrt(sum(np.sum(np.square(part)) for part in released)))
  if not (norm > 0 and np.isfinite(norm)):
    raise ValueError(
      f'The sum of releases has norm {norm}; there is nothing to audit.'
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
