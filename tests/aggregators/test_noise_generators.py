"""Streamed noise of every strategy, against dense algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from si_federated.aggregators import keyed_noise, noise_generators
from si_federated.privacy import binary_tree, strategies

_SHAPES = [tf.TensorShape(shape) for shape in ([3, 2], [], [5])]
_ROUNDS = 64
_RNG = np.random.default_rng(0)
_BANDED = np.tril(np.triu(_RNG.uniform(0.1, 0.5, [_ROUNDS, _ROUNDS]), -19))
_BANDED += np.eye(_ROUNDS)
_STRATEGIES: dict[str, Any] = {
  'identity': strategies.identity(_ROUNDS),
  'toeplitz': strategies.Toeplitz(1 / np.arange(1.0, 13), _ROUNDS),
  'blt': strategies.Blt.from_parameters(
    np.array([0.99, 0.9, 0.5, 0.1]), np.array([0.2, 0.2, 0.1, 0.02]), _ROUNDS
  ),
  'banded': strategies.Matrix(_BANDED, 'banded'),
  'banded_inverse': strategies.BandedInverse.from_inverse(
    [1.0, -0.5, -0.25, -0.125], _ROUNDS
  ),
  'dense': strategies.Matrix(
    np.tril(_RNG.uniform(0, 0.1, [_ROUNDS, _ROUNDS])) + np.eye(_ROUNDS)
  ),
  'tree': strategies.Tree(_ROUNDS),
  'plain_tree': strategies.Tree(_ROUNDS, 'plain'),
  'restarted_tree': strategies.Tree(_ROUNDS, restart_every=13, complete=True),
  'completed_tree': strategies.Tree(37, 'plain', complete=True),
  'trees_of_one_round': strategies.Tree(3, restart_every=1, complete=True),
}


def _stream(generator, rounds):
  """Returns noise, from round 7 on by a new graph with the saved buffers."""
  seed = keyed_noise.initial_seed(11)
  buffers = [tf.zeros([generator.num_buffers, *shape]) for shape in _SHAPES]
  found = []
  for t in range(rounds):
    if t in (0, 7):
      step = tf.function(
        lambda t, buffers: generator(seed, t, buffers, _SHAPES)
      )
      buffers = [tf.constant(part.numpy()) for part in buffers]
    noise, buffers = step(tf.constant(t, tf.int64), buffers)
    found.append(np.concatenate([np.ravel(part) for part in noise]))
  return np.array(found, np.float64)


def _standard_normals(rows):
  seed = keyed_noise.initial_seed(11)
  return np.array(
    [
      np.concatenate(
        [
          np.ravel(part)
          for part in keyed_noise.standard_normals(seed, row, _SHAPES)
        ]
      )
      for row in range(rows)
    ],
    np.float64,
  )


def _tree_noise(tree, tree_decoder):
  """Returns the noise that each round of a row of trees adds."""
  sums, first, rest = [], 0, np.zeros(12)
  for size in tree.steps:
    nodes = binary_tree.nodes(size, tree.complete)
    decoder = tree_decoder(nodes[-1][1], tree.decoder)
    # A tree is completed in its last round.
    decoder = np.concatenate([decoder[: size - 1], decoder[-1:]])
    z = _standard_normals(first + len(nodes))[first:]
    sums.append(rest + decoder @ z)
    rest = sums[-1][-1]
    first += len(nodes)
  return np.diff(np.concatenate(sums), axis=0, prepend=0)


@pytest.mark.parametrize(
  ('strategy', 'keep_rows', 'num_buffers'),
  [
    ('identity', None, 0),
    ('toeplitz', None, 11),
    ('toeplitz', False, 0),
    ('blt', None, 4),
    ('blt', False, 0),
    ('banded', None, 0),
    ('banded', True, 19),
    ('banded_inverse', None, 0),
    ('banded_inverse', True, 63),
    ('dense', None, 0),
    # Estimates of nodes of 1 to 32 rounds; that of all 64 is never replaced.
    ('tree', None, 6),
    ('tree', False, 0),
    ('plain_tree', None, 6),
    ('restarted_tree', None, 4),
    ('completed_tree', None, 6),
    ('trees_of_one_round', None, 0),
  ],
)
def test_streamed_noise_is_the_dense_product(
  strategy, keep_rows, num_buffers, tree_decoder
):
  kind = _STRATEGIES[strategy]
  generator = noise_generators.for_strategy(kind, keep_rows=keep_rows)
  assert generator.num_buffers == num_buffers
  if kind.kind == 'tree':
    expected = _tree_noise(kind, tree_decoder)
  else:
    expected = np.linalg.solve(kind.matrix(), _standard_normals(_ROUNDS))
  np.testing.assert_allclose(
    _stream(generator, kind.rounds), expected, rtol=0, atol=1e-6
  )
