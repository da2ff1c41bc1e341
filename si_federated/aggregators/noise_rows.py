"""Rows of C^-1: the weights of independent noise in each round's noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Optional

import numpy as np

from si_federated.privacy import binary_tree, strategies

_Node = binary_tree.Node


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseRows:
  """The weights w of z in the noise of each round, the sum of w_s z_s.

  Attributes:
    weights: The weights of all rounds, float32; rounds may share some.
    begins: The index of each round's first weight, shape `[rounds]`.
    ends: The index after each round's last weight, shape `[rounds]`.
    columns: The row of z that each weight applies to; if None, the weights of
      round t apply to the last rows of z up to t.
  """

  weights: np.ndarray
  begins: np.ndarray
  ends: np.ndarray
  columns: Optional[np.ndarray] = None


def for_strategy(strategy: strategies.Strategy) -> NoiseRows:
  """Returns the rows of a strategy.

  Args:
    strategy: Any strategy.
  """
  if isinstance(strategy, strategies.Tree):
    return _tree_rows(strategy)
  rounds = np.arange(strategy.rounds)
  if isinstance(strategy, strategies.Toeplitz):
    inverse = strategy.inverse
    # All rows are suffixes of one, with the newest round last.
    width = int(np.flatnonzero(inverse)[-1]) + 1
    return NoiseRows(
      inverse[width - 1 :: -1].astype(np.float32),
      np.maximum(width - 1 - rounds, 0),
      np.full(len(rounds), width),
    )
  inverse = np.linalg.inv(strategy.matrix())
  ends = np.cumsum(rounds + 1)
  return NoiseRows(
    inverse[np.tril_indices(len(rounds))].astype(np.float32),
    ends - rounds - 1,
    ends,
  )


@dataclasses.dataclass(frozen=True, eq=False)
class TreeRows:
  """The noise of a tree's rounds, given stored estimates of nodes.

  Each height of nodes has a level. It stores the estimate of the node of this
  height in the current prefix sum, if there is one.

  Attributes:
    fresh: The weights of rows of z, one for each new node, in the estimate of
      the node that the round adds to the prefix sum.
    kept: The weights of the levels in that estimate, shape `[rounds, levels]`.
    replaced: 1 for each level whose node the new one replaces in the prefix
      sum, else 0, shape `[rounds, levels]`: the round's noise is the new
      estimate minus these.
    slots: The level that stores the new estimate, or -1 if no later round needs
      it, shape `[rounds]`.
  """

  fresh: NoiseRows
  kept: np.ndarray
  replaced: np.ndarray
  slots: np.ndarray


def for_tree(strategy: strategies.Tree) -> TreeRows:
  """Returns the rows of a tree with stored estimates.

  A round that adds a node of height h needs fresh noise only for that node and
  the nodes on its right edge, since the left children of those are stored:
  h + 1 rows, or one for the plain tree (algorithm of Honaker 2015, as in
  TensorFlow Privacy). All noise of the virtual rounds that complete a tree is
  fresh.

  Args:
    strategy: A tree with the decoder `'plain'` or `'honaker'`.

  Returns:
    Rows with a level for each height of nodes that others replace, possibly
    none.

  Raises:
    ValueError: If the decoder cannot be streamed.
  """
  heights = max(strategy.steps).bit_length() + 1
  kept = np.zeros((strategy.rounds, heights), np.float32)
  replaced = np.zeros_like(kept)
  slots = np.full(strategy.rounds, -1)
  fresh: list[dict[int, float]] = []
  added_in: dict[_Node, int] = {}
  for t, (row_of, before, added, removed) in enumerate(_tree_rounds(strategy)):
    row = {}
    for below, weight in _estimate(added, strategy.decoder, before):
      if below in before:
        kept[t, below[0]] = weight
      else:
        row[row_of[below]] = weight
    fresh.append(row)
    for node in removed:
      replaced[t, node[0]] = 1
      slots[added_in[node]] = node[0]
    added_in[added] = t
  levels = int(slots.max()) + 1
  return TreeRows(
    _from_dicts(fresh), kept[:, :levels], replaced[:, :levels], slots
  )


def _tree_rows(strategy: strategies.Tree) -> NoiseRows:
  """Returns the rows of a tree: the increments of the prefix sums' noise.

  Rows of z are the tree's nodes, in the order of `binary_tree.nodes`.
  """
  rows = []
  for row_of, _, added, removed in _tree_rounds(strategy):
    row: dict[int, float] = {}
    for sign, changed in ((1, [added]), (-1, removed)):
      for node in changed:
        for below, weight in _estimate(node, strategy.decoder):
          column = row_of[below]
          row[column] = row.get(column, 0.0) + sign * weight
    rows.append(row)
  return _from_dicts(rows)


def _tree_rounds(
  strategy: strategies.Tree,
) -> Iterator[tuple[dict[_Node, int], set[_Node], _Node, set[_Node]]]:
  """Yields how the nodes in the prefix sum change in each round.

  A tree is completed in its last round, and then leaves the noise of its root
  in the model.

  Yields:
    The row of z of each node of the tree, the nodes of the previous sum, the
    node that is added to them, and those that it replaces.
  """
  if strategy.decoder not in ('plain', 'honaker'):
    raise ValueError(
      f'A tree of decoder {strategy.decoder!r} cannot be streamed; use plain '
      'or honaker.'
    )
  first = 0
  for size in strategy.steps:
    nodes = binary_tree.nodes(size, strategy.complete)
    row_of = {node: first + i for i, node in enumerate(nodes)}
    capacity = nodes[-1][1]
    before: set[_Node] = set()
    for count in range(1, size + 1):
      after = set(
        binary_tree.prefix_nodes(capacity if count == size else count)
      )
      (added,) = after - before
      yield row_of, before, added, before - after
      before = after
    first += len(nodes)


def _from_dicts(rows: list[dict[int, float]]) -> NoiseRows:
  """Returns rows from each round's weights by column."""
  ends = np.cumsum([len(row) for row in rows])
  return NoiseRows(
    np.array([row[i] for row in rows for i in sorted(row)], np.float32),
    np.append(0, ends[:-1]),
    ends,
    np.array([i for row in rows for i in sorted(row)]),
  )


def _estimate(node, decoder, known=()):
  """Yields the nodes, with weights, that make up the noise of an estimate.

  A known node contributes its estimate, others their own noise alone. The
  efficient tree (Honaker) estimates a node of height h by itself, with weight
  1 / (2 - 2^-h), and otherwise by its two children's estimates.
  """
  pending = [(node, 1.0)]
  while pending:
    (height, end), weight = pending.pop()
    if decoder == 'plain' or not height or (height, end) in known:
      yield (height, end), weight
      continue
    own = binary_tree.node_variance(height, decoder)
    yield (height, end), weight * own
    rest = weight * (1 - own)
    pending.append(((height - 1, end - (1 << (height - 1))), rest))
    pending.append(((height - 1, end), rest))
