from __future__ import annotations

import dataclasses
import math

import dp_accounting
import numpy as np
import pytest
from scipy import optimize, stats

from si_federated.privacy import (
  accounting,
  gaussian_mixture,
  monte_carlo,
  participation,
  schedules,
  strategies,
)

_DELTA = 1e-5


def _record(strategy, noise, probability, groups, releases=1):
  rounds = strategy.rounds
  return accounting.PrivacyRecord(
    strategy,
    noise,
    participation.Participation(
      rounds, -(-rounds // groups), groups, cyclic=True
    ),
    schedules.Amplification('balls_in_bins', probability, groups),
    releases,
  )


def _integrated(means, weights, delta):
  """Returns the epsilon of a mixture of plane unit Gaussians, on a grid."""
  axis = np.linspace(-9, 13, 1101)
  x, y = np.meshgrid(axis, axis)
  cell = (axis[1] - axis[0]) ** 2

  def density(mean):
    return stats.norm.pdf(x - mean[0]) * stats.norm.pdf(y - mean[1])

  without = density((0, 0))
  mixed = (1 - sum(weights)) * without
  mixed = mixed + sum(w * density(m) for w, m in zip(weights, means))

  def least(p, q):
    def excess(epsilon):
      return np.maximum(p - math.exp(epsilon) * q, 0).sum() * cell - delta

    return 0.0 if excess(0) <= 0 else optimize.brentq(excess, 0, 40)

  return max(least(mixed, without), least(without, mixed))


@pytest.mark.parametrize(
  ('probability', 'noise'), [(1.0, 1.0), (0.3, 1.0), (0.3, 3.0), (0.05, 0.7)]
)
def test_one_group_is_poisson_sampling(probability, noise):
  record = _record(strategies.identity(1), noise, probability, 1)
  accountant = dp_accounting.pld.PLDAccountant()
  accountant.compose(
    dp_accounting.PoissonSampledDpEvent(
      probability, dp_accounting.GaussianDpEvent(noise)
    )
  )
  exact = accountant.get_epsilon(_DELTA)
  found = record.epsilon(_DELTA)
  assert exact <= found * 1.001
  assert found < 1.03 * exact
  assert record.summary(_DELTA)['epsilon_confidence'] == 0.999


@pytest.mark.parametrize('column', [[1.0], [1.0, 0.6], [1.0, 0.5, 0.4, 0.2]])
@pytest.mark.parametrize('probability', [0.5, 0.35])
def test_two_groups_against_integration(column, probability):
  rounds, noise = 4, 1.5
  toeplitz = strategies.Toeplitz(np.array(column), rounds)
  record = _record(toeplitz, noise, probability, 2)
  # Two means span a plane; a and b are their lengths.
  matrix = toeplitz.matrix() / noise
  one, two = matrix[:, [0, 2]].sum(axis=1), matrix[:, [1, 3]].sum(axis=1)
  along = np.linalg.norm(one)
  across = one @ two / along
  means = [(along, 0.0), (across, math.sqrt(two @ two - across**2))]
  exact = _integrated(means, [probability] * 2, _DELTA)
  found = record.epsilon(_DELTA)
  assert exact <= found * 1.001
  assert found < 1.03 * exact
  assert found < record.without_amplification().epsilon(_DELTA)
  np.testing.assert_allclose(
    record.mixture().gram,
    np.array([[one @ one, one @ two], [one @ two, two @ two]]),
  )


def test_epsilon_includes_the_direction_of_an_added_client():
  # With few groups and large noise, an added client can cost more.
  mixture = gaussian_mixture.GaussianMixture(
    np.array([[0.5**2]]), np.array([0.9])
  )
  exact = _integrated([(0.5, 0.0)], [0.9], 0.05)
  found = monte_carlo.Sampled(mixture).epsilon(0.05)
  assert exact <= found < 1.05 * exact


def test_the_best_attack_is_that_of_poisson_sampling():
  rates = [0.01, 0.1]
  found = _record(strategies.identity(1), 1.0, 0.4, 1).true_positive_rates(
    rates
  )
  exact = accounting.PrivacyRecord(
    strategies.identity(1),
    1.0,
    participation.Participation(1, 1, 1),
    schedules.Amplification('poisson', 0.4),
  ).true_positive_rates(rates)
  assert (exact <= found).all()
  np.testing.assert_allclose(found, exact, rtol=0.1)


def test_the_bound_fails_as_rarely_as_stated():
  # Hand-computed: 0 of 10 seen, 1 - (1 - q) ** 10 with KL limit log(20) / 10.
  limit = math.log(20) / 10
  assert monte_carlo._kl_upper(0.0, limit) == pytest.approx(1 - 20**-0.1)
  generator = np.random.default_rng(3)
  means = generator.beta(0.2, 1.8, size=[4000, 50]).mean(axis=1)
  failures = sum(
    monte_carlo._kl_upper(float(mean), math.log(10) / 50) < 0.1
    for mean in means
  )
  assert failures < 0.1 * len(means)


def test_many_groups_cost_less_and_two_releases_more():
  column = np.array([1.0, 0.5, 0.25])
  found = []
  for groups in (2, 4, 12):
    toeplitz = strategies.Toeplitz(column, 2 * groups)
    record = _record(toeplitz, 2.0, 1 / groups, groups)
    found.append(record.epsilon(_DELTA))
  assert found[0] > found[1] > found[2]
  twice = dataclasses.replace(record, releases=2)
  np.testing.assert_allclose(twice.mixture().gram, 2 * record.mixture().gram)


def test_calibration_keeps_to_epsilon():
  toeplitz = strategies.Toeplitz(np.array([1.0, 0.5, 0.25]), 12)
  record = _record(toeplitz, 1.0, 0.1, 6)
  found = accounting.calibrate(record, target_epsilon=2.0, delta=_DELTA)
  assert 1.96 < found.epsilon(_DELTA) <= 2.0
  known = accounting.calibrate(
    record.without_amplification(), target_epsilon=2.0, delta=_DELTA
  )
  assert found.noise_multiplier < 0.8 * known.noise_multiplier


def test_unproven_amplification_is_refused():
  lower = np.eye(4)
  lower[1, 0] = -0.1
  for strategy in (strategies.Matrix(lower, 'dense'), strategies.Tree(4)):
    with pytest.raises(ValueError, match='not amplified by balls_in_bins'):
      _record(strategy, 1.0, 0.5, 2)
  with pytest.raises(ValueError, match='shape'):
    gaussian_mixture.GaussianMixture(np.eye(2), np.ones(3) / 3)
  with pytest.raises(ValueError, match='at most 1'):
    gaussian_mixture.GaussianMixture(np.eye(2), np.ones(2))
  plain = _record(strategies.identity(4), 1.0, 0.5, 2).without_amplification()
  with pytest.raises(ValueError, match='make a mixture'):
    plain.mixture()


def _deltas(entry, first, second, epsilon):
  """Deltas, removed and added, for a client in one of two rounds, or in none.

  Args:
    entry: The entry of C in the second row and first column.
    first: The client's update, if it takes part in the first round.
    second: The same for the second round, given the first release.
    epsilon: The epsilon.
  """
  axis = np.arange(-7, 9, 0.05)
  x, y = np.meshgrid(axis, axis, indexing='ij')

  def density(one, two):
    return stats.norm.pdf(x - one) * stats.norm.pdf(y - two) * 0.05**2

  without = density(0.0, 0.0)
  mixed = 0.4 * density(first, entry * first)
  mixed += 0.4 * density(0.0, second(x)) + 0.2 * without
  growth = math.exp(epsilon)
  return [
    np.maximum(p - growth * q, 0).sum()
    for p, q in ((mixed, without), (without, mixed))
  ]


# The second update, a number, which may depend on the first release.
_ANSWERS = {
  'opposite': lambda x: -np.ones_like(x),
  'none': np.zeros_like,
  'short': lambda x: 0.7 * np.ones_like(x),
  'sign': np.sign,
  'opposite sign': lambda x: -np.sign(x),
  'when it was large': lambda x: 1.0 * (x > 0.5),
  'smooth': np.tanh,
}


@pytest.mark.parametrize('answer', _ANSWERS)
@pytest.mark.parametrize('epsilon', [0.0, 0.3, 1.0, 2.0])
def test_updates_that_stay_the_same_cost_most(answer, epsilon):
  worst = _deltas(0.6, 1.0, np.ones_like, epsilon)
  for first in (1.0, -1.0, 0.5):
    found = _deltas(0.6, first, _ANSWERS[answer], epsilon)
    assert (np.array(found) <= np.array(worst) + 1e-9).all()


def test_with_a_negative_entry_other_updates_cost_more():
  same = _deltas(-0.6, 1.0, np.ones_like, 1.0)
  opposite = _deltas(-0.6, 1.0, _ANSWERS['opposite'], 1.0)
  assert opposite[0] > 1.05 * same[0]
