from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from si_federated.privacy import accounting, auditing


def test_normal_epsilon_is_that_of_a_gaussian_mechanism():
  for noise in (0.5, 1.0, 3.0):
    for delta in (1e-6, 1e-3):
      found = auditing.normal_epsilon(0.0, noise, 1.0, noise, delta)
      expected = accounting.gaussian_epsilon(noise, delta)
      assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('std', [0.3, 0.8, 1.0, 1.7])
@pytest.mark.parametrize('mean', [0.0, 0.9, -2.0])
def test_normal_epsilon_by_integration(mean, std):
  if (mean, std) == (0.0, 1.0):
    assert auditing.normal_epsilon(0.0, 1.0, mean, std, 1e-3) == 0
    return
  delta = 1e-3
  epsilon = auditing.normal_epsilon(0.0, 1.0, mean, std, delta)
  x = np.linspace(-25, 25, 2_000_001)
  p, q = stats.norm.pdf(x), stats.norm.pdf(x, mean, std)
  divergence = max(
    np.maximum(a - math.exp(epsilon) * b, 0).sum() * (x[1] - x[0])
    for a, b in ((p, q), (q, p))
  )
  assert divergence == pytest.approx(delta, rel=1e-3)


def _coins(random, count):
  return random.random(count) < 0.5


def test_estimate_recovers_the_noise_of_a_gaussian_sum():
  dimension, noise, canaries = 4000, 1.0, 3000
  random = np.random.default_rng(0)
  directions = random.normal(size=(canaries, dimension))
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  is_member = _coins(random, canaries)
  released = directions[is_member].sum(0) + noise * random.normal(
    size=dimension
  )
  unit = released / np.linalg.norm(released)
  found = auditing.estimate_epsilon(directions @ unit, is_member, 1e-5)
  # The other canaries' directions add to the noise.
  effective = math.sqrt(noise**2 + is_member.sum() / dimension)
  expected = accounting.gaussian_epsilon(effective, 1e-5)
  assert found == pytest.approx(expected, rel=0.2)


def test_p_values_by_hand():
  # Two guesses by coins are both right with probability 1/4, one with 1/2.
  assert auditing.one_run_p_value(2, 2, 2, 0.0, 0.0) == pytest.approx(1 / 4)
  assert auditing.one_run_p_value(2, 2, 1, 0.0, 0.0) == pytest.approx(3 / 4)
  # Delta adds the worse of (1/2) / 1 and (1/2 + 1/4) / 2, times 2 m delta.
  found = auditing.one_run_p_value(3, 2, 2, 0.0, 0.01)
  assert found == pytest.approx(1 / 4 + 1 / 2 * 2 * 3 * 0.01)
  # e^epsilon = 3: a guess is right with probability 3/4.
  found = auditing.one_run_p_value(5, 3, 3, math.log(3), 0.0)
  assert found == pytest.approx(27 / 64)
  assert auditing.one_run_p_value(5, 3, 0, 1.0, 0.1) == 1


def test_the_one_run_bound_by_hand():
  # All m guesses are right: q^m is the error probability, a fourth of 5 %.
  for canaries in (40, 400):
    is_member = np.arange(canaries) % 2 == 0
    scores = is_member + np.arange(canaries) / 1e4
    chance = 0.0125 ** (1 / canaries)
    expected = math.log(chance / (1 - chance))
    found = auditing.one_run_epsilon(scores, is_member, 1e-12)
    assert found == pytest.approx(expected, rel=1e-5)
  # Guesses are random, or mostly wrong.
  same = np.zeros(40)
  assert auditing.one_run_epsilon(same, np.arange(40) % 2 == 0, 1e-5) == 0
  assert auditing.one_run_epsilon(-scores, is_member, 1e-5) == 0


@pytest.mark.parametrize('epsilon', [0.5, 2.0])
def test_the_one_run_bound_holds_for_randomized_response(epsilon):
  # The mechanism closest to the bound: it reveals each coin, correctly with the
  # probability of the definition.
  random = np.random.default_rng(3)
  found = []
  for _ in range(200):
    is_member = _coins(random, 300)
    right = random.random(300) < 1 / (1 + math.exp(-epsilon))
    scores = np.where(is_member == right, 1.0, -1.0) + random.random(300) / 10
    found.append(auditing.one_run_epsilon(scores, is_member, 1e-9))
  # The bound has 95 % confidence, and is not far too low.
  assert (np.array(found) > epsilon).sum() <= 10
  assert np.median(found) > 0.4 * epsilon


@pytest.mark.parametrize('gaussian', [False, True])
def test_lower_bounds_of_independent_scores_hold(gaussian):
  truth = accounting.gaussian_epsilon(0.5, 1e-3)
  broken, found = 0, []
  for seed in range(60):
    random = np.random.default_rng(seed)
    is_member = _coins(random, 800)
    scores = random.normal(2.0 * is_member)
    found.append(
      auditing.epsilon_lower_bound(scores, is_member, 1e-3, gaussian=gaussian)
    )
    broken += found[-1] > truth
  assert broken <= 3
  # For a Gaussian, rates give mu, and the bound is near.
  assert np.median(found) > (0.65 if gaussian else 0.25) * truth
  same = np.random.default_rng(0).normal(size=800)
  is_member = np.arange(800) < 400
  none = auditing.epsilon_lower_bound(same, is_member, 1e-5, gaussian=gaussian)
  assert none < 0.6


def test_lower_bound_is_high_without_privacy():
  random = np.random.default_rng(0)
  is_member = np.arange(4000) < 2000
  scores = random.normal(20 * is_member)
  found = auditing.epsilon_lower_bound(scores, is_member, 1e-5)
  # 1000 of 1000 on each side bound both rates at 1 - 0.025^(1/1000).
  false = 1 - 0.025 ** (1 / 1000)
  assert found == pytest.approx(math.log((1 - false - 1e-5) / false), rel=1e-6)
  found = auditing.epsilon_lower_bound(scores, is_member, 1e-5, gaussian=True)
  mu = stats.norm.ppf(1 - false) - stats.norm.ppf(false)
  assert found == pytest.approx(accounting.gaussian_epsilon(1 / mu, 1e-5))


def test_bad_arguments_are_rejected():
  scores, is_member = np.arange(8.0), np.arange(8) < 4
  with pytest.raises(ValueError, match='finite scores'):
    auditing.estimate_epsilon(np.array([1.0, np.nan]), is_member[:2], 1e-5)
  with pytest.raises(ValueError, match='at least 4'):
    auditing.epsilon_lower_bound(scores, np.arange(8) < 3, 1e-5)
  with pytest.raises(ValueError, match='each canary'):
    auditing.one_run_epsilon(scores, is_member[:7], 1e-5)
  with pytest.raises(ValueError, match='at least 1'):
    auditing.one_run_epsilon(scores, np.arange(8) < 0, 1e-5)
  with pytest.raises(ValueError, match='delta'):
    auditing.normal_epsilon(0, 1, 1, 1, 0.0)
  with pytest.raises(ValueError, match='confidence'):
    auditing.epsilon_lower_bound(scores, is_member, 1e-5, confidence=1.0)
  with pytest.raises(ValueError, match='confidence'):
    auditing.one_run_epsilon(scores, is_member, 1e-5, confidence=0.0)
