from __future__ import annotations

import dataclasses
import json
import math

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from si_federated.privacy import (
  accounting,
  participation,
  schedules,
  strategies,
)

Participation = participation.Participation
PrivacyRecord = accounting.PrivacyRecord


def _single(noise):
  return PrivacyRecord(strategies.identity(1), noise, Participation(1, 1, 1))


def _poisson(noise=1.0, rounds=200, probability=0.02):
  return PrivacyRecord(
    strategies.identity(rounds),
    noise,
    Participation(rounds, rounds, 1),
    schedules.Amplification('poisson', probability),
  )


def test_published_tree():
  # The Gboard launch of Xu et al. 2023: 313 rounds between is 314 apart.
  record = PrivacyRecord(
    strategies.Tree(2000), 7.0, Participation(2000, 6, 314)
  )
  assert record.rho == pytest.approx(0.81, abs=0.005)
  assert record.rho == pytest.approx(79 / 98)
  assert record.epsilon(1e-10, method='rdp') == pytest.approx(8.90, abs=0.005)
  # The published rho is rounded; 8.55 is its exact conversion.
  assert accounting.gaussian_epsilon(
    (2 * 0.81) ** -0.5, 1e-10
  ) == pytest.approx(8.55, abs=0.005)
  assert record.epsilon(1e-10) == pytest.approx(8.526, abs=0.001)


@pytest.mark.parametrize(
  ('bands', 'built_for', 'noise', 'separation', 'times', 'rho', 'epsilon'),
  [
    # es-ES; consistent with sensitivity 1 for five rounds 400 apart.
    (400, 5, 1.411, 484, 3, 0.15068, 3.424),
    # pt-BR; consistent with columns of norm 1, also for rounds 1,132 apart.
    (1000, 1, 8.35, 1428, 2, 0.014343, 0.99355),
    (1000, 1, 8.35, 1132, 2, 0.014343, 0.99355),
  ],
)
def test_published_banded_matrices(
  bands, built_for, noise, separation, times, rho, epsilon
):
  # Gboard's, from its public notebook. All columns of the optimum have the same
  # norm (`test_banded_optimum_keeps_its_constraints`), and only that norm
  # determines privacy.
  matrix = np.tril(np.ones([2000, 2000]))
  matrix = np.triu(matrix, 1 - bands)
  matrix /= np.linalg.norm(matrix, axis=0) * built_for**0.5
  record = PrivacyRecord(
    strategies.Matrix(matrix, 'banded'),
    noise,
    Participation(2000, times, separation),
  )
  assert record.strategy.bands == bands
  assert record.sensitivity.is_exact
  assert record.rho == pytest.approx(rho, rel=5e-5)
  assert record.epsilon(1e-10) == pytest.approx(epsilon, rel=5e-5)
  # Its sensitivity is 1 for the number of rounds for which it was built.
  full = Participation(2000, built_for, bands)
  assert record.strategy.sensitivity(full).value == pytest.approx(1)


@pytest.mark.parametrize(
  ('noise', 'epsilon'), [(2.2305, 2.0), (0.600, 8.84), (0.341, 17.65)]
)
def test_gaussian_of_sensitivity_one(noise, epsilon):
  assert _single(noise).epsilon(1e-6) == pytest.approx(epsilon, abs=0.005)
  found = accounting.calibrate(_single(1.0), target_epsilon=epsilon, delta=1e-6)
  assert found.noise_multiplier == pytest.approx(noise, abs=5e-4)
  assert found.epsilon(1e-6) <= epsilon


@pytest.mark.parametrize(
  ('rho', 'epsilon'), [(0.15068, 3.424), (0.014343, 0.99355)]
)
def test_published_conversions_of_rho(rho, epsilon):
  # The banded matrices of BandMF's deployment, at delta 1e-10.
  found = accounting.gaussian_epsilon((2 * rho) ** -0.5, 1e-10)
  assert found == pytest.approx(epsilon, rel=1e-4)


def test_gaussian_agrees_with_the_analytic_formula_and_dp_accounting():
  for noise in (0.3, 1.0, 5.0):
    for delta in (1e-10, 1e-5):
      epsilon = accounting.gaussian_epsilon(noise, delta)
      # Balle and Wang 2018, theorem 8.
      balanced = stats.norm.cdf(0.5 / noise - epsilon * noise) - math.exp(
        epsilon
      ) * stats.norm.cdf(-0.5 / noise - epsilon * noise)
      assert balanced == pytest.approx(delta, rel=1e-4)
      accountant = dp_accounting.pld.PLDAccountant()
      accountant.compose(dp_accounting.GaussianDpEvent(noise))
      assert accountant.get_epsilon(delta) == pytest.approx(epsilon, rel=1e-3)


