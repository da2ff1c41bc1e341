"""Tree aggregation: nodes, variances of prefix sums and exact sensitivity.

Each node of a binary tree over the rounds releases the noisy sum of the
updates below it (Kairouz et al. 2021, arXiv 2103.00039).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import linalg

from si_federated.privacy import participation

_DECODERS = ('plain', 'honaker', 'full')
# A node's height, and the first round after it.
Node = tuple[int, int]


def nodes(rounds: int, complete: bool = False) -> list[Node]:
  """Returns the nodes of a tree whose sums are released.

  Args:
    rounds: The number of leaves.
    complete: Whether virtual rounds without updates follow, up to a power of
      two, which completes the tree before a restart.

  Returns:
    The height of each node and the first round after it, both from 0, in the
    order of completion; a node of height h covers 2^h rounds.
  """
  size = 1 << (rounds - 1).bit_length() if complete else rounds
  return [
    (height, end)
    for end in range(1, size + 1)
    # A node of height h ends after each multiple of 2^h rounds.
    for height in range((end & -end).bit_length())
  ]


def prefix_nodes(count: int) -> Iterator[Node]:
  """Yields the nodes whose sum is that of the first `count` rounds."""
  end = 0
  for height in reversed(range(count.bit_length())):
    if count >> height & 1:
      end += 1 << height
      yield height, end


def strategy_matrix(
  steps: Sequence[int], *, complete: bool = False
) -> np.ndarray:
  """Returns the strategy of consecutive trees, one after each restart.

  Args:
    steps: The number of rounds of each tree.
    complete: Whether all trees are completed, the last one included.

  Returns:
    C, with a row for each node and a column for each round.
  """
  blocks = []
  for size in steps:
    found = nodes(size, complete)
    block = np.zeros((len(found), size))
    for row, (height, end) in enumerate(found):
      block[row, end - (1 << height) : end] = 1
    blocks.append(block)
  return linalg.block_diag(*blocks)


def _node_sizes(steps: Sequence[int], complete: bool) -> np.ndarray:
  """Returns the number of rounds below each node of consecutive trees."""
  return np.array(
    [
      min(end, size) - min(end - (1 << height), size)
      for size in steps
      for height, end in nodes(size, complete)
    ],
    np.float64,
  )


def node_variance(height: int, kind: str) -> float:
  """Returns the variance of the estimate of a node's sum.

  Args:
    height: The height of the node.
    kind: `'plain'`, or `'honaker'`, which combines a node with all nodes below.
  """
  return 1 / (2 - 0.5**height) if kind == 'honaker' else 1.0


def prefix_variances(rounds: int, kind: str) -> np.ndarray:
  """Returns the variance of each prefix sum, for node noise of variance 1.

  Args:
    rounds: The number of leaves.
    kind: `'plain'`: each prefix is a sum of whole nodes; `'honaker'`: each
      node is also estimated from all nodes below it, as TensorFlow Privacy's
      efficient tree does; `'full'`: the best of all estimates, which needs
      later nodes and so cannot be streamed.

  Returns:
    Shape `[rounds]`.
  """
  if kind not in _DECODERS:
    raise ValueError(
      f'Tree decoder {kind!r} is unknown; known are {", ".join(_DECODERS)}.'
    )
  if kind == 'full':
    matrix = strategy_matrix([rounds])
    covariance = linalg.inv(matrix.T @ matrix)
    return covariance.cumsum(axis=0).cumsum(axis=1).diagonal().copy()
  return np.array(
    [
      sum(node_variance(height, kind) for height, _ in prefix_nodes(count))
      for count in range(1, rounds + 1)
    ]
  )


def tree_sizes(rounds: int, restart_every: int) -> tuple[int, ...]:
  """Returns the rounds of each tree when restarting at a fixed interval.

  Args:
    rounds: The number of rounds.
    restart_every: The rounds of a tree; 0 for a single tree.
  """
  if restart_every < 0:
    raise ValueError('restart_every must be at least 0; 0 never restarts.')
  if not restart_every or restart_every >= rounds:
    return (rounds,)
  whole, rest = divmod(rounds, restart_every)
  return (restart_every,) * whole + ((rest,) if rest else ())


def restarted_variances(
  steps: Sequence[int], kind: str, complete: bool
) -> np.ndarray:
  """Returns the variance of each prefix sum over consecutive trees.

  After a restart the tree's sum stays in the model, with its noise: the noise
  of one node if the tree was completed.

  Args:
    steps: The number of rounds of each tree.
    kind: As for `prefix_variances`; `'full'` takes a single tree.
    complete: Whether trees are completed before a restart.

  Returns:
    Shape `[sum(steps)]`.
  """
  if len(steps) > 1 and kind == 'full':
    raise ValueError('The full decoder is for a single tree.')
  carried, parts = 0.0, []
  for size in steps:
    variances = prefix_variances(size, kind).copy()
    if complete:
      # The last round releases the sum of the completed tree.
      variances[-1] = node_variance((size - 1).bit_length(), kind)
    parts.append(carried + variances)
    carried += variances[-1]
  return np.concatenate(parts)


def update_variances(
  steps: Sequence[int], kind: str, complete: bool
) -> np.ndarray:
  """Returns the variance of each round's update, the change in prefix sums.

  Args:
    steps: The number of rounds of each tree.
    kind: `'plain'` or `'honaker'`.
    complete: Whether trees are completed before a restart.

  Returns:
    Shape `[sum(steps)]`.
  """
  if kind not in ('plain', 'honaker'):
    raise ValueError(
      f'Tree decoder {kind!r} does not release updates round by round; plain '
      'and honaker do.'
    )
  heights = (max(steps) - 1).bit_length() + 1
  node = [node_variance(height, kind) for height in range(heights)]
  # The weight of a node's own noise; the nodes below it share the rest.
  own = [1.0] + [
    1.0 if kind == 'plain' else 2 * below / (1 + 2 * below)
    for below in node[:-1]
  ]
  # The variance of the update that completes a node, and its covariance with
  # the node's estimate. The update is that estimate minus those of the left
  # half and of the right half before this round.
  update, with_node = [1.0], [1.0]
  for w, below in zip(own[1:], node):
    update.append(w**2 * (1 + 2 * below) + update[-1] - 2 * w * with_node[-1])
    with_node.append(w**2 - 2 * w * (1 - w) * below + (1 - w) * with_node[-1])
  parts = []
  for size in steps:
    part = [update[(t & -t).bit_length() - 1] for t in range(1, size + 1)]
    top = (size - 1).bit_length()
    if complete and size < 1 << top:
      # The estimate of the completed tree replaces the previous sum.
      shared = sum(
        float(np.prod([1 - w for w in own[height + 1 : top + 1]]))
        * node[height]
        for height, _ in prefix_nodes(size - 1)
      )
      before = sum(node[height] for height, _ in prefix_nodes(size - 1))
      part[-1] = node[top] + before - 2 * shared
    parts.append(part)
  return np.concatenate(parts)


@functools.lru_cache(maxsize=256)
def square_sensitivity(
  steps: tuple[int, ...],
  contract: participation.Participation,
  complete: bool = False,
) -> float:
  """Returns the exact squared sensitivity of consecutive trees.

  This is the largest sum over nodes of the squared number of participations
  below them (appendix D of Kairouz et al. 2021), found by dynamic programming.
  A client's participation closes the next rounds to it. So the contribution of
  a part of the rounds depends on the number of its first rounds that are
  closed, and of the rounds after it that it may close.

  Args:
    steps: The number of rounds of each tree; they sum to the contract's
      rounds.
    contract: The participation contract; whether it is cyclic is ignored.
    complete: Whether trees are completed with virtual rounds.

  Raises:
    ValueError: If the trees do not have as many rounds as the contract.
  """
  if sum(steps) != contract.rounds or min(steps) < 1:
    raise ValueError(
      f'Trees over {list(steps)} rounds do not make {contract.rounds} rounds.'
    )
  if contract.participations == contract.rounds:
    # Taking part in all rounds is the worst case: no node's sum can shrink.
    sums = _node_sizes(steps, complete)
    return float(sums @ sums)
  program = _program(contract.participations, contract.min_separation)
  total = program.row(tuple(steps), complete, last=True)
  return float(max(table[0, -1] for table in total))


@functools.lru_cache(maxsize=2)
def _program(most: int, separation: int) -> _Program:
  """Returns a cached program, so that all rounds of a run share its tables."""
  return _Program(most, separation)


class _Program:
  """Tables of the best squared sums within consecutive rounds.

  A table is a list, over the number p of participations, of arrays `[b, b]`.
  Entry (a, e) is the best sum if the first a rounds are closed and at most e
  rounds after the end become closed; minus infinity if p participations do not
  fit. For speed, the first part keeps only the row a = 0, and the last part
  only the column of the largest e.
  """

  def __init__(self, most: int, separation: int):
    self._most = most
    self._b = separation
    self._full = functools.lru_cache(maxsize=None)(self._full_uncached)
    self._tree = functools.lru_cache(maxsize=16)(self._tree_uncached)
    self._before = functools.lru_cache(maxsize=16)(self.row)

  def row(self, steps: tuple[int, ...], complete: bool, *, last: bool):
    """Returns the table of the first trees.

    Args:
      steps: The rounds of each of them.
      complete: Whether they are completed with virtual rounds.
      last: Whether no trees follow.
    """
    table = self._tree(steps[-1], complete, len(steps) == 1, last)
    if len(steps) == 1:
      return table
    return self._join(self._before(steps[:-1], complete, last=False), table)

  def _tree_uncached(self, size: int, complete: bool, first: bool, last: bool):
    """Returns the table of one tree."""
    if complete:
      return self._part(size, 1 << (size - 1).bit_length(), first, last)
    heights = [height for height, _ in prefix_nodes(size)]
    end = len(heights) - 1
    return functools.reduce(
      self._join,
      [
        self._full(height, first and i == 0, last and i == end)
        for i, height in enumerate(heights)
      ],
    )

  def _part(self, size, capacity, first, last):
    """Returns the table of a complete subtree with `size` real rounds."""
    height = capacity.bit_length() - 1
    if size == capacity:
      return self._full(height, first, last)
    half = capacity // 2
    if size <= half:
      below = self._part(size, half, first, last)
    else:
      below = self._join(
        self._full(height - 1, first, False),
        self._part(size - half, half, False, last),
      )
    return self._with_root(below)

  def _full_uncached(self, height, first, last):
    if 1 << height <= self._b:
      # One participation at most, which is below a node of each height.
      return self._closed_form(height, first, last)
    left = self._full(height - 1, first, False)
    right = self._full(height - 1, False, last)
    return self._with_root(self._join(left, right))

  def _closed_form(self, height, first, last):
    starts, ends = np.ogrid[: self._b, : self._b]
    starts = starts[:1] if first else starts
    ends = ends[:, -1:] if last else ends
    room = (1 << height) + ends
    none = np.where(starts <= room, 0.0, -np.inf)
    one = np.where(starts + self._b <= room, height + 1.0, -np.inf)
    return [none, one]

  def _with_root(self, table):
    return [values + p**2 for p, values in enumerate(table)]

  def _join(self, left, right):
    """Returns the table of two consecutive parts."""
    most = min(self._most, len(left) + len(right) - 2)
    shape = (len(left[0]), right[0].shape[1])
    joined = [np.full(shape, -np.inf) for _ in range(most + 1)]
    for p, before in enumerate(left):
      for q, after in enumerate(right[: most + 1 - p]):
        np.maximum(joined[p + q], _max_plus(before, after), out=joined[p + q])
    while len(joined) > 1 and np.isneginf(joined[-1]).all():
      joined.pop()
    return joined


def _max_plus(left, right):
  """Returns the largest left[a, j] + right[j, e] over j."""
  if len(left) == 1:
    return (left.T + right).max(axis=0, keepdims=True)
  if right.shape[1] == 1:
    return (left + right.T).max(axis=1, keepdims=True)
  result = np.full((len(left), right.shape[1]), -np.inf)
  for j, after in enumerate(right):
    np.maximum(result, left[:, j, None] + after, out=result)
  return result
