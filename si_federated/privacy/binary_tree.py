"""Tree aggregation: the strategy, its decoders, and its exact sensitivity.

Each node of a binary tree over the rounds releases the noisy sum of the
updates below it (Kairouz et al. 2021, arXiv 2103.00039).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from scipy import linalg

from si_federated.privacy import participation

_DECODERS = ('plain', 'honaker', 'full')


def nodes(rounds: int, complete: bool = False) -> list[tuple[int, int]]:
  """Returns the nodes of a tree whose sums are released.

  Args:
    rounds: The number of leaves.
    complete: Whether virtual rounds without updates follow, up to a power of
      two, as tree completion has it before a restart.

  Returns:
    For each node, in the order in which they are complete, its height and
    the first round past it, both from 0 on; a node of height h is over 2^h
    rounds.
  """
  size = 1 << (rounds - 1).bit_length() if complete else rounds
  found = []
  for end in range(1, size + 1):
    height = 0
    while end % (1 << height) == 0:
      found.append((height, end))
      height += 1
      if 1 << height > end:
        break
  return found


def strategy_matrix(
  steps: Sequence[int], *, complete: bool = False
) -> np.ndarray:
  """Returns the strategy of a row of trees, one after each restart.

  Args:
    steps: The number of rounds of each tree.
    complete: Whether trees are completed before a restart; the last one is
      too.

  Returns:
    C of a row for each node and a column for each round.
  """
  blocks = []
  for size in steps:
    found = nodes(size, complete)
    block = np.zeros((len(found), size))
    for row, (height, end) in enumerate(found):
      block[row, end - (1 << height) : end] = 1
    blocks.append(block)
  return linalg.block_diag(*blocks)


def node_sizes(steps: Sequence[int], complete: bool) -> np.ndarray:
  """Returns the number of rounds below each node of a row of trees."""
  return np.array(
    [
      min(end, size) - min(end - (1 << height), size)
      for size in steps
      for height, end in nodes(size, complete)
    ],
    np.float64,
  )


def decoder(rounds: int, kind: str) -> np.ndarray:
  """Returns B of one tree, with B C the prefix sums.

  Args:
    rounds: The number of leaves.
    kind: `'plain'`: each prefix is a sum of whole nodes; `'honaker'`: each
      node is estimated from all nodes below it too, as TensorFlow Privacy's
      efficient tree does; `'full'`: the best of all estimates, which needs
      later nodes and so is no streaming mechanism.

  Returns:
    Shape `[rounds, nodes]`, for the nodes of `nodes(rounds)`.
  """
  _check_decoder(kind)
  matrix = strategy_matrix([rounds])
  if kind == 'full':
    solved = linalg.solve(matrix.T @ matrix, matrix.T, assume_a='pos')
    return solved.cumsum(axis=0)
  found = nodes(rounds)
  row_of = {node: row for row, node in enumerate(found)}
  estimates = np.zeros((len(found), len(found)))
  for row, (height, end) in enumerate(found):
    estimates[row, row] = 1
    if kind == 'honaker' and height:
      # The node's own noise has variance 1, that of its children together
      # 2 / (2 - 2^-(height - 1)): they are weighed by the inverse.
      weight = 1 / (2 - 0.5**height)
      below = [
        row_of[height - 1, end - (1 << (height - 1))],
        row_of[height - 1, end],
      ]
      estimates[row] *= weight
      estimates[row] += (1 - weight) * estimates[below].sum(axis=0)
  decoded = np.zeros((rounds, len(found)))
  for count in range(1, rounds + 1):
    for height, end in _prefix_nodes(count):
      decoded[count - 1] += estimates[row_of[height, end]]
  return decoded


def prefix_variances(rounds: int, kind: str) -> np.ndarray:
  """Returns the variance of each prefix sum, for node noise of variance 1.

  Args:
    rounds: The number of leaves.
    kind: As for `decoder`.

  Returns:
    Shape `[rounds]`.
  """
  _check_decoder(kind)
  if kind == 'full':
    matrix = strategy_matrix([rounds])
    covariance = linalg.inv(matrix.T @ matrix)
    return covariance.cumsum(axis=0).cumsum(axis=1).diagonal().copy()
  # A node of height h estimated from below has variance 1 / (2 - 2^-h).
  return np.array(
    [
      sum(
        1 / (2 - 0.5**height) if kind == 'honaker' else 1.0
        for height, _ in _prefix_nodes(count)
      )
      for count in range(1, rounds + 1)
    ]
  )


def _prefix_nodes(count):
  """Yields the nodes whose sum is that of the first `count` rounds."""
  end = 0
  for height in reversed(range(count.bit_length())):
    if count >> height & 1:
      end += 1 << height
      yield height, end


def _check_decoder(kind):
  if kind not in _DECODERS:
    raise ValueError(
      f'Tree decoder {kind!r} is unknown; known are {", ".join(_DECODERS)}.'
    )


@functools.lru_cache(maxsize=256)
def square_sensitivity(
  steps: tuple[int, ...],
  contract: participation.Participation,
  complete: bool = False,
) -> float:
  """Returns the exact squared sensitivity of a row of trees.

  The largest sum over nodes of the squared number of participations below
  (appendix D of Kairouz et al. 2021), by dynamic programming over nodes.
  What a part of the rounds can contribute depends on how many rounds at its
  start are closed to the client by an earlier participation, and how many
  rounds past its end the client may close.

  Args:
    steps: The number of rounds of each tree; they sum to the contract's
      rounds.
    contract: The participation contract; being cyclic is not made use of.
    complete: Whether trees are completed with virtual rounds.

  Raises:
    ValueError: If the trees are not over as many rounds as the contract.
  """
  if sum(steps) != contract.rounds or min(steps) < 1:
    raise ValueError(
      f'Trees over {list(steps)} rounds do not make {contract.rounds} rounds.'
    )
  if contract.participations == contract.rounds:
    # Taking part in all rounds is the worst, as each node's sum only grows.
    sums = node_sizes(steps, complete)
    return float(sums @ sums)
  program = _program(contract.participations, contract.min_separation)
  total = program.row(tuple(steps), complete, last=True)
  return float(max(table[0, -1] for table in total))


@functools.lru_cache(maxsize=2)
def _program(most: int, separation: int) -> _Program:
  """Returns a program, the same one while a run goes on round by round."""
  return _Program(most, separation)


class _Program:
  """Tables of the best squared sums within consecutive rounds.

  A table is a list over the number of participations p of arrays `[b, b]`:
  entry (a, e) is for the first a rounds being closed, and at most e rounds
  past the end becoming closed; minus infinity where p do not fit. Of the first
  part only the row of a = 0 is kept, and of the last only the column of the
  largest e, which is what makes it fast.
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
      last: Whether there are no others.
    """
    table = self._tree(steps[-1], complete, len(steps) == 1, last)
    if len(steps) == 1:
      return table
    return self.join(self._before(steps[:-1], complete, last=False), table)

  def _tree_uncached(self, size: int, complete: bool, first: bool, last: bool):
    """Returns the table of one tree."""
    if complete:
      return self._part(size, 1 << (size - 1).bit_length(), first, last)
    total = None
    parts = list(_prefix_nodes(size))
    for i, (height, _) in enumerate(parts):
      table = self._full(height, first and i == 0, last and i == len(parts) - 1)
      total = table if total is None else self.join(total, table)
    return total

  def _part(self, size, capacity, first, last):
    """A complete subtree of which only the first rounds are real."""
    height = capacity.bit_length() - 1
    if size == capacity:
      return self._full(height, first, last)
    half = capacity // 2
    if size <= half:
      below = self._part(size, half, first, last)
    else:
      below = self.join(
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
    return self._with_root(self.join(left, right))

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

  def join(self, left, right):
    """Returns the table of two parts in a row."""
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


def check_steps(rounds: int, restart_every: int) -> tuple[int, ...]:
  """Returns the rounds of each tree when restarting at a fixed interval.

  Args:
    rounds: The number of rounds.
    restart_every: The rounds of a tree; 0 for a single tree.
  """
  if restart_every < 0:
    raise ValueError('restart_every is not negative; 0 never restarts.')
  if not restart_every or restart_every >= rounds:
    return (rounds,)
  whole, rest = divmod(rounds, restart_every)
  return (restart_every,) * whole + ((rest,) if rest else ())


def restarted_variances(
  steps: Sequence[int], kind: str, complete: bool
) -> np.ndarray:
  """Returns the variance of each prefix sum over a row of trees.

  After a restart the sum of the tree stays in the model, with its noise: one
  node's if the tree was completed.

  Args:
    steps: The number of rounds of each tree.
    kind: As for `decoder`; `'full'` is not for trees in a row.
    complete: Whether trees are completed before a restart.

  Returns:
    Shape `[sum(steps)]`.
  """
  if len(steps) > 1 and kind == 'full':
    raise ValueError('The full decoder is for a single tree.')
  carried, parts = 0.0, []
  for size in steps:
    variances = prefix_variances(size, kind)
    parts.append(carried + variances)
    if complete:
      height = (size - 1).bit_length()
      carried += 1 / (2 - 0.5**height) if kind == 'honaker' else 1.0
    else:
      carried += variances[-1]
  return np.concatenate(parts)
