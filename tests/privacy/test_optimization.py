from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import optimize

from si_federated import privacy
from si_federated.privacy import (
  blt,
  comparison,
  gram,
  participation,
  strategies,
  toeplitz,
  workloads,
)

Participation = participation.Participation
_CONTRACT = Participation(48, 4, 12)


def _loss(strategy, contract, workload=None, objective='rms'):
  errors = strategy.errors(workload)
  error = errors.rms if objective == 'rms' else errors.maximum
  return error * strategy.sensitivity(contract).value


@pytest.mark.parametrize('objective', ['rms', 'max'])
def test_loss_is_error_times_sensitivity_and_its_gradient_is_right(objective):
  workload = workloads.momentum_sgd(48, momentum=0.5)
  column = np.sort(np.random.default_rng(0).random(48))[::-1]
  form = toeplitz.error_form(workload, objective)
  value, gradient = toeplitz.loss_and_gradient(column, _CONTRACT, form)
  strategy = strategies.Toeplitz(column, 48)
  if objective == 'rms':
    error = strategy.errors(workload).rms
  else:
    decoder = workloads.decoder(workload, strategy.matrix())
    error = np.linalg.norm(decoder[-1])
  expected = 2 * np.log(error * strategy.sensitivity(_CONTRACT).value)
  assert value == pytest.approx(expected)
  numeric = optimize.approx_fprime(
    column,
    lambda c: toeplitz.loss_and_gradient(c, _CONTRACT, form)[0],
    1e-7,
  )
  np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=1e-4)


def test_one_participation_has_the_square_root_as_its_optimum():
  contract = Participation(32, 1, 32)
  found = toeplitz.optimize_toeplitz(contract, objective='max')
  # Optimal for the maximum error (Fichtenberger et al. 2022) up to the edge.
  square_root = strategies.Toeplitz(toeplitz.square_root(32), 32)
  best = _loss(strategies.Toeplitz(found, 32), contract, objective='max')
  assert best <= _loss(square_root, contract, objective='max') * (1 + 1e-9)
  np.testing.assert_allclose(found, toeplitz.square_root(32), atol=2e-3)
  product = np.convolve(toeplitz.square_root(32), toeplitz.square_root(32))
  np.testing.assert_allclose(product[:32], 1)


def test_toeplitz_optimum_beats_its_neighbours():
  for bands in (4, 12):
    found = toeplitz.optimize_toeplitz(_CONTRACT, bands=bands)
    assert len(found) == bands and found[0] == 1
    best = _loss(strategies.Toeplitz(found, 48), _CONTRACT)
    random = np.random.default_rng(bands)
    for _ in range(20):
      other = found + 1e-3 * random.normal(size=bands)
      assert _loss(strategies.Toeplitz(other, 48), _CONTRACT) > best


def test_more_freedom_is_never_worse():
  cyclic = dataclasses.replace(_CONTRACT, cyclic=True)
  losses = [
    _loss(privacy.build('gaussian', _CONTRACT), _CONTRACT),
    _loss(privacy.build('banded_toeplitz', _CONTRACT, bands=3), _CONTRACT),
    _loss(privacy.build('banded_toeplitz', _CONTRACT), _CONTRACT),
    _loss(privacy.build('toeplitz', _CONTRACT), _CONTRACT),
    _loss(privacy.build('banded', _CONTRACT), _CONTRACT),
    _loss(privacy.build('dense', _CONTRACT), cyclic),
  ]
  assert (np.diff(losses) < 1e-6).all()


@pytest.mark.parametrize('objective', ['rms', 'max'])
def test_blt_comes_near_the_optimal_toeplitz(objective):
  optimum = _loss(
    privacy.build('toeplitz', _CONTRACT, objective=objective),
    _CONTRACT,
    objective=objective,
  )
  losses = [
    _loss(
      privacy.build('blt', _CONTRACT, num_buffers=d, objective=objective),
      _CONTRACT,
      objective=objective,
    )
    for d in (1, 2, 3, 4)
  ]
  assert all(np.diff(losses) < 1e-6)
  assert optimum <= losses[-1] * (1 + 1e-9)
  assert losses[-1] < 1.05 * optimum


def test_blt_of_one_participation_is_within_a_percent():
  contract = Participation(256, 1, 256)
  optimum = _loss(privacy.build('toeplitz', contract), contract)
  found = privacy.build('blt', contract, num_buffers=4)
  assert _loss(found, contract) < 1.01 * optimum
  assert isinstance(found, strategies.Blt)
  assert found.decay.shape == (4,)


_BLT_CONTRACTS = [
  # Three buffers meet the limit sum(scale / decay) < 1.
  (100, 4, 25),
  (201, 2, 106),
  # Buffers coincide.
  (20, 2, 10),
  (100, 1, 100),
  # Correlated noise has no benefit.
  (16, 16, 1),
  # More buffers end in a worse optimum.
  (191, 5, 21),
  (15, 4, 2),
  (3, 1, 2),
  (2, 2, 1),
  (1, 1, 1),
]


