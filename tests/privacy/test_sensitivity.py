from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import linalg

from si_federated.privacy import participation, sensitivity, strategies

Participation = participation.Participation


def _patterns(n, k, b, cyclic):
  """Returns all sets of at most k allowed rounds, as rows of 0 and 1."""
  masks = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1
  masks = masks[masks.sum(axis=1) <= k]
  for i, j in itertools.combinations(range(n), 2):
    apart = (j - i) % b == 0 if cyclic else j - i >= b
    if not apart:
      masks = masks[~((masks[:, i] == 1) & (masks[:, j] == 1))]
  return masks.astype(float)


def _brute_force(matrix, patterns):
  """Returns the largest norm of C u, for clients with equal updates."""
  return np.linalg.norm(matrix @ patterns.T, axis=0).max()


def _contracts(cyclic):
  for n in range(1, 13):
    for b in range(1, n + 1):
      for k in range(1, -(-n // b) + 1):
        yield Participation(n, k, b, cyclic)


def _random_lower(n, seed):
  return np.tril(np.random.default_rng(seed).random((n, n)))


@pytest.mark.parametrize('cyclic', [False, True])
def test_non_negative_matrices_against_brute_force(cyclic):
  exact = 0
  for contract in _contracts(cyclic):
    n, k, b = (
      contract.rounds,
      contract.max_participations,
      contract.min_separation,
    )
    patterns = _patterns(n, k, b, cyclic)
    for bands in {b, n}:
      matrix = np.triu(_random_lower(n, 100 * n + b), 1 - bands)
      found = sensitivity.of_matrix(matrix, contract)
      expected = _brute_force(matrix, patterns)
      assert found.value >= expected * (1 - 1e-12), contract
      if found.is_exact:
        exact += 1
        assert found.value == pytest.approx(expected, rel=1e-12), contract
      else:
        # A loose bound would be correct but useless.
        assert found.value < 1.35 * expected, contract
      must_be_exact = k == 1 or bands <= b or (cyclic and k == -(-n // b))
      assert found.is_exact == must_be_exact
  assert exact > 100


@pytest.mark.parametrize('cyclic', [False, True])
def test_decreasing_toeplitz_against_brute_force(cyclic):
  for contract in _contracts(cyclic):
    n = contract.rounds
    patterns = _patterns(
      n, contract.max_participations, contract.min_separation, cyclic
    )
    column = np.sort(np.random.default_rng(n).random(n))[::-1]
    found = sensitivity.of_toeplitz(column, contract)
    matrix = linalg.toeplitz(column, np.zeros(n))
    assert found.is_exact
    assert found.value == pytest.approx(_brute_force(matrix, patterns))


def test_other_toeplitz_does_not_count_as_decreasing():
  for contract in _contracts(False):
    n = contract.rounds
    patterns = _patterns(
      n, contract.max_participations, contract.min_separation, False
    )
    column = np.random.default_rng(n).normal(size=n)
    found = sensitivity.of_toeplitz(column, contract)
    matrix = linalg.toeplitz(column, np.zeros(n))
    assert found.value >= _brute_force(matrix, patterns) * (1 - 1e-12)


@pytest.mark.parametrize('cyclic', [False, True])
def test_matrices_of_any_sign_are_bounded_for_updates_of_any_sign(cyclic):
  for contract in _contracts(cyclic):
    n = contract.rounds
    if n > 8:
      continue
    matrix = np.tril(np.random.default_rng(n).normal(size=(n, n)))
    patterns = _patterns(
      n, contract.max_participations, contract.min_separation, cyclic
    )
    signs = 1.0 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    signed = (patterns[:, None] * signs).reshape(-1, n)
    found = sensitivity.of_matrix(matrix, contract)
    expected = _brute_force(matrix, signed)
    assert found.value >= expected * (1 - 1e-12)
    if found.is_exact:
      assert found.value == pytest.approx(expected)


def test_sensitivity_is_monotone():
  matrix = _random_lower(40, 0)
  for cyclic in (False, True):
    values = [
      sensitivity.of_matrix(matrix, Participation(40, k, 5, cyclic)).value
      for k in range(1, 8)
    ]
    assert (np.diff(values) > 0).all()
  values = [
    sensitivity.of_matrix(matrix, Participation(40, 4, b)).value
    for b in range(1, 14)
  ]
  assert (np.diff(values) <= 1e-12).all()
  values = [
    sensitivity.of_matrix(matrix, Participation(n, 4, 5)).value
    for n in range(1, 41)
  ]
  assert (np.diff(values) >= -1e-12).all()


def test_only_the_first_rounds_count():
  matrix = _random_lower(12, 1)
  contract = Participation(7, 2, 3)
  assert sensitivity.of_matrix(matrix, contract) == sensitivity.of_matrix(
    matrix[:7, :7], contract
  )


def test_heaviest_pattern_by_hand():
  weights = np.array([5.0, 4.0, 1.0, 6.0, 5.0])
  assert sensitivity.heaviest_pattern(weights, 2, 3) == 11
  assert sensitivity.heaviest_pattern(weights, 2, 4) == 10
  assert sensitivity.heaviest_pattern(weights, 9, 2) == 11
  np.testing.assert_array_equal(
    sensitivity.heaviest_pattern(np.stack([weights, weights[::-1]], 1), 3, 1),
    [16, 16],
  )


@pytest.mark.parametrize(
  'matrix',
  [np.ones((2, 3)), np.ones((3, 3)), np.eye(2), np.diag([1, np.nan, 1])],
)
def test_faulty_matrices_are_refused(matrix):
  with pytest.raises(ValueError, match='strategy'):
    sensitivity.of_matrix(matrix, Participation(3, 1, 1))


def _once_in_each_block(n, k, b, block):
  """Returns all sets of at most k rounds b apart, one in each block."""
  patterns = _patterns(n, k, b, False)
  sums = np.add.reduceat(patterns, np.arange(0, n, block), axis=1)
  return patterns[(sums <= 1).all(axis=1)]


@pytest.mark.parametrize('block', [2, 3, 4])
def test_once_in_each_block_against_brute_force(block):
  exact, narrower = 0, 0
  for n, k, b in itertools.product((5, 8, 9), (1, 2, 3), (1, 2)):
    contract = Participation(n, k, b, block=block)
    patterns = _once_in_each_block(n, k, b, block)
    column = np.linspace(1, 0.1, n) ** 2
    found: list[strategies.Strategy] = [
      strategies.Matrix(_random_lower(n, n) + np.eye(n)),
      strategies.Matrix(np.diag(np.arange(1.0, n + 1))),
      strategies.Toeplitz(column, n),
      strategies.identity(n),
    ]
    for every, complete in itertools.product((0, 2, block), (False, True)):
      found.append(strategies.Tree(n, restart_every=every, complete=complete))
    for strategy in found:
      result = strategy.sensitivity(contract)
      expected = _brute_force(strategy.matrix(), patterns)
      assert result.value >= expected * (1 - 1e-12), (contract, strategy)
      if result.is_exact:
        exact += 1
        assert result.value == pytest.approx(expected), (contract, strategy)
      wider = strategy.sensitivity(Participation(n, contract.participations, b))
      assert result.value <= wider.value * (1 + 1e-12)
      narrower += result.value < wider.value * 0.99
  assert exact > 50 and narrower > 10


def test_restarts_once_an_epoch_by_hand():
  # Four trees of 25 rounds, completed to 32: six nodes above a round.
  tree = strategies.Tree(100, restart_every=25, complete=True)
  once = tree.sensitivity(Participation(100, 4, 1, block=25))
  assert once.value == pytest.approx(24**0.5)
  assert once.is_exact
  # Of any four rounds, adjacent ones are the worst: 4 leaves, 2 nodes with two
  # of them, and 4 nodes above with all four.
  alone = tree.sensitivity(Participation(100, 4, 1))
  assert alone.value == pytest.approx((4 + 2 * 2**2 + 4 * 4**2) ** 0.5)
  assert alone.value == pytest.approx(8.72, abs=5e-3)