def test_dp_sgd_agrees_with_dp_accounting():
  record = _poisson()
  event = dp_accounting.SelfComposedDpEvent(
    dp_accounting.PoissonSampledDpEvent(
      0.02, dp_accounting.GaussianDpEvent(1.0)
    ),
    200,
  )
  exact = dp_accounting.pld.PLDAccountant()
  exact.compose(event)
  assert record.epsilon(1e-6) == pytest.approx(exact.get_epsilon(1e-6))
  rdp = dp_accounting.rdp.RdpAccountant()
  rdp.compose(event)
  ours = record.epsilon(1e-6, method='rdp')
  assert ours == pytest.approx(rdp.get_epsilon(1e-6), rel=0.02)
  assert ours > record.epsilon(1e-6)
  assert record.rho is None
  assert record.neighbouring_relation == 'add-or-remove-one'


def test_sampling_lowers_epsilon():
  record = _poisson()
  unclaimed = dataclasses.replace(record, amplification=None)
  assert record.epsilon(1e-6) < 0.2 * unclaimed.epsilon(1e-6)


def test_cyclic_sampling_of_a_banded_strategy():
  column = np.array([1.0, 0.5, 0.25])
  banded = strategies.Toeplitz(column, 60)
  record = PrivacyRecord(
    banded,
    2.0,
    Participation(60, 12, 5, cyclic=True),
    schedules.Amplification('cyclic_poisson', 0.1, 5),
  )
  norm = np.linalg.norm(column)
  same = _poisson(noise=2.0 / norm, rounds=12, probability=0.1)
  assert record.epsilon(1e-6) == pytest.approx(same.epsilon(1e-6))
  with pytest.raises(ValueError, match='takes at most . bands'):
    dataclasses.replace(
      record, amplification=schedules.Amplification('cyclic_poisson', 0.1, 2)
    )


@pytest.mark.parametrize(
  'strategy',
  [strategies.Tree(200), strategies.Toeplitz(np.array([1.0, 0.5]), 200)],
)
def test_unproven_amplification_is_refused(strategy):
  with pytest.raises(ValueError, match='not amplif'):
    dataclasses.replace(_poisson(), strategy=strategy)


def test_calibration_keeps_to_epsilon_under_sampling():
  found = accounting.calibrate(
    _poisson(rounds=10, probability=0.1), target_epsilon=2.0, delta=1e-5
  )
  assert 1.99 < found.epsilon(1e-5) <= 2.001


def test_calibration_scales_with_sensitivity():
  contract = Participation(64, 4, 16)
  record = PrivacyRecord(strategies.identity(64), 1.0, contract)
  found = accounting.calibrate(record, target_epsilon=2.0, delta=1e-6)
  assert found.noise_multiplier == pytest.approx(2 * 2.2305, abs=1e-3)
  assert (
    accounting.calibrate(
      record, target_epsilon=math.inf, delta=1e-6
    ).noise_multiplier
    == 0
  )


