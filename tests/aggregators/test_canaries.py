"""Canaries: their addition to a mean, and the estimate from their scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from si_federated.aggregators import (
  build_adaptive_gaussian,
  build_blt,
  build_gaussian,
  canaries,
  clipping,
)
from si_federated.privacy import (
  accounting,
  auditing,
  participation,
  schedules,
  strategies,
)

_SHAPES = [[3, 2], [], [5]]


def _factory(rounds=4, build=build_gaussian, **options):
  return build(
    **{
      'total_rounds': rounds,
      'clip_norm': 2.0,
      'noise_multiplier': 0.0,
      'clients_per_round': 4,
      'noise_seed': 11,
      **options,
    }
  ).factory


def _flat(update):
  return np.concatenate([np.ravel(part) for part in update])


def _direction(seed, canary, shapes=_SHAPES):
  return _flat(canaries.direction(seed, tf.constant(canary), shapes))


def test_directions_are_of_norm_one_and_nearly_orthogonal():
  found = np.array([_direction(3, i, [[50, 100], [5000]]) for i in range(20)])
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
  products = found @ found.T - np.eye(20)
  # The standard deviation is 1 / sqrt(10000).
  assert np.abs(products).max() < 0.05
  np.testing.assert_array_equal(_direction(3, 7), _direction(3, 7))
  assert not np.allclose(_direction(3, 7), _direction(4, 7))


def _schedule(count, rounds, participations, separation, **options):
  return canaries.schedule(
    **{
      'num_canaries': count,
      'strategy': strategies.identity(rounds),
      'participations': participations,
      'separation': separation,
      'canary_seed': 5,
      **options,
    }
  )


def test_half_of_the_canaries_are_held_out():
  found = canaries.members(1000, 3)
  assert 420 < found.sum() < 580
  np.testing.assert_array_equal(found, canaries.members(1000, 3))
  assert (found != canaries.members(1000, 4)).any()
  sampled = schedules.Amplification('poisson', 0.5)
  for amplification in (None, sampled):
    table = _schedule(100, 12, 3, 4, amplification=amplification).cohorts
    taken = np.unique(table[table >= 0])
    assert taken.tolist() == np.flatnonzero(canaries.members(100, 5)).tolist()
  with pytest.raises(ValueError, match='at least 4 of each'):
    canaries.members(7, 0)


@pytest.mark.parametrize(
  ('rounds', 'participations', 'separation', 'expected'),
  [
    (5, 1, 5, [0]),
    (6, 3, 2, [0, 2, 4]),
    (4, 9, 1, [0, 1, 2, 3]),
    (7, 2, 4, [0, 4]),
  ],
)
def test_schedule(rounds, participations, separation, expected):
  plan = _schedule(20, rounds, participations, separation)
  members = canaries.members(20, 5).sum()
  times = np.flatnonzero((plan.cohorts >= 0).any(axis=1))
  assert times.tolist() == expected
  assert (plan.cohorts[times] >= 0).sum(axis=1).tolist() == [members] * len(
    times
  )
  # With independent noise, only the canaries' rounds count.
  assert plan.weights.tolist() == [float(t in expected) for t in range(rounds)]


def test_canaries_take_part_where_they_are_most_visible():
  # The squared norms of the columns of C are 1, 4 and 1 + 1/4.
  lower = np.diag([1.0, 2.0, 1.0])
  lower[2, 1] = 0.5
  strategy = strategies.Matrix(lower, 'banded')
  plan = _schedule(20, 3, 1, 3, strategy=strategy)
  assert np.flatnonzero((plan.cohorts >= 0).any(axis=1)).tolist() == [1]
  # C^T C in the second round.
  np.testing.assert_allclose(plan.weights, [0, 4.25, 0.5])


@pytest.mark.parametrize('groups', [1, 4])
def test_sampled_canaries_take_part_as_clients_do(groups):
  kind = 'cyclic_poisson' if groups > 1 else 'poisson'
  rounds, count, probability = 40, 1000, 0.2
  plan = _schedule(
    count,
    rounds,
    rounds // groups,
    groups,
    amplification=schedules.Amplification(kind, probability, groups),
  )
  taken = np.zeros([rounds, count])
  for time, cohort in enumerate(plan.cohorts):
    taken[time, cohort[cohort >= 0]] = 1
  # Like the clients of one group.
  turn = np.arange(rounds) % groups == 0
  assert not taken[~turn].any()
  np.testing.assert_array_equal(plan.weights, turn)
  chances = turn.sum() * canaries.members(count, 5).sum()
  deviation = np.sqrt(chances * probability * (1 - probability))
  assert abs(taken.sum() - chances * probability) < 4 * deviation
  # Rounds differ, and no two canaries always take part together.
  assert len({tuple(row) for row in taken[turn]}) == turn.sum()
  columns = taken[:, canaries.members(count, 5)].T
  assert len({tuple(column) for column in columns}) > 100


def test_canaries_in_bins_stay_in_the_group_that_they_draw():
  amplification = schedules.Amplification('balls_in_bins', 0.2, 4)
  plan = _schedule(1600, 8, 2, 4, amplification=amplification)
  members = canaries.members(1600, 5).sum()
  cohorts = [set(cohort[cohort >= 0]) for cohort in plan.cohorts]
  assert cohorts[:4] == cohorts[4:]
  assert not set.intersection(cohorts[0], cohorts[1], cohorts[2], cohorts[3])
  # About 160 in each group, with standard deviation 11.3, and in no group.
  assert all(100 < len(cohort) < 220 for cohort in cohorts)
  assert 100 < members - len(set.union(*cohorts)) < 220
  # The auditor does not know their group.
  assert plan.weights.tolist() == [1.0] * 8


def test_canaries_pause_as_clients_do():
  amplification = schedules.Amplification('b_min_sep', 0.4, 3)
  plan = _schedule(1600, 9, 3, 3, amplification=amplification)
  cohorts = [set(cohort[cohort >= 0]) for cohort in plan.cohorts]
  for first, second, third in zip(cohorts, cohorts[1:], cohorts[2:]):
    assert not first & second and not first & third
  # The rate is 0.4 / 1.8: about 178 of 800, standard deviation 11.8.
  assert all(118 < len(cohort) < 240 for cohort in cohorts)
  assert cohorts[0] & cohorts[3] and cohorts[0] - cohorts[3]
  assert plan.weights.tolist() == [1.0] * 9


_WIDE = [[200, 100], [10_000]]
_DELTA = 1e-5


def _audit(run, inner, plan, count):
  """Returns the scores after all rounds, and who was a member."""
  initialize, step = run(canaries.CanaryFactory(inner, 5, plan), _WIDE)
  zero = [np.zeros(shape, np.float32) for shape in _WIDE]
  state = initialize()
  for _ in range(len(plan.cohorts)):
    state, _, _ = step(state, [zero])
  scores = canaries.scores(
    state[canaries.SUMS], canary_seed=5, num_canaries=count
  )
  return scores, canaries.members(count, 5)


def test_the_audit_under_sampling_respects_amplification(run):
  count, rounds, noise = 400, 10, 0.7
  amplification = schedules.Amplification('poisson', 0.2)
  contract = participation.Participation(rounds, rounds, 1)
  inner = _factory(rounds, noise_multiplier=noise)
  promised = accounting.PrivacyRecord(
    strategies.identity(rounds), noise, contract, amplification
  ).epsilon(_DELTA)

  def audit(amplification):
    plan = _schedule(count, rounds, rounds, 1, amplification=amplification)
    return *_audit(run, inner, plan, count), _DELTA

  sampled = audit(amplification)
  assert auditing.estimate_epsilon(*sampled) < promised
  assert 0 < auditing.one_run_epsilon(*sampled) < promised
  assert auditing.epsilon_lower_bound(*sampled) < promised
  # Canaries in every round would have accused a correct mechanism.
  assert auditing.estimate_epsilon(*audit(None)) > promised


def _blt(rounds, noise):
  mechanism = build_blt(
    total_rounds=rounds,
    clip_norm=2.0,
    noise_multiplier=noise,
    clients_per_round=4,
    max_participations=2,
    min_separation=rounds // 2,
    noise_seed=11,
    num_buffers=1,
  )
  record: Any = mechanism.record
  return mechanism.factory, record


@pytest.mark.parametrize('noise', [1.0, 4.0])
def test_bounds_are_below_a_right_promise(run, noise):
  """With correlated noise over rounds; the estimate is near the promise."""
  count = 400
  inner, record = _blt(6, noise)
  plan = _schedule(count, 6, 2, 3, strategy=record.strategy)
  scores, members = _audit(run, inner, plan, count)
  promised = record.epsilon(_DELTA)
  assert 0 < auditing.one_run_epsilon(scores, members, _DELTA) < promised
  bound = auditing.epsilon_lower_bound(scores, members, _DELTA, gaussian=True)
  assert (0 if noise > 2 else 0.3 * promised) <= bound < promised
  estimate = auditing.estimate_epsilon(scores, members, _DELTA)
  # Weights that match the correlation of the noise find nearly everything.
  assert 0.75 * promised < estimate < 1.2 * promised


def test_too_little_noise_is_found(run):
  count = 400
  _, record = _blt(6, 8.0)
  # The factory adds an eighth of the promised noise.
  inner, _ = _blt(6, 1.0)
  plan = _schedule(count, 6, 2, 3, strategy=record.strategy)
  scores, members = _audit(run, inner, plan, count)
  promised = record.epsilon(_DELTA)
  assert auditing.one_run_epsilon(scores, members, _DELTA) > 2 * promised
  bound = auditing.epsilon_lower_bound(scores, members, _DELTA, gaussian=True)
  assert bound > 2 * promised


def test_a_clip_without_effect_is_found(run, monkeypatch):
  count = 400
  inner, record = _blt(6, 8.0)
  plan = _schedule(count, 6, 2, 3, strategy=record.strategy)
  promised = record.epsilon(_DELTA)
  clip = clipping.clip_update
  # Canaries are longer than the clip norm unless they are clipped.
  monkeypatch.setattr(
    clipping, 'clip_update', lambda update, norm: clip(update, 4 * norm)
  )
  scores, members = _audit(run, inner, plan, count)
  assert auditing.one_run_epsilon(scores, members, _DELTA) > 1.05 * promised


def _fixed(cohorts, weights=None):
  table = np.array(cohorts, np.int32)
  weights = np.ones(len(table)) if weights is None else np.array(weights)
  return canaries.Plan(table, weights)


def test_the_mean_has_the_rounds_canaries(run):
  plan = _fixed([[0, 1], [2, -1], [-1, -1], [0, 2]], [1.0, -2.0, 3.0, 0.5])
  factory = canaries.CanaryFactory(_factory(), 3, plan)
  initialize, step = run(factory, _SHAPES)
  state = initialize()
  client = [np.full(shape, 0.25, np.float32) for shape in _SHAPES]
  total = np.zeros(12)
  for cohort, weight in zip(([0, 1], [2], [], [0, 2]), plan.weights):
    state, result, measurements = step(state, [client, client])
    # Clip norm 2, four clients a round.
    expected = 0.125 + sum(0.5 * _direction(3, i) for i in cohort)
    np.testing.assert_allclose(
      _flat(result), np.broadcast_to(expected, [12]), rtol=1e-5, atol=1e-7
    )
    assert measurements['clip_fraction'] == 0
    total += weight * expected
  np.testing.assert_allclose(
    _flat(state[canaries.SUMS]), total, rtol=1e-5, atol=1e-6
  )
  scores = canaries.scores(state[canaries.SUMS], canary_seed=3, num_canaries=3)
  np.testing.assert_allclose(
    scores,
    [_direction(3, i) @ total / np.linalg.norm(total) for i in range(3)],
    rtol=1e-4,
  )


def test_a_simulated_cohort_makes_canaries_as_small(run):
  factory = canaries.CanaryFactory(
    _factory(noise_cohort_size=40), 3, _fixed([[0]] * 4)
  )
  initialize, step = run(factory, _SHAPES)
  zero = [np.zeros(shape, np.float32) for shape in _SHAPES]
  _, result, _ = step(initialize(), [zero])
  np.testing.assert_allclose(
    _flat(result), 0.05 * _direction(3, 0), rtol=1e-5, atol=1e-8
  )


def test_models_that_did_not_change_have_no_scores():
  with pytest.raises(ValueError, match='nothing to audit'):
    canaries.scores([np.zeros(3)], canary_seed=0, num_canaries=2)
  with pytest.raises(ValueError, match='nothing to audit'):
    canaries.scores([np.array([np.nan])], canary_seed=0, num_canaries=2)


def test_adaptive_clips_are_rejected():
  with pytest.raises(ValueError, match='fixed clip norm'):
    canaries.CanaryFactory(
      _factory(build=build_adaptive_gaussian), 0, _fixed([[0]] * 4)
    )
