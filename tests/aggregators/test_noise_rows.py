"""Rows of C^-1, against dense algebra and TensorFlow Privacy's trees."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_privacy as tfp

from si_federated.aggregators import noise_rows
from si_federated.privacy import binary_tree, strategies


def _dense(rows):
  """Returns rows as a matrix, shape `[rounds, rows of z]`."""
  rounds = len(rows.begins)
  width = rounds if rows.columns is None else int(rows.columns.max()) + 1
  matrix = np.zeros((rounds, width))
  for t, (begin, end) in enumerate(zip(rows.begins, rows.ends)):
    columns = np.arange(t + 1 - (end - begin), t + 1)
    if rows.columns is not None:
      columns = rows.columns[begin:end]
    matrix[t, columns] = rows.weights[begin:end]
  return matrix


@pytest.mark.parametrize(
  'strategy',
  [
    strategies.identity(9),
    strategies.Toeplitz(np.array([1.0, 0.5, 0.25]), 9),
    strategies.Blt.from_parameters(
      np.array([0.9, 0.4]), np.array([0.3, 0.1]), 9
    ),
    strategies.Matrix(
      np.tril(np.random.default_rng(0).uniform(0.2, 1, [9, 9])) + np.eye(9)
    ),
  ],
)
def test_rows_of_square_strategies_are_the_inverse(strategy):
  rows = _dense(noise_rows.for_strategy(strategy))
  np.testing.assert_allclose(
    rows @ strategy.matrix(), np.eye(9), rtol=0, atol=1e-6
  )


def test_rows_of_independent_noise_are_of_one_weight():
  rows = noise_rows.for_strategy(strategies.identity(5))
  np.testing.assert_array_equal(rows.ends - rows.begins, np.ones(5))


@pytest.mark.parametrize('decoder', ['plain', 'honaker'])
@pytest.mark.parametrize('rounds', [1, 2, 7, 8, 21])
def test_prefix_sums_of_a_tree_are_its_decoder(rounds, decoder, tree_decoder):
  strategy = strategies.Tree(rounds, decoder)
  rows = _dense(noise_rows.for_strategy(strategy))
  np.testing.assert_allclose(
    rows.cumsum(axis=0), tree_decoder(rounds, decoder), atol=1e-6
  )


@pytest.mark.parametrize('decoder', ['plain', 'honaker'])
def test_restarted_trees_leave_the_noise_of_their_root(decoder, tree_decoder):
  strategy = strategies.Tree(13, decoder, restart_every=6, complete=True)
  assert strategy.steps == (6, 6, 1)
  found = _dense(noise_rows.for_strategy(strategy)).cumsum(axis=0)
  # By hand: a tree of 6 is completed to one of 8, whose root is the last row.
  full = tree_decoder(8, decoder)
  block = np.concatenate([full[:5], full[7:]])
  nodes = block.shape[1]
  expected = np.zeros((13, 2 * nodes + 1))
  expected[:6, :nodes] = block
  expected[6:, :nodes] = full[7]
  expected[6:12, nodes : 2 * nodes] = block
  expected[12, nodes : 2 * nodes] = full[7]
  expected[12, -1] = 1
  np.testing.assert_allclose(found, expected, atol=1e-6)
  # Its noise agrees with the errors.
  np.testing.assert_allclose(
    (found**2).sum(axis=1),
    binary_tree.restarted_variances(strategy.steps, decoder, True),
    rtol=1e-5,
  )


def test_a_tree_without_completion_leaves_its_noise():
  strategy = strategies.Tree(7, 'honaker', restart_every=3)
  found = _dense(noise_rows.for_strategy(strategy)).cumsum(axis=0)
  np.testing.assert_allclose(
    (found**2).sum(axis=1),
    binary_tree.restarted_variances(strategy.steps, 'honaker', False),
    rtol=1e-5,
  )


@pytest.mark.parametrize('efficient', [False, True])
def test_variances_of_trees_are_those_of_tensorflow_privacy(efficient):
  rounds, size = 11, 30_000
  query = tfp.TreeResidualSumQuery.build_l2_gaussian_query(
    1.0, 1.0, tf.TensorSpec([size]), noise_seed=3, use_efficient=efficient
  )
  state = query.initial_global_state()
  released = []
  for _ in range(rounds):
    noise, state, _ = query.get_noised_result(tf.zeros([size]), state)
    released.append(noise.numpy())
  theirs = np.cov(np.array(released))
  rows = _dense(
    noise_rows.for_strategy(
      strategies.Tree(rounds, 'honaker' if efficient else 'plain')
    )
  )
  np.testing.assert_allclose(theirs, rows @ rows.T, atol=0.08)


_TREES = [
  (1, 0, False),
  (2, 0, False),
  (13, 0, False),
  (37, 0, True),
  (64, 0, False),
  (40, 13, True),
  (40, 13, False),
]


@pytest.mark.parametrize('decoder', ['plain', 'honaker'])
@pytest.mark.parametrize(('rounds', 'restart_every', 'complete'), _TREES)
def test_kept_estimates_make_the_same_rows(
  decoder, rounds, restart_every, complete
):
  strategy = strategies.Tree(rounds, decoder, restart_every, complete)
  expected = _dense(noise_rows.for_strategy(strategy))
  rows = noise_rows.for_tree(strategy)
  # Reading a level before anything was written to it would show.
  levels = np.full([rows.kept.shape[1], expected.shape[1]], np.nan)
  for t, estimate in enumerate(_padded(rows.fresh, expected.shape[1])):
    used = np.flatnonzero(rows.kept[t] != 0)
    estimate = estimate + rows.kept[t, used] @ levels[used]
    replaced = levels[rows.replaced[t] == 1]
    np.testing.assert_allclose(
      estimate - replaced.sum(axis=0), expected[t], rtol=0, atol=1e-6
    )
    levels[rows.replaced[t] == 1] = np.nan
    if rows.slots[t] >= 0:
      assert np.isnan(levels[rows.slots[t]]).all()
      levels[rows.slots[t]] = estimate


def _padded(rows, width):
  dense = _dense(rows)
  return np.pad(dense, [(0, 0), (0, width - dense.shape[1])])


@pytest.mark.parametrize(('rounds', 'restart_every', 'complete'), _TREES)
def test_no_row_of_z_is_made_twice_if_estimates_are_kept(
  rounds, restart_every, complete
):
  strategy = strategies.Tree(rounds, 'honaker', restart_every, complete)
  fresh = noise_rows.for_tree(strategy).fresh
  columns = np.asarray(fresh.columns)
  assert len(set(columns)) == len(columns)
  if not complete:
    # As often as the round's number can be halved, plus one.
    assert (fresh.ends - fresh.begins).tolist() == [
      (count & -count).bit_length()
      for size in strategy.steps
      for count in range(1, size + 1)
    ]


def test_rounds_of_a_plain_tree_make_one_row_of_z():
  strategy = strategies.Tree(40, 'plain', 13, True)
  fresh = noise_rows.for_tree(strategy).fresh
  np.testing.assert_array_equal(fresh.ends - fresh.begins, np.ones(40))


def test_levels_are_kept_only_while_needed():
  rows = noise_rows.for_tree(strategies.Tree(11))
  # By hand: rounds 1 + 2 make a node, 3 + 4 and so 1 to 4, ..., 9 + 10. The
  # nodes over 1 to 8, 9 to 10 and 11 are not replaced.
  assert rows.slots.tolist() == [0, 1, 0, 2, 0, 1, 0, -1, 0, -1, -1]


@pytest.mark.parametrize('make', [noise_rows.for_strategy, noise_rows.for_tree])
def test_the_full_decoder_is_refused(make):
  with pytest.raises(ValueError, match='cannot be streamed'):
    make(strategies.Tree(4, 'full'))
