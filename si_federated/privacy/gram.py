"""Optimal strategies of general shape, found through X = C^T C.

The diagonal of X fixes the sensitivity if X is zero at each pair of rounds that
a client can share. Then minimising trace(A^T A X^-1) is a convex problem
(Denisov et al. 2022, arXiv 2202.08312; Choquette-Choo et al. 2022, arXiv
2211.06530, and 2023, arXiv 2306.08153).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import numpy as np
from scipy import linalg

from si_federated.privacy import participation, toeplitz, workloads

_MEMORY = 6


def optimize_banded(
  contract: participation.Participation,
  *,
  bands: int,
  workload: Optional[np.ndarray] = None,
  max_iterations: int = 100,
) -> np.ndarray:
  """Returns the best banded strategy of equal column norms (BandMF).

  Differs from the paper: optimises over X, a convex problem, rather than over
  C; the optimum is the same, since the factor of a banded X has the same bands.

  Args:
    contract: The participation contract; `bands` may not exceed its
      `min_separation`, so that the columns of one client are orthogonal.
    bands: The number of non-zero diagonals.
    workload: A, shape `[n, n]`; prefix sums by default.
    max_iterations: The optimizer's limit; each takes a few n^3 operations.

  Returns:
    C, shape `[n, n]`, lower triangular, with columns of norm 1, so that a
    client's k participations give a sensitivity of sqrt(k).

  Raises:
    ValueError: If there are more bands than rounds between participations.
  """
  n = contract.rounds
  if not 1 <= bands <= contract.separation:
    raise ValueError(
      f'A banded strategy for [{contract}] takes 1 to {contract.separation} '
      f'bands; found {bands}.'
    )
  distance = np.subtract.outer(np.arange(n), np.arange(n))
  allowed = (distance > 0) & (distance < bands)
  matrix = _optimize(contract, bands, allowed, None, workload, max_iterations)
  return np.triu(matrix, 1 - bands)


def optimize_dense(
  contract: participation.Participation,
  *,
  workload: Optional[np.ndarray] = None,
  max_iterations: int = 100,
) -> np.ndarray:
  """Returns the optimal strategy for fixed cycles.

  X is zero at each pair of rounds that a client can share. This does not
  increase the error: W = X^-1 A^T A X^-1 has an equal diagonal v within a cycle
  and is positive semidefinite, so that |W_ij| <= v, the optimality condition
  for the zeros. The diagonal of X sums to 1 in each cycle.

  Under a contract that is not cyclic, only a bound on the sensitivity is known;
  see `sensitivity.of_matrix`.

  Args:
    contract: The participation contract.
    workload: A, shape `[n, n]`; prefix sums by default.
    max_iterations: The optimizer's limit; each takes a few n^3 operations.

  Returns:
    C, shape `[n, n]`, lower triangular, of sensitivity 1 for complete cycles.
  """
  n, b = contract.rounds, contract.min_separation
  k = contract.participations
  distance = np.subtract.outer(np.arange(n), np.arange(n))
  allowed = distance > 0
  cycles = None
  if k > 1:
    allowed &= distance % b != 0
  if k == -(-n // b):
    cycles = np.arange(n) % b
  return _optimize(
    contract, contract.separation, allowed, cycles, workload, max_iterations
  )


def _optimize(contract, bands, allowed, cycles, workload, max_iterations):
  """Optimizes X with entries only where `allowed`, from a Toeplitz start.

  Args:
    contract: The participation contract.
    bands: The number of bands of the start.
    allowed: Where X may differ from zero below the diagonal, shape `[n, n]`.
    cycles: The group of each round, shape `[n]`; the diagonal entries of a
      group have a fixed sum. None fixes the diagonal itself.
    workload: A, or None for prefix sums.
    max_iterations: The optimizer's limit.
  """
  n = contract.rounds
  prefix = workload is None
  if workload is None:
    workload = workloads.prefix_sum(n)
  workload = workloads.check_workload(workload, n)
  column = toeplitz.optimize_toeplitz(contract, bands=bands, workload=workload)
  start = toeplitz.matrix(column, n)
  start /= np.sqrt(np.einsum('ij,ij->j', start, start))
  start = start.T @ start
  if cycles is not None:
    sums = np.bincount(cycles)
    norms = np.sqrt(sums[cycles])
    start /= np.outer(norms, norms)
  rows, columns = np.nonzero(allowed)
  diagonal = np.arange(n)
  offset = start.diagonal().copy()

  def unpack(x):
    gram = np.zeros((n, n))
    gram[rows, columns] = x[n:]
    gram += gram.T
    gram[diagonal, diagonal] = offset + x[:n]
    return gram

  def loss(x):
    factor, failed = linalg.lapack.dpotrf(unpack(x), lower=1)
    if failed:
      return np.inf, x
    inverse, _ = linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    inverse = np.tril(inverse)
    inverse += np.tril(inverse, -1).T
    if prefix:
      errors = inverse.cumsum(axis=0)
    else:
      errors = linalg.blas.dtrmm(1.0, workload, inverse, lower=1)
    value = float(np.einsum('ij,ij->', workload, errors))
    # Only the lower triangle of errors^T errors is needed.
    slope = linalg.blas.dsyrk(1.0, errors.T, lower=1)
    on_diagonal = -slope.diagonal()
    if cycles is None:
      on_diagonal = np.zeros(n)
    else:
      means = np.bincount(cycles, on_diagonal) / np.bincount(cycles)
      on_diagonal = on_diagonal - means[cycles]
    gradient = np.append(on_diagonal, -2 * slope[rows, columns])
    return value, gradient

  first = np.append(np.zeros(n), start[rows, columns])
  gram = unpack(_minimize(loss, first, max_iterations))
  # Backwards, so that X = C^T C with C, not C^T, lower triangular.
  factor = linalg.cholesky(gram[::-1, ::-1], lower=True)
  return np.ascontiguousarray(np.tril(factor.T[::-1, ::-1]))


def _minimize(
  loss: Callable[[np.ndarray], tuple[float, np.ndarray]],
  start: np.ndarray,
  max_iterations: int,
  tolerance: float = 1e-5,
) -> np.ndarray:
  """Minimises by L-BFGS with a line search that stays inside a domain.

  SciPy's line search interpolates, and so does not support losses that are
  infinite outside the domain.

  Args:
    loss: Returns value and gradient; the value is infinite outside the domain.
    start: A point inside.
    max_iterations: The most steps.
    tolerance: The relative gain of three steps below which it stops.

  Returns:
    The best point found.
  """
  x = start
  value, gradient = loss(x)
  steps: list[tuple[np.ndarray, np.ndarray, float]] = []
  values = [value]
  for _ in range(max_iterations):
    direction = -_two_loops(gradient, steps)
    slope = direction @ gradient
    if slope >= 0:
      break
    rate = 1.0 if steps else 0.01 * abs(value / slope)
    while True:
      new_x = x + rate * direction
      new_value, new_gradient = loss(new_x)
      if new_value <= value + 1e-4 * rate * slope:
        break
      rate /= 2
      if rate < 1e-10:
        return x
    change, turn = new_x - x, new_gradient - gradient
    curvature = float(change @ turn)
    if curvature > 0:
      steps = [*steps[1 - _MEMORY :], (change, turn, curvature)]
    x, value, gradient = new_x, new_value, new_gradient
    values.append(value)
    if len(values) > 3 and values[-4] - value < tolerance * abs(value):
      break
  return x


def _two_loops(gradient, steps):
  """Multiplies by L-BFGS's approximation of the inverse Hessian."""
  result = gradient.copy()
  weights = []
  for change, turn, curvature in reversed(steps):
    weight = (change @ result) / curvature
    result -= weight * turn
    weights.append(weight)
  if steps:
    _, turn, curvature = steps[-1]
    result *= curvature / (turn @ turn)
  for (change, turn, curvature), weight in zip(steps, reversed(weights)):
    result += (weight - (turn @ result) / curvature) * change
  return result
