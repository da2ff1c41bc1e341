"""Rows of C^-1: the weights of independent noise in each round's noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Optional

import numpy as np

from si_federated.privacy import binary_tree, strategies

# The height of a node of a tree and the first round past it.
_Node = tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseRows:
  """The weights w of z in the noise of round t, the sum of w_s z_s.

  Attributes:
    weights: Of all rows, which may share some, float32.
    begins: Where the weights of each round begin, shape `[rounds]`.
    ends: Where they end, shape `[rounds]`.
    columns: Which row of z each weight is of; if none, the weights of round t
      are of the rows of z up to t.
  """

  weights: np.ndarray
  begins: np.ndarray
  ends: np.ndarray
  columns: Optional[np.ndarray] = None

  def dense(self) -> np.ndarray:
    """Returns the rows as a matrix, shape `[rounds, rows of z]`."""
    rounds = len(self.begins)
    width = rounds if self.columns is None else int(self.columns.max()) + 1
    matrix = np.zeros((rounds, width))
    for t, (begin, end) in enumerate(zip(self.begins, self.ends)):
      if self.columns is None:
        columns = np.arange(t + 1 - (end - begin), t + 1)
      else:
        columns = self.columns[begin:end]
      matrix[t, columns] = self.weights[begin:end]
    return matrix


def for_strategy(strategy: strategies.Strategy) -> NoiseRows:
  """Returns the rows of a strategy.

  Args:
    strategy: Any.
  """
  if isinstance(strategy, strategies.Tree):
    return _tree_rows(strategy)
  rounds = np.arange(strategy.rounds)
  if isinstance(strategy, strategies.Toeplitz):
    inverse = strategy.inverse
    # All rows are the end of one: newest round last.
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
  """The noise of a tree's rounds, given estimates of nodes that are kept.

  There is a level for each height of nodes. What is kept of it is the estimate
  of the node of this height that the prefix sum so far is made up of, if any;
  else it is out of use.

  Attributes:
    fresh: The weights of the rows of z, each of a node that was in no round
      before, in the estimate of the node that the round adds to the prefix sum.
    kept: The weights of the levels in that estimate, shape `[rounds, levels]`.
    replaced: 1 for each level whose node the new one replaces in the prefix
      sum, else 0, shape `[rounds, levels]`: the round's noise is the new
      estimate less these.
    slots: The level that the new estimate is to be kept in, or -1 if it is in
      no later round's noise, shape `[rounds]`.
  """

  fresh: NoiseRows
  kept: np.ndarray
  replaced: np.ndarray
  slots: np.ndarray


def for_tree(strategy: strategies.Tree) -> TreeRows:
  """Returns the rows of a tree whose estimates are kept.

  A round that adds a node of height h needs fresh noise for nothing but that
  node and the nodes at its right edge, as the left child of each of those is
  kept: h + 1 rows, or one for the plain tree (algorithm of Honaker 2015, as in
  TensorFlow Privacy). The virtual rounds that complete a tree are all fresh.

  Args:
    strategy: Of decoder `'plain'` or `'honaker'`.

  Returns:
    As many levels as the heights of nodes that others replace; there may be
    none.

  Raises:
    ValueError: If the decoder can not be streamed.
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
  """Returns the rows of a tree: how noise of the prefix sums grows by rounds.

  Rows of z are the tree's nodes, in the order of `privacy.tree.nodes`.
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
  """Yields how the nodes that make up the prefix sum change in each round.

  A tree that is completed is so in its last round: what it then leaves in the
  model is the noise of its root.

  Yields:
    The row of z of each node of the tree, the nodes of the sum before, the one
    that is added to them, and those that it replaces.
  """
  if strategy.decoder not in ('plain', 'honaker'):
    raise ValueError(
      f'A tree of decoder {strategy.decoder!r} can not be streamed; use plain '
      'or honaker.'
    )
  first = 0
  for size in strategy.steps:
    nodes = binary_tree.nodes(size, strategy.complete)
    row_of = {node: first + i for i, node in enumerate(nodes)}
    capacity = nodes[-1][1]
    before: set[_Node] = set()
    for count in range(1, size + 1):
      after = set(_prefix_nodes(capacity if count == size else count))
      (added,) = after - before
      yield row_of, before, added, before - after
      before = after
    first += len(nodes)


def _from_dicts(rows: list[dict[int, float]]) -> NoiseRows:
  """Returns rows of the weights of columns."""
  ends = np.cumsum([len(row) for row in rows])
  return NoiseRows(
    np.array([row[i] for row in rows for i in sorted(row)], np.float32),
    np.append(0, ends[:-1]),
    ends,
    np.array([i for row in rows for i in sorted(row)]),
  )


def _prefix_nodes(count):
  """Yields height and end of the nodes that the first `count` rounds are."""
  end = 0
  for height in reversed(range(count.bit_length())):
    if count >> height & 1:
      end += 1 << height
      yield height, end


def _estimate(node, decoder, known=()):
  """Yields the nodes and weights that the noise of a node's estimate is of.

  Of a known node its estimate is meant, of others their own noise alone. The
  efficient tree (Honaker) estimates a node of height h by itself, of weight
  1 / (2 - 2^-h), and for the rest by its two children's estimates.
  """
  pending = [(node, 1.0)]
  while pending:
    (height, end), weight = pending.pop()
    if decoder == 'plain' or not height or (height, end) in known:
      yield (height, end), weight
      continue
    own = 1 / (2 - 0.5**height)
    yield (height, end), weight * own
    rest = weight * (1 - own)
    pending.append(((height - 1, end - (1 << (height - 1))), rest))
    pending.append(((height - 1, end), rest))
