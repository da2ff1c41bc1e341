"""Canaries: their addition to a mean, and the estimate from their scores."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated.aggregators import (
  build_adaptive_gaussian,
  build_gaussian,
  canaries,
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
  # Of standard deviation 1 / sqrt(10000).
  assert np.abs(products).max() < 0.05
  np.testing.assert_array_equal(_direction(3, 7), _direction(3, 7))
  assert not np.allclose(_direction(3, 7), _direction(4, 7))


@pytest.mark.parametrize(
  ('rounds', 'participations', 'separation', 'expected'),
  [
    (5, 1, 5, [1, 1, 1, 1, 1]),
    (6, 3, 2, [3, 2, 3, 2, 3, 2]),
    (4, 9, 1, [5, 5, 5, 5]),
    (7, 2, 4, [2, 2, 1, 0, 2, 2, 1]),
  ],
)
def test_schedule(rounds, participations, separation, expected):
  table = canaries.schedule(
    num_canaries=5,
    rounds=rounds,
    participations=participations,
    separation=separation,
  )
  assert (table >= 0).sum(axis=1).tolist() == expected
  for canary in range(5):
    taken = np.flatnonzero((table == canary).any(axis=1))
    assert len(taken) == min(participations, -(-rounds // separation))
    assert set(np.diff(taken)) <= {separation}


@pytest.mark.parametrize('groups', [1, 4])
def test_sampled_canaries_take_part_as_clients_do(groups):
  kind = 'cyclic_poisson' if groups > 1 else 'poisson'
  rounds, count, probability = 40, 500, 0.2
  table = canaries.schedule(
    num_canaries=count,
    rounds=rounds,
    participations=rounds // groups,
    separation=groups,
    amplification=schedules.Amplification(kind, probability, groups),
    canary_seed=7,
  )
  taken = np.zeros([rounds, count])
  for time, cohort in enumerate(table):
    taken[time, cohort[cohort >= 0]] = 1
  turn = np.arange(count) % groups == np.arange(rounds)[:, None] % groups
  assert not taken[~turn].any()
  chances = turn.sum()
  assert chances == rounds * count / groups
  deviation = np.sqrt(chances * probability * (1 - probability))
  assert abs(taken.sum() - chances * probability) < 4 * deviation
  # Rounds differ, and no two canaries always go together.
  assert len({tuple(row) for row in taken}) == rounds
  assert len({tuple(column) for column in taken.T}) > 0.9 * count / groups


def test_canaries_in_bins_stay_in_the_group_that_they_draw():
  table = canaries.schedule(
    num_canaries=800,
    rounds=8,
    participations=2,
    separation=4,
    amplification=schedules.Amplification('balls_in_bins', 0.2, 4),
    canary_seed=7,
  )
  cohorts = [set(cohort[cohort >= 0]) for cohort in table]
  assert cohorts[:4] == cohorts[4:]
  assert not set.intersection(cohorts[0], cohorts[1], cohorts[2], cohorts[3])
  # 160 of each group, standard deviation 11.3; as many have none.
  assert all(100 < len(cohort) < 220 for cohort in cohorts)
  assert 100 < 800 - len(set.union(*cohorts)) < 220


def test_the_estimate_under_sampling_respects_amplification(run):
  shapes, count, rounds, noise = [[200, 100], [10_000]], 400, 20, 0.7
  amplification = schedules.Amplification('poisson', 0.1)
  contract = participation.Participation(rounds, rounds, 1)
  inner = _factory(rounds, noise_multiplier=noise)

  def estimate(amplification):
    table = canaries.schedule(
      num_canaries=count,
      rounds=rounds,
      participations=rounds,
      separation=1,
      amplification=amplification,
      canary_seed=5,
    )
    initialize, step = run(canaries.CanaryFactory(inner, 5, table), shapes)
    zero = [np.zeros(shape, np.float32) for shape in shapes]
    state, change = initialize(), [np.zeros(shape) for shape in shapes]
    for _ in range(rounds):
      state, result, _ = step(state, [zero])
      change = [total + part for total, part in zip(change, result)]
    scores = canaries.scores(change, canary_seed=5, num_canaries=count)
    return auditing.estimate_epsilon(scores, 1e-5, dimension=30_000)

  promised = accounting.PrivacyRecord(
    strategies.identity(rounds), noise, contract, amplification
  ).epsilon(1e-5)
  assert estimate(amplification) < promised
  # Canaries in every round would have called a right mechanism wrong.
  assert estimate(None) > promised


def test_the_mean_has_the_rounds_canaries(run):
  table = np.array([[0, 1], [2, -1], [-1, -1], [0, 2]], np.int32)
  factory = canaries.CanaryFactory(_factory(), 3, table)
  initialize, step = run(factory, _SHAPES)
  state = initialize()
  client = [np.full(shape, 0.25, np.float32) for shape in _SHAPES]
  for cohort in ([0, 1], [2], [], [0, 2]):
    state, result, measurements = step(state, [client, client])
    # Clip norm 2, four clients a round.
    expected = 0.125 + sum(0.5 * _direction(3, i) for i in cohort)
    np.testing.assert_allclose(
      _flat(result), np.broadcast_to(expected, [12]), rtol=1e-5, atol=1e-7
    )
    assert measurements['clip_fraction'] == 0


def test_a_simulated_cohort_makes_canaries_as_small(run):
  table = np.array([[0]] * 4, np.int32)
  factory = canaries.CanaryFactory(_factory(noise_cohort_size=40), 3, table)
  initialize, step = run(factory, _SHAPES)
  zero = [np.zeros(shape, np.float32) for shape in _SHAPES]
  _, result, _ = step(initialize(), [zero])
  np.testing.assert_allclose(
    _flat(result), 0.05 * _direction(3, 0), rtol=1e-5, atol=1e-8
  )


@pytest.mark.parametrize('noise', [0.5, 2.0])
def test_the_estimate_is_near_the_epsilon_of_a_gaussian(run, noise):
  shapes, count = [[200, 100], [10_000]], 400
  table = canaries.schedule(
    num_canaries=count, rounds=1, participations=1, separation=1
  )
  inner = _factory(1, noise_multiplier=noise)
  initialize, step = run(canaries.CanaryFactory(inner, 5, table), shapes)
  zero = [np.zeros(shape, np.float32) for shape in shapes]
  _, result, _ = step(initialize(), [zero])
  scores = canaries.scores(list(result), canary_seed=5, num_canaries=count)
  found = auditing.estimate_epsilon(scores, 1e-5, dimension=30_000)
  truth = accounting.gaussian_epsilon(noise, 1e-5)
  # Canaries are noise to one another, and 400 scores have an error.
  assert 0.75 * truth < found < 1.15 * truth


def test_models_that_did_not_change_have_no_scores():
  with pytest.raises(ValueError, match='nothing to audit'):
    canaries.scores([np.zeros(3)], canary_seed=0, num_canaries=2)
  with pytest.raises(ValueError, match='nothing to audit'):
    canaries.scores([np.array([np.nan])], canary_seed=0, num_canaries=2)


def test_adaptive_clips_and_single_canaries_are_rejected():
  table = np.zeros([4, 1], np.int32)
  with pytest.raises(ValueError, match='fixed clip norm'):
    canaries.CanaryFactory(_factory(build=build_adaptive_gaussian), 0, table)
  with pytest.raises(ValueError, match='at least 2'):
    canaries.schedule(num_canaries=1, rounds=1, participations=1, separation=1)
