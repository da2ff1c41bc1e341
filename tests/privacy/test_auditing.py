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


def test_estimate_recovers_the_noise_of_a_gaussian_sum():
  # Each canary is in a sum with noise: its score has mean 1 / |sum|.
  dimension, noise, canaries = 4000, 1.0, 1500
  random = np.random.default_rng(0)

  def draw():
    directions = random.normal(size=(canaries, dimension))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)

  directions = draw()
  released = directions.sum(0) + noise * random.normal(size=dimension)
  unit = released / np.linalg.norm(released)
  scores = directions @ unit
  found = auditing.estimate_epsilon(scores, 1e-5, dimension=dimension)
  # The other canaries' directions add to the noise.
  effective = math.sqrt(noise**2 + canaries / dimension)
  expected = accounting.gaussian_epsilon(effective, 1e-5)
  assert found == pytest.approx(expected, rel=0.25)
  other = auditing.estimate_epsilon(scores, 1e-5, unseen_scores=draw() @ unit)
  assert other == pytest.approx(expected, rel=0.4)


def test_lower_bound_holds():
  broken = 0
  for seed in range(40):
    random = np.random.default_rng(seed)
    inside, outside = random.normal(1.0, 1, 400), random.normal(0.0, 1, 400)
    found = auditing.epsilon_lower_bound(inside, outside, 1e-3)
    broken += found > accounting.gaussian_epsilon(1.0, 1e-3)
  assert broken <= 4
  same = np.random.default_rng(0).normal(size=800)
  assert auditing.epsilon_lower_bound(same[:400], same[400:], 1e-5) < 0.3


def test_lower_bound_is_high_without_privacy():
  random = np.random.default_rng(0)
  inside, outside = random.normal(20, 1, 2000), random.normal(0, 1, 2000)
  found = auditing.epsilon_lower_bound(inside, outside, 1e-5)
  # 1000 of 1000 on each side bound both rates at 1 - 0.025^(1/1000).
  false = 1 - 0.025 ** (1 / 1000)
  assert found == pytest.approx(math.log((1 - false - 1e-5) / false), rel=1e-6)


def test_bad_arguments_are_rejected():
  scores = np.arange(8.0)
  with pytest.raises(ValueError, match='either'):
    auditing.estimate_epsilon(scores, 1e-5)
  with pytest.raises(ValueError, match='finite scores'):
    auditing.estimate_epsilon(np.array([1.0, np.nan]), 1e-5, dimension=4)
  with pytest.raises(ValueError, match='at least 4'):
    auditing.epsilon_lower_bound(scores[:3], scores, 1e-5)
  with pytest.raises(ValueError, match='delta'):
    auditing.normal_epsilon(0, 1, 1, 1, 0.0)
  with pytest.raises(ValueError, match='confidence'):
    auditing.epsilon_lower_bound(scores, scores, 1e-5, confidence=1.0)
