from __future__ import annotations

import numpy as np
import pytest

from si_federated.privacy import binary_tree, participation, strategies

Participation = participation.Participation


def test_best_variances_are_those_of_least_squares():
  for rounds in (1, 2, 5, 8, 13):
    matrix = binary_tree.strategy_matrix([rounds])
    decoder = np.tril(np.ones((rounds, rounds))) @ np.linalg.pinv(matrix)
    np.testing.assert_allclose(
      binary_tree.prefix_variances(rounds, 'full'), (decoder**2).sum(axis=1)
    )


def test_variances_by_hand():
  # The number of ones in the binary prefixes 1, 10, 11, 100.
  np.testing.assert_allclose(
    binary_tree.prefix_variances(4, 'plain'), [1, 1, 2, 1]
  )
  # A root over two leaves: 1 / (2 - 1/2); over four: 1 / (2 - 1/4).
  np.testing.assert_allclose(
    binary_tree.prefix_variances(4, 'honaker'), [1, 2 / 3, 5 / 3, 4 / 7]
  )


def _estimate(height, end, kind, place):
  """Returns the weights of all nodes in the estimate of one."""
  weights = np.zeros(len(place))
  weights[place[height, end]] = 1.0
  if height and kind == 'honaker':
    below = _estimate(height - 1, end, kind, place)
    below += _estimate(height - 1, end - (1 << (height - 1)), kind, place)
    # Weights decrease with variance.
    share = (below @ below) / (1 + below @ below)
    weights = share * weights + (1 - share) * below
  return weights


@pytest.mark.parametrize('kind', ['plain', 'honaker'])
@pytest.mark.parametrize('complete', [False, True])
def test_variances_of_updates_by_brute_force(kind, complete):
  for size in range(1, 20):
    nodes = binary_tree.nodes(size, complete)
    place = {node: index for index, node in enumerate(nodes)}
    sums = [np.zeros(len(nodes))]
    for count in range(1, size + 1):
      if complete and count == size:
        top = (size - 1).bit_length()
        sums.append(_estimate(top, 1 << top, kind, place))
        continue
      sums.append(
        sum(
          _estimate(height, end, kind, place)
          for height, end in binary_tree.prefix_nodes(count)
        )
      )
    expected = (np.diff(sums, axis=0) ** 2).sum(axis=1)
    found, prefixes = strategies.Tree(
      size, kind, complete=complete
    ).noise_variances()
    np.testing.assert_allclose(found, expected, err_msg=str(size))
    np.testing.assert_allclose(prefixes, (np.array(sums[1:]) ** 2).sum(axis=1))
  # A restarted tree begins from zero.
  twice = strategies.Tree(2 * size, kind, size, complete).noise_variances()[0]
  np.testing.assert_allclose(twice, [*expected, *expected])


@pytest.fixture
def accountant():
  return pytest.importorskip(
    'tensorflow_privacy.privacy.analysis.tree_aggregation_accountant'
  )


def test_single_tree_agrees_with_tensorflow_privacy(accountant):
  for n in (1, 2, 3, 7, 8, 12, 19, 32):
    for k in (1, 2, 3, 7):
      for b in (1, 2, 3, 5, 9):
        # Their separation counts the rounds between: one less than ours.
        rho = accountant.compute_zcdp_single_tree(1.0, n, k, b - 1)
        square = binary_tree.square_sensitivity((n,), Participation(n, k, b))
        assert square == pytest.approx(2 * rho), (n, k, b)


def test_restarted_trees_agree_with_tensorflow_privacy(accountant):
  # A client takes part once in each tree.
  steps = (10, 40, 33)
  rho = accountant.compute_rdp_tree_restart(1.0, list(steps), 1)
  contract = Participation(83, 3, 1)
  # Without separation two rounds of one tree are worse than one of each.
  assert binary_tree.square_sensitivity(steps, contract) > 2 * rho
  steps = (40, 40, 40)
  rho = accountant.compute_rdp_tree_restart(1.0, list(steps), 1)
  square = binary_tree.square_sensitivity(steps, Participation(120, 3, 40))
  assert square == pytest.approx(2 * rho)


@pytest.mark.parametrize('complete', [False, True])
@pytest.mark.parametrize('steps', [(9,), (5, 4), (3, 3, 3), (8,), (1, 6, 2)])
def test_trees_against_brute_force(steps, complete):
  n = sum(steps)
  matrix = binary_tree.strategy_matrix(steps, complete=complete)
  masks = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1
  counts = masks.sum(axis=1)
  squares = ((matrix @ masks.T) ** 2).sum(axis=0)
  for b in range(1, n + 1):
    allowed = np.ones(len(masks), bool)
    for i in range(n):
      for j in range(i + 1, min(i + b, n)):
        allowed &= (masks[:, i] & masks[:, j]) == 0
    for k in range(1, n + 1):
      found = binary_tree.square_sensitivity(
        steps, Participation(n, k, b), complete
      )
      assert found == squares[allowed & (counts <= k)].max(), (b, k)


def test_completion_adds_the_path_to_the_root():
  plain = strategies.Tree(9, restart_every=0)
  complete = strategies.Tree(9, complete=True)
  once = Participation(9, 1, 1)
  # A leaf, three nodes above it; completed to 16 leaves, one more.
  assert plain.sensitivity(once).value == pytest.approx(2)
  assert complete.sensitivity(once).value == pytest.approx(5**0.5)


def test_completed_trees_leave_one_node_of_noise():
  kept = strategies.Tree(12, 'plain', restart_every=4, complete=True)
  # Each earlier tree leaves its root, with variance 1.
  np.testing.assert_allclose(
    kept.errors().rms ** 2, np.mean([1, 1, 2, 1, 2, 2, 3, 2, 3, 3, 4, 3])
  )
  seven = strategies.Tree(14, 'plain', restart_every=7)
  # Seven rounds are three nodes, whose noise stays.
  assert seven.errors().maximum ** 2 == pytest.approx(6)


def test_bad_arguments_are_rejected():
  with pytest.raises(ValueError, match='decoder'):
    binary_tree.prefix_variances(4, 'best')
  with pytest.raises(ValueError, match='do not make 9'):
    binary_tree.square_sensitivity((4, 4), Participation(9, 1, 1))
  with pytest.raises(ValueError, match='cannot serve'):
    strategies.Tree(8).sensitivity(Participation(9, 1, 1))
  with pytest.raises(ValueError, match='prefix sums only'):
    strategies.Tree(8).errors(np.eye(8))
  with pytest.raises(ValueError, match='at least 0'):
    strategies.Tree(8, restart_every=-1).matrix()
