from __future__ import annotations

import dataclasses
import itertools
import math

import dp_accounting
import numpy as np
import pytest
from scipy import linalg, special

from si_federated.privacy import (
  accounting,
  gaussian,
  monte_carlo,
  participation,
  schedules,
  separated_mixture,
  strategies,
)

_DELTA = 1e-5


def _record(strategy, noise, probability, separation, **others):
  rounds = strategy.rounds
  return accounting.PrivacyRecord(
    strategy,
    noise,
    participation.Participation(rounds, -(-rounds // separation), separation),
    schedules.Amplification('b_min_sep', probability, separation),
    **others,
  )


def _sets(rounds, amplification):
  """All sets of a client's rounds and their probabilities, by enumeration.

  Independent of the module.
  """
  found: dict[tuple[int, ...], float] = {}
  free = 1 / (1 + (amplification.groups - 1) * amplification.probability)

  def follow(t, wait, taken, chance):
    if t == rounds:
      found[taken] = found.get(taken, 0.0) + chance
    elif wait:
      follow(t + 1, wait - 1, taken, chance)
    else:
      follow(t + 1, 0, taken, chance * (1 - amplification.probability))
      follow(
        t + 1,
        amplification.groups - 1,
        (*taken, t),
        chance * amplification.probability,
      )

  follow(0, 0, (), free)
  for wait in range(1, amplification.groups):
    follow(0, wait, (), free * amplification.probability)
  found = {taken: chance for taken, chance in found.items() if chance}
  sets = np.zeros((len(found), rounds))
  for row, taken in zip(sets, found):
    row[list(taken)] = 1
  return sets, np.array(list(found.values()))


_CASES = [
  (np.array([1.0]), 1, 0.3, 6),
  (np.array([1.0, 0.5]), 2, 0.3, 7),
  (np.array([1.0, 0.6, 0.4]), 3, 0.2, 8),
  (np.array([1.0, 0.6]), 4, 0.6, 8),
  (np.array([1.0, 0.6, 0.4]), 3, 1.0, 8),
  (np.array([1.0, 0.6, 0.4]), 3, 0.4, 2),
]


def _mixture(case, noise=1.0, before=0.0):
  column, separation, probability, rounds = case
  column = np.pad(column, (0, 8))[:rounds]
  return separated_mixture.SeparatedMixture(
    linalg.toeplitz(column, np.zeros(rounds)) / noise,
    schedules.Amplification('b_min_sep', probability, separation),
    before,
  )


@pytest.mark.parametrize('case', _CASES)
def test_likelihood_ratio_against_all_sets(case):
  mixture = _mixture(case)
  sets, chances = _sets(case[3], mixture.amplification)
  assert chances.sum() == pytest.approx(1)
  # The rate is the same in all rounds.
  np.testing.assert_allclose(chances @ sets, mixture.rate)
  means = sets @ mixture.columns.T
  squares = (means**2).sum(axis=1)
  release = np.random.default_rng(1).standard_normal((case[3], 5)) * 3
  expected = special.logsumexp(
    np.log(chances)[:, None] + means @ release - squares[:, None] / 2, axis=0
  )
  found = mixture.log_mean(
    mixture.products(release) - mixture.squares[:, None] / 2
  )
  np.testing.assert_allclose(found, expected, rtol=1e-10)
  np.testing.assert_allclose(mixture.release(sets.T), means.T)
  assert mixture.most == pytest.approx(squares.max())
  assert mixture.mean_square == pytest.approx(chances @ squares)


@pytest.mark.parametrize('case', _CASES)
def test_sets_are_drawn_as_weighted(case):
  mixture = _mixture(case)
  sets, chances = _sets(case[3], mixture.amplification)
  tilts = np.linspace(1.5, -0.5, case[3])
  drawn = mixture.draw(np.random.default_rng(2), 40_000, tilts)
  weights = chances * np.exp(sets @ tilts)
  weights /= weights.sum()
  places = 2 ** np.arange(case[3])
  counts = np.bincount((drawn.T @ places).astype(int), minlength=2 ** case[3])[
    (sets @ places).astype(int)
  ]
  assert counts.sum() == 40_000
  # Five standard deviations of each count.
  error = np.abs(counts - 40_000 * weights)
  assert (error < 5 * np.sqrt(40_000 * weights) + 5).all()


@pytest.mark.parametrize('case', _CASES)
def test_pairs_of_sets_against_all(case):
  mixture = _mixture(case, noise=1.3, before=0.2)
  sets, chances = _sets(case[3], mixture.amplification)
  means = sets @ mixture.columns.T
  tilts = np.linspace(-0.6, 0.5, case[3])
  exponents = 3 * (means @ means.T + 0.2)
  exponents += np.add.outer(sets @ tilts, sets @ tilts)
  expected = math.log(chances @ np.exp(exponents) @ chances)
  assert mixture.log_pairs(3, tilts) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('case', _CASES[:4])
def test_weights_of_samples_and_their_limits(case):
  mixture = _mixture(case, noise=2.0, before=0.2)
  epsilon = 0.2
  seen = set()
  for direction in itertools.chain(*mixture.directions()):
    for shift in direction.shifts[:5]:
      tilt = direction.tilt(shift)
      loss, log_weights = direction.sample(
        np.random.default_rng(3), 40_000, tilt
      )
      weights = np.exp(log_weights)
      spread = weights.std() / 200
      # If shifted too far, large weights are rarely sampled.
      if spread < 0.05:
        assert weights.mean() == pytest.approx(1, abs=5 * spread + 1e-9)
      limit = direction.log_limit(tilt, epsilon)
      seen.add(direction.limit)
      if direction.limit == 'range':
        assert (log_weights + tilt * loss).max() <= limit + 1e-9
      elif direction.limit == 'square':
        values = weights * np.maximum(-np.expm1(epsilon - loss), 0)
        assert (values**2).mean() <= math.exp(limit)
  assert seen == {'range', 'square', 'tail'}


@dataclasses.dataclass
class _OneWay:
  """A mixture with only one direction and one way to sample it."""

  mixture: separated_mixture.SeparatedMixture
  direction: monte_carlo.Direction
  most = 1.0
  samples = 2**19
  width = 64

  def directions(self):
    return ((self.direction,), (self.direction,))


@pytest.mark.parametrize('case', [_CASES[1], _CASES[3]])
def test_every_way_to_sample_bounds_epsilon(case):
  mixture = _mixture(case, noise=2.0)
  sets, chances = _sets(case[3], mixture.amplification)
  delta = 0.003
  exact = _sampled_epsilons(sets, chances, mixture.columns, delta)
  for epsilon, ways in zip(exact, mixture.directions()):
    for direction in ways:
      found = monte_carlo.Sampled(_OneWay(mixture, direction)).epsilon(delta)
      assert 0.98 * epsilon < found < 1.2 * epsilon, direction


def test_a_gaussian_tail_is_extrapolated_exactly():
  # If the client always takes part, both directions' losses are Gaussian.
  mixture = _mixture((np.array([1.0]), 1, 1.0, 1), noise=2.0)
  (_, (added,)) = mixture.directions()
  found = monte_carlo.Sampled(_OneWay(mixture, added)).epsilon(1e-9)
  exact = gaussian.gaussian_epsilon(2.0, 1e-9)
  assert exact <= found < 1.05 * exact


def _sampled_epsilons(sets, chances, columns, delta):
  """Epsilons of removing and adding, by plain sampling of all sets."""
  means = sets @ columns.T
  squares = (means**2).sum(axis=1) / 2
  generator = np.random.default_rng(7)
  count = 400_000
  noise = generator.standard_normal((count, means.shape[1]))
  with_client = noise + means[generator.choice(len(means), count, p=chances)]

  def ratio(release):
    return special.logsumexp(
      release @ means.T - squares + np.log(chances), axis=1
    )

  def least(losses):
    low, high = 0.0, 50.0
    while high - low > 1e-4:
      middle = (low + high) / 2
      mean = np.maximum(-np.expm1(middle - losses), 0).mean()
      low, high = (middle, high) if mean > delta else (low, middle)
    return high

  return least(ratio(with_client)), least(-ratio(noise))


@pytest.mark.parametrize('case', [_CASES[2], _CASES[4]])
def test_epsilon_against_the_explicit_mixture(case):
  column, separation, probability, rounds = case
  noise, delta = 1.2, 0.01
  strategy = strategies.Toeplitz(column, rounds)
  record = _record(strategy, noise, probability, separation)
  sets, chances = _sets(rounds, record.amplification)
  exact = max(
    _sampled_epsilons(sets, chances, strategy.matrix() / noise, delta)
  )
  found = record.epsilon(delta)
  # The oracle's own error is about 1 %.
  assert 0.99 * exact < found < 1.04 * exact
  assert found < record.without_amplification().epsilon(delta)
  assert record.confidence == 0.999


@pytest.mark.parametrize(
  ('rounds', 'probability', 'noise'), [(1, 0.3, 1.0), (10, 0.3, 3.0)]
)
def test_without_a_pause_it_is_poisson_sampling(rounds, probability, noise):
  accountant = dp_accounting.pld.PLDAccountant()
  accountant.compose(
    dp_accounting.SelfComposedDpEvent(
      dp_accounting.PoissonSampledDpEvent(
        probability, dp_accounting.GaussianDpEvent(noise)
      ),
      rounds,
    )
  )
  exact = accountant.get_epsilon(_DELTA)
  found = _record(strategies.identity(rounds), noise, probability, 1).epsilon(
    _DELTA
  )
  assert exact <= found * 1.001
  assert found < 1.03 * exact


def test_clients_that_always_join_are_balls_in_bins():
  strategy = strategies.Toeplitz(np.array([1.0, 0.5]), 6)
  found = _record(strategy, 1.5, 1.0, 3)
  bins = accounting.PrivacyRecord(
    strategy,
    1.5,
    participation.Participation(6, 2, 3, cyclic=True),
    schedules.Amplification('balls_in_bins', 1 / 3, 3),
  )
  assert found.epsilon(_DELTA) == pytest.approx(bins.epsilon(_DELTA), rel=0.02)
  assert found.mixture().most == pytest.approx(bins.mixture().most)
  # One round leaves no choice, and the mechanism is a Gaussian.
  always = _record(strategies.identity(1), 1.5, 1.0, 1)
  assert always.epsilon(_DELTA) == pytest.approx(
    always.without_amplification().epsilon(_DELTA)
  )


def test_an_earlier_release_counts():
  strategy = strategies.identity(1)
  earlier = accounting.PrivacyRecord(
    strategy, 2.0, participation.Participation(1, 1, 1)
  )
  found = _record(strategy, 1.0, 0.3, 1, earlier=(earlier,)).epsilon(_DELTA)
  both = accounting.PrivacyRecord(
    strategy,
    1.0,
    participation.Participation(1, 1, 1),
    schedules.Amplification('poisson', 0.3),
    earlier=(earlier,),
  ).epsilon(_DELTA)
  assert both <= found * 1.001
  assert found < 1.03 * both


def test_calibration_keeps_to_epsilon():
  toeplitz = strategies.Toeplitz(np.array([1.0, 0.5, 0.25]), 6)
  record = _record(toeplitz, 1.0, 0.2, 3)
  found = accounting.calibrate(record, target_epsilon=2.0, delta=1e-3)
  assert 1.96 < found.epsilon(1e-3) <= 2.0
  known = accounting.calibrate(
    record.without_amplification(), target_epsilon=2.0, delta=1e-3
  )
  assert found.noise_multiplier < 0.8 * known.noise_multiplier


def test_unproven_amplification_is_refused():
  lower = np.eye(4)
  lower[1, 0] = -0.1
  for strategy in (strategies.Matrix(lower, 'dense'), strategies.Tree(4)):
    with pytest.raises(ValueError, match='not amplified by b_min_sep'):
      _record(strategy, 1.0, 0.5, 2)
  wide = strategies.Toeplitz(np.array([1.0, 0.5, 0.25]), 6)
  with pytest.raises(ValueError, match='3 bands is not amplified by b_min_sep'):
    _record(wide, 1.0, 0.5, 2)
  with pytest.raises(ValueError, match='more than 2 bands'):
    _mixture((np.array([1.0, 0.5, 0.25]), 2, 0.5, 6))


def test_bounds_grow_with_two_releases():
  record = _record(strategies.identity(4), 2.0, 0.3, 2, releases=2)
  np.testing.assert_allclose(record.mixture().columns, np.eye(4) / math.sqrt(2))
  assert isinstance(record.mixture(), separated_mixture.SeparatedMixture)
  assert monte_carlo.Sampled(record.mixture()).epsilon(0.01) > 0