def test_epsilon_so_far_grows_to_that_of_the_contract():
  contract = Participation(64, 4, 16)
  several: tuple[strategies.Strategy, ...] = (
    strategies.identity(64),
    strategies.Tree(64),
    strategies.Blt.from_parameters(
      np.array([0.9, 0.5]), np.array([0.3, 0.2]), 64
    ),
    strategies.Matrix(
      strategies.Toeplitz(np.array([1.0, 0.5]), 64).matrix(), 'banded'
    ),
  )
  for strategy in several:
    record = PrivacyRecord(strategy, 3.0, contract)
    so_far = [
      record.after(Participation(r, -(-r // 16), 16)).epsilon(1e-6)
      for r in (1, *range(4, 65, 4))
    ]
    assert (np.diff(so_far) >= -1e-9).all()
    assert so_far[0] < 0.8 * so_far[-1]
    assert so_far[-1] == pytest.approx(record.epsilon(1e-6))
  record = _poisson()
  part = record.after(Participation(50, 3, 2))
  assert part.epsilon(1e-6) == pytest.approx(_poisson(rounds=50).epsilon(1e-6))


def test_no_noise_is_no_privacy():
  for record in (_single(0.0), _poisson(noise=0.0)):
    assert record.epsilon(1e-6) == math.inf
    assert record.epsilon(1e-6, method='rdp') == math.inf
  assert _single(0.0).rho == math.inf
  assert accounting.gaussian_epsilon(1e6, 1e-3) == 0


def test_the_best_attack_on_a_gaussian():
  # mu 1: the normal quantiles -3.0902, -2.3263 and -1.2816, plus 1.
  expected = [0.01830, 0.09236, 0.38914]
  rates = (0.001, 0.01, 0.1)
  assert _single(1.0).mu == 1
  assert _single(1.0).true_positive_rates(rates) == pytest.approx(
    expected, abs=1e-5
  )
  # Four rounds with independent noise 2 are like one round with noise 1.
  four = PrivacyRecord(strategies.identity(4), 2.0, Participation(4, 4, 1))
  assert four.true_positive_rates(rates) == pytest.approx(expected, abs=1e-5)
  # Sampling in every round hides nothing; privacy loss distributions agree.
  always = PrivacyRecord(
    strategies.identity(4),
    2.0,
    Participation(4, 4, 1),
    schedules.Amplification('poisson', 1.0),
  )
  assert always.mu is None
  assert always.true_positive_rates(rates) == pytest.approx(expected, rel=1e-3)
  assert (_single(0.0).true_positive_rates(rates) == 1).all()
  # Bounds by Renyi differential privacy are valid, if loose.
  loose = _single(1.0).true_positive_rates(rates, method='rdp')
  assert (loose >= expected).all() and (loose < 1).all()
  with pytest.raises(ValueError, match='must be in'):
    _single(1.0).true_positive_rates([0.1, 1.0])


def test_the_best_attack_under_sampling_by_brute_force():
  noise, probability, rates = 0.8, 0.2, np.array([0.001, 0.01, 0.1])
  found = _poisson(noise, 1, probability).true_positive_rates(rates)
  # An added client's update of length 1 is present with this probability.
  threshold = stats.norm.isf(rates)
  added = (1 - probability) * rates
  added += probability * stats.norm.sf(threshold - 1 / noise)
  # A removed client: values below a threshold indicate it.
  low = np.linspace(-8, 8, 400_001)
  false = (1 - probability) * stats.norm.cdf(low)
  false += probability * stats.norm.cdf(low - 1 / noise)
  removed = np.interp(rates, false, stats.norm.cdf(low))
  best = np.maximum(added, removed)
  assert (found >= best).all()
  assert found == pytest.approx(best, rel=2e-3)


def test_an_attack_gains_nothing_from_not_knowing_who_takes_part():
  # Known groups: two participations with noise 1; mu is the root of 2.
  record = PrivacyRecord(
    strategies.identity(4),
    1.0,
    Participation(4, 2, 2),
    schedules.Amplification('balls_in_bins', 0.5, 2),
  )
  rates = (0.001, 0.01, 0.1, 0.5, 0.9)
  plain = record.without_amplification().true_positive_rates(rates)
  assert plain == pytest.approx(
    stats.norm.cdf(stats.norm.ppf(rates) + 2**0.5), rel=1e-6
  )
  for method in ('exact', 'rdp'):
    found = record.true_positive_rates(rates, method=method)
    assert (found <= plain).all() and (found > rates).all()


@pytest.mark.parametrize('probability', [None, 0.02])
def test_a_profile_is_that_of_dp_accounting(probability):
  record = _poisson(1.0, 50, probability or 1.0)
  if probability is None:
    record = record.without_amplification()
  accountant = dp_accounting.pld.PLDAccountant()
  accountant.compose(record.event())
  told = record.summary(1e-5)
  epsilons = {
    one['delta']: one['epsilon'] for one in told['profile']['epsilons']
  }
  assert list(epsilons) == [1e-4, 1e-5, 1e-6, 1e-8, 1e-10]
  assert epsilons[1e-5] == told['epsilon']
  for delta, epsilon in epsilons.items():
    assert epsilon == pytest.approx(accountant.get_epsilon(delta), rel=2e-3)
  # Each of a client's 50 rounds has noise 1.
  plain = told['profile_without_amplification']
  assert plain['mu'] == pytest.approx(50**0.5)
  assert plain['epsilons'][1]['epsilon'] == pytest.approx(
    accounting.gaussian_epsilon(50**-0.5, 1e-5)
  )
  attack = plain['best_attack'][2]
  assert attack['false_positive_rate'] == 0.1
  assert attack['true_positive_rate'] == pytest.approx(
    stats.norm.cdf(stats.norm.ppf(0.1) + 50**0.5)
  )
  assert (plain == told['profile']) == (probability is None)


def test_summary_is_json():
  summary = _poisson().summary(1e-6, method='rdp')
  assert json.loads(json.dumps(summary)) == summary
  assert summary['amplification']['kind'] == 'poisson'
  assert summary['contract']['rounds'] == 200


def test_bad_arguments_are_rejected():
  class Strange:
    kind = 'strange'
    rounds = 1

  with pytest.raises(ValueError, match="'strange' cannot be accounted for"):
    PrivacyRecord(Strange(), 1.0, Participation(1, 1, 1))  # type: ignore
  with pytest.raises(ValueError, match='noise_multiplier'):
    _single(-1.0)
  with pytest.raises(ValueError, match='noise_multiplier'):
    _single(math.nan)
  with pytest.raises(ValueError, match='cannot serve'):
    PrivacyRecord(strategies.identity(1), 1.0, Participation(2, 1, 1))
  for delta in (0.0, 1.0, math.nan):
    with pytest.raises(ValueError, match='delta'):
      _single(1.0).epsilon(delta)
  with pytest.raises(ValueError, match='method'):
    _single(1.0).epsilon(1e-6, method='guess')
  for epsilon in (0.0, -1.0, math.nan):
    with pytest.raises(ValueError, match='target_epsilon'):
      accounting.calibrate(_single(1.0), target_epsilon=epsilon, delta=1e-6)