@pytest.mark.parametrize('contract', _BLT_CONTRACTS)
def test_any_contract_has_a_blt_with_this_many_buffers(contract):
  contract = Participation(*contract)
  losses = []
  for count in (1, 2, 3, 4, 5):
    found = privacy.build('blt', contract, num_buffers=count)
    assert isinstance(found, strategies.Blt)
    assert found.decay.shape == (count,)
    assert (np.diff(found.decay) < 0).all()
    # Decays that differ in their last digits only are equal.
    log_odds = np.log(found.decay / (1 - found.decay))
    assert (np.diff(log_odds) < -9e-4).all()
    losses.append(_loss(found, contract))
  assert (np.diff(losses) < 1e-5 * losses[0]).all()
  # By default the fewest within 0.1 % of the best.
  near = losses[: 1 + np.argmax(np.array(losses) <= 1.001 * min(losses[:4]))]
  chosen = privacy.build('blt', contract)
  assert isinstance(chosen, strategies.Blt)
  assert len(chosen.decay) == len(near)
  assert _loss(chosen, contract) == pytest.approx(near[-1], rel=1e-9)


def test_banded_optimum_keeps_its_constraints():
  matrix = gram.optimize_banded(_CONTRACT, bands=5)
  assert not np.triu(matrix, 1).any()
  assert not np.tril(matrix, -5).any()
  np.testing.assert_allclose(np.linalg.norm(matrix, axis=0), 1)
  found = strategies.Matrix(matrix, 'banded').sensitivity(_CONTRACT)
  assert found.value == pytest.approx(2)
  assert found.is_exact


def test_dense_optimum_meets_the_optimality_conditions():
  contract = Participation(24, 3, 8, cyclic=True)
  matrix = gram.optimize_dense(contract, max_iterations=500)
  found = strategies.Matrix(matrix).sensitivity(contract)
  assert found.value == pytest.approx(1)
  assert found.is_exact
  inverse = np.linalg.inv(matrix.T @ matrix)
  decoder = workloads.prefix_sum(24) @ inverse
  # The gradient is constant on the diagonal of a cycle, and zero off it.
  slope = decoder.T @ decoder
  scale = slope.diagonal().mean()
  for i in range(24):
    for j in range(24):
      if (i - j) % 8:
        assert abs(slope[i, j]) < 0.05 * scale
    assert slope[i, i] == pytest.approx(slope[i % 8, i % 8], abs=0.05 * scale)


def test_dense_optimum_beats_any_perturbation():
  contract = Participation(12, 1, 12)
  matrix = gram.optimize_dense(contract, max_iterations=500)
  best = _loss(strategies.Matrix(matrix), contract)
  random = np.random.default_rng(0)
  for _ in range(50):
    other = matrix + np.tril(0.01 * random.normal(size=(12, 12)))
    assert _loss(strategies.Matrix(other), contract) > best * (1 - 1e-6)


def test_workload_counts():
  workload = workloads.momentum_sgd(
    48, momentum=0.9, learning_rates=workloads.cool_down(48)
  )
  for mechanism in ('banded_toeplitz', 'blt', 'banded'):
    fitted = privacy.build(mechanism, _CONTRACT, workload=workload)
    plain = privacy.build(mechanism, _CONTRACT)
    assert _loss(fitted, _CONTRACT, workload) < _loss(
      plain, _CONTRACT, workload
    )


def test_compare_has_a_row_for_each_mechanism(tmp_path):
  rows = list(privacy.compare(_CONTRACT, cache=str(tmp_path)))
  assert tuple(row.mechanism for row in rows) == comparison.MECHANISMS
  by_name = {row.mechanism: row for row in rows}
  gaussian = by_name['gaussian']
  assert gaussian.max_error == pytest.approx(2 * 48**0.5)
  assert gaussian.rms_error == pytest.approx(2 * 24.5**0.5)
  for name in ('banded_toeplitz', 'blt', 'banded', 'dense'):
    assert by_name[name].rms_error < 0.8 * by_name['tree'].rms_error
  again = {
    row.mechanism: row
    for row in privacy.compare(_CONTRACT, cache=str(tmp_path))
  }
  for name, row in by_name.items():
    assert row.rms_error == pytest.approx(again[name].rms_error)
  table = privacy.format_rows(rows)
  assert table.count('\n') == len(rows) + 1
  assert '| gaussian | 2.000 | 13.856 | 9.899 |' in table


def test_bad_arguments_are_rejected():
  with pytest.raises(ValueError, match='unknown; known are gaussian'):
    privacy.build('blts', _CONTRACT)
  with pytest.raises(ValueError, match='takes 1 to 12 bands'):
    privacy.build('banded', _CONTRACT, bands=13)
  with pytest.raises(ValueError, match='1 to 48 bands'):
    privacy.build('banded_toeplitz', _CONTRACT, bands=49)
  with pytest.raises(ValueError, match='num_buffers'):
    blt.optimize_blt(_CONTRACT, num_buffers=0)
  with pytest.raises(ValueError, match='objective'):
    privacy.build('blt', _CONTRACT, objective='mean')
