"""L2 sensitivity of strategy matrices under a participation contract.

One client's clipped updates form a matrix G with a row for each round: zero if
the client is absent, else of norm at most 1, in units of the clip norm. The
sensitivity is the largest norm of `C G`. With X = C^T C and the set P of a
client's rounds, its square is at most the sum of |X_ij| over i and j in P, and
equal to it if X has no negative entry (Choquette-Choo et al. 2022, arXiv
2211.06530). This module finds the maximum over P.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import linalg

from si_federated.privacy import participation


@dataclasses.dataclass(frozen=True)
class Sensitivity:
  """A sensitivity relative to the clip norm.

  Attributes:
    value: The sensitivity, or an upper bound.
    is_exact: Whether it is attained.
    method: How it was found.
  """

  value: float
  is_exact: bool
  method: str


def of_matrix(
  matrix: np.ndarray, contract: participation.Participation
) -> Sensitivity:
  """Returns the sensitivity of a lower-triangular strategy.

  Takes O(n^2 k) time and one matrix product.

  Args:
    matrix: The strategy C, shape `[n, n]` with n at least `contract.rounds`;
      only the first `contract.rounds` rounds matter.
    contract: The participation contract.

  Returns:
    The sensitivity: exact for one participation, for at most `min_separation`
    bands, and for cycles if C^T C has no negative entry; else an upper bound.

  Raises:
    ValueError: If the matrix is not square, finite and lower triangular, or
      too small.
  """
  matrix = np.asarray(matrix, np.float64)
  n, k, b = contract.rounds, contract.participations, contract.min_separation
  if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
    raise ValueError(f'A strategy must be square; found shape {matrix.shape}.')
  if len(matrix) < n:
    raise ValueError(
      f'A strategy for {len(matrix)} rounds cannot serve {n} rounds.'
    )
  matrix = matrix[:n, :n]
  if not np.isfinite(matrix).all() or np.triu(matrix, 1).any():
    raise ValueError('A strategy must be finite and lower triangular.')
  squares = np.einsum('ij,ij->j', matrix, matrix)
  if k == 1:
    return _result(squares.max(), True, 'largest column norm')
  if not np.tril(matrix, -b).any():
    # Columns b or more apart have no row in common.
    exact = not contract.block or b == 1
    return _result(
      _heaviest(squares, contract), exact, 'orthogonal columns of a band'
    )
  gram = matrix.T @ matrix
  if contract.block:
    return _result(
      min(_row_bound(gram, contract), of_blocks(gram, contract)),
      False,
      'worst rows of C^T C, once in each block',
    )
  if contract.cyclic and k == -(-n // b):
    best = max(np.abs(gram[p::b, p::b]).sum() for p in range(b))
    # Rounding makes entries that should be zero slightly negative.
    lowest = min(gram[p::b, p::b].min() for p in range(b))
    exact = bool(lowest >= -1e-12 * squares.max())
    return _result(best, exact, 'all rounds of the worst cycle')
  return _result(_row_bound(gram, contract), False, 'worst rows of C^T C')


def of_toeplitz(
  coefficients: np.ndarray, contract: participation.Participation
) -> Sensitivity:
  """Returns the sensitivity of a Toeplitz strategy in O(n k).

  For coefficients that are non-negative and do not increase, the worst case
  is the first k rounds b apart (Dvijotham et al. 2024, arXiv 2404.16706, and
  McMahan et al. 2024, arXiv 2408.08868).

  Args:
    coefficients: The first column of C; zero after its end.
    contract: The participation contract.

  Returns:
    The sensitivity: exact under the condition above, else as in `of_matrix`.
  """
  n = contract.rounds
  column = np.zeros(n)
  given = np.asarray(coefficients, np.float64)[:n]
  column[: len(given)] = given
  if not np.isfinite(column).all():
    raise ValueError('Coefficients of a strategy must be finite.')
  if (column >= 0).all() and (np.diff(column) <= 0).all():
    total = first_rounds_image(column, contract)
    found = _result(total @ total, True, 'first rounds of decreasing Toeplitz')
    if (
      not contract.block or contract.participations == 1 or not column[1:].any()
    ):
      return found
    # The first rounds may share a block.
    more = of_matrix(linalg.toeplitz(column, np.zeros(n)), contract)
    found = dataclasses.replace(found, is_exact=False)
    return min(more, found, key=lambda one: one.value)
  return of_matrix(linalg.toeplitz(column, np.zeros(n)), contract)


def first_rounds_image(
  column: np.ndarray, contract: participation.Participation
) -> np.ndarray:
  """Returns C u, where u is 1 for the first k rounds that are b apart.

  Args:
    column: The first column of a Toeplitz C, shape `[n]`.
    contract: The participation contract.
  """
  total = np.zeros(contract.rounds)
  for m in range(contract.participations):
    shift = m * contract.min_separation
    total[shift:] += column[: contract.rounds - shift]
  return total


def heaviest_pattern(weights: np.ndarray, k: int, b: int) -> np.ndarray:
  """Returns the largest sum of at most k weights that are b or more apart.

  Args:
    weights: Non-negative, shape `[n]`, or `[n, m]` for m problems at once.
    k: The number of weights.
    b: The least distance between their indices.

  Returns:
    The sum, of shape `[]` or `[m]`.
  """
  best = np.maximum.accumulate(weights, axis=0)
  for _ in range(k - 1):
    more = weights.copy()
    more[b:] += best[: len(best) - b]
    best = np.maximum.accumulate(more, axis=0)
  return best[-1]


def _row_bound(gram, contract):
  """Bounds the largest sum of |X_ij| over a pattern.

  First finds the largest sum of each row i over a pattern that contains i, then
  the pattern with the largest sum of these maxima (the upper bound of
  Choquette-Choo et al. 2023, arXiv 2306.08153, appendix on sensitivity).
  """
  n, k, b = contract.rounds, contract.participations, contract.min_separation
  weights = np.abs(gram)
  diagonal = weights.diagonal().copy()
  distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
  weights[distance < b] = 0
  if contract.cyclic:
    weights[distance % b != 0] = 0
  rows = diagonal + heaviest_pattern(weights, k - 1, b)
  return _heaviest(rows, contract)


def of_blocks(gram: np.ndarray, contract: participation.Participation) -> float:
  """Bounds the squared sensitivity with one round in each block.

  Like `_row_bound`, for patterns of one round in each of k blocks.

  Args:
    gram: X = C^T C, shape `[rounds, rounds]`.
    contract: The participation contract, with a `block`.
  """
  n, k, b = contract.rounds, contract.participations, contract.block
  starts = np.arange(0, n, b)
  # Each row's largest entry in each block other than its own.
  largest = np.maximum.reduceat(np.abs(gram), starts, axis=1)
  largest[np.arange(n), np.arange(n) // b] = 0
  rows = gram.diagonal() + np.sort(largest)[:, ::-1][:, : k - 1].sum(axis=1)
  return float(np.sort(np.maximum.reduceat(rows, starts))[-k:].sum())


def _heaviest(weights, contract):
  """Returns the largest sum of weights over a pattern of the contract."""
  k, b = contract.participations, contract.min_separation
  if contract.block:
    starts = np.arange(0, len(weights), contract.block)
    best = np.sort(np.maximum.reduceat(weights, starts))[-k:].sum()
    return min(best, heaviest_pattern(weights, k, b))
  if contract.cyclic:
    return max(np.sort(weights[p::b])[-k:].sum() for p in range(b))
  return heaviest_pattern(weights, k, b)


def _result(square, exact, method):
  return Sensitivity(math.sqrt(float(square)), exact, method)
