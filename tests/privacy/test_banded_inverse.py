"""Strategies with a banded inverse, by hand and by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import optimize

from si_federated import privacy
from si_federated.privacy import (
  banded_inverse,
  participation,
  strategies,
  strategy_files,
  toeplitz,
  workloads,
)

Participation = participation.Participation
BandedInverse = strategies.BandedInverse


def _loss(inverse, contract, workload=None, objective='rms'):
  strategy = BandedInverse.from_inverse(inverse, contract.rounds)
  errors = strategy.errors(workload)
  error = errors.rms if objective == 'rms' else errors.maximum
  return error * strategy.sensitivity(contract).value


def test_the_square_root_by_hand():
  root = banded_inverse.square_root(5)
  # (1 - x)^(1/2).
  np.testing.assert_allclose(root, [1, -1 / 2, -1 / 8, -1 / 16, -5 / 128])
  # With momentum, (1 - x)^(1/2) (1 - x / 2)^(1/2).
  workload = workloads.momentum_sgd(9, momentum=0.5)
  np.testing.assert_allclose(
    banded_inverse.square_root(4, workload), [1, -3 / 4, -1 / 32, -3 / 128]
  )


def test_a_strategy_by_hand():
  strategy = BandedInverse.from_inverse([1.0, -0.5], 4)
  expected = [
    [1.0, 0, 0, 0],
    [1 / 2, 1, 0, 0],
    [1 / 4, 1 / 2, 1, 0],
    [1 / 8, 1 / 4, 1 / 2, 1],
  ]
  np.testing.assert_array_equal(strategy.matrix(), expected)
  # Rounds 0 and 2: the norm of (1, 1/2, 5/4, 5/8).
  found = strategy.sensitivity(Participation(4, 2, 2))
  assert found.is_exact
  assert found.value == pytest.approx(np.sqrt(1 + 1 / 4 + 25 / 16 + 25 / 64))
  # The noise of prefix sums is z_t + (z_0 + ... + z_t-1) / 2.
  errors = strategy.errors()
  assert errors.maximum == pytest.approx(np.sqrt(7 / 4))
  assert errors.rms == pytest.approx(np.sqrt((1 + 5 / 4 + 6 / 4 + 7 / 4) / 4))
  facts = strategy_files.facts(strategy)
  assert facts == {
    'kind': 'banded_inverse',
    'inverse': [1.0, -0.5],
    'rounds': 4,
  }


def _worst(matrix, contract):
  """Returns the largest norm of C u over all patterns of participation."""
  n, k = contract.rounds, contract.max_participations
  found = 0.0
  for size in range(1, k + 1):
    for rounds in itertools.combinations(range(n), size):
      if (np.diff(rounds) >= contract.min_separation).all():
        norm = np.linalg.norm(matrix[:, rounds].sum(axis=1))
        found = max(found, float(norm))
  return found


@pytest.mark.parametrize('mechanism', ['banded_inverse', 'inverse_square_root'])
def test_sensitivity_against_brute_force(mechanism):
  for n in (1, 2, 5, 9):
    for b, bands in itertools.product({1, 2, 4, n}, {1, 2, 3, n}):
      for k in range(1, -(-n // b) + 1):
        if b <= n and bands <= n:
          contract = Participation(n, k, b)
          strategy = privacy.build(mechanism, contract, bands=bands)
          found = strategy.sensitivity(contract)
          assert found.is_exact, contract
          assert found.value == pytest.approx(
            _worst(strategy.matrix(), contract), rel=1e-12
          )
          # C^-1 has no more diagonals.
          inverse = np.linalg.inv(strategy.matrix())
          np.testing.assert_allclose(np.tril(inverse, -bands), 0, atol=1e-12)


def test_a_column_that_grows_is_bounded():
  # C is 1, 0, 1/2, 0, 1/4: the first rounds are not the worst.
  strategy = BandedInverse.from_inverse([1.0, 0.0, -0.5], 5)
  contract = Participation(5, 2, 1)
  found = strategy.sensitivity(contract)
  assert not found.is_exact
  first = np.linalg.norm(strategy.matrix()[:, :2].sum(axis=1))
  assert first < _worst(strategy.matrix(), contract) <= found.value


@pytest.mark.parametrize('objective', ['rms', 'max'])
def test_loss_and_gradient(objective):
  contract = Participation(30, 3, 7)
  workload = workloads.momentum_sgd(30, momentum=0.5)
  form = toeplitz.error_form(workload, objective)
  inverse = banded_inverse.square_root(6)
  value, gradient = banded_inverse.loss_and_gradient(inverse, contract, form)
  if objective == 'rms':
    expected = 2 * np.log(_loss(inverse, contract, workload))
    assert value == pytest.approx(expected)
  numeric = optimize.approx_fprime(
    inverse,
    lambda q: banded_inverse.loss_and_gradient(q, contract, form)[0],
    1e-7,
  )
  np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
  'contract', [(48, 4, 12), (256, 1, 256), (191, 5, 21), (16, 16, 1), (2, 2, 1)]
)
@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_the_optimum_is_exact_and_better_with_more_bands(contract, momentum):
  contract = Participation(*contract)
  n = contract.rounds
  workload = None
  if momentum:
    workload = workloads.momentum_sgd(n, momentum=momentum)
  lower = privacy.build('toeplitz', contract, workload=workload)
  lowest = lower.errors(workload).rms * lower.sensitivity(contract).value
  losses = []
  for bands in (1, 2, 4, 8, 16, 64):
    bands = min(bands, n)
    found = banded_inverse.optimize_banded_inverse(
      contract, bands=bands, workload=workload
    )
    assert found.shape == (bands,) and found[0] == 1
    strategy = BandedInverse.from_inverse(found, n)
    assert strategy.sensitivity(contract).is_exact
    losses.append(_loss(found, contract, workload))
    root = banded_inverse.square_root(bands, workload)
    assert losses[-1] <= _loss(root, contract, workload) * (1 + 1e-9)
  assert (np.diff(losses) < 1e-5 * losses[0]).all()
  # Many bands come close to the best Toeplitz strategy.
  assert lowest * (1 - 1e-6) <= losses[-1] < 1.08 * lowest
  if contract.participations == 1:
    assert losses[-1] < 1.001 * lowest


def test_two_bands_are_the_best_lambda():
  """DP-lambda-CGD: a round cancels lambda times the previous noise."""
  contract = Participation(12, 4, 3)
  inverse = banded_inverse.optimize_banded_inverse(contract, bands=2)
  factors = np.linspace(0, 0.99, 100)
  losses = [_loss([1.0, -factor], contract) for factor in factors]
  assert 0 < np.argmin(losses) < 99
  assert -inverse[1] == pytest.approx(factors[np.argmin(losses)], abs=0.011)
  assert _loss(inverse, contract) <= min(losses)


def test_the_optimum_beats_its_neighbours():
  # Its optimum is not at the limit of strategies with exact sensitivity.
  contract = Participation(48, 4, 12)
  found = banded_inverse.optimize_banded_inverse(contract, bands=4)
  best = _loss(found, contract)
  random = np.random.default_rng(0)
  for _ in range(50):
    other = found + np.append(0, 1e-3 * random.normal(size=3))
    assert _loss(other, contract) > best


def test_bands_out_of_range_are_refused():
  for bands in (0, 9):
    with pytest.raises(ValueError, match='8 rounds take 1 to 8 bands'):
      banded_inverse.optimize_banded_inverse(
        Participation(8, 2, 4), bands=bands
      )
