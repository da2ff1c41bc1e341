"""Strategies whose inverse is banded Toeplitz: C^-1 has a few diagonals.

Their noise is a short convolution of independent noise, whose rows can be
regenerated when needed, so no state of the model's size is stored. C itself has
no zero diagonal.

Source: "Back to square roots" (arXiv 2505.12128), which calls the truncated
inverse square root BISR and the optimised one BandInvMF. Written from memory of
the definitions, without the paper at hand.
"""

from __future__ import annotations

from typing import Optional

import numpy as np
from scipy import optimize, signal

from si_federated.privacy import participation, toeplitz, workloads

DEFAULT_BANDS = 16
# The slack of the constraints, so that rounding does not violate them.
_MARGIN = 1e-10


def square_root(
  bands: int, workload: Optional[np.ndarray] = None
) -> np.ndarray:
  """Returns the leading coefficients of the inverse square root of a workload.

  For prefix sums these are of (1 - x)^(1/2): 1, -1/2, -1/8, -1/16, -5/128.

  Args:
    bands: The number of coefficients.
    workload: A, shape `[n, n]`, with constant diagonals; prefix sums by
      default.

  Returns:
    The first column of A^(-1/2), shape `[bands]`.

  Raises:
    ValueError: If a diagonal of the workload is not constant.
  """
  column = np.ones(bands)
  if workload is not None:
    column = workload[:bands, 0]
    if not np.allclose(
      workload, toeplitz.matrix(workload[:, 0], len(workload))
    ):
      raise ValueError(
        'The square root needs a workload with constant diagonals, which a '
        'cool-down of the learning rate does not have; optimise the strategy.'
      )
  return _inverse_square_root(column)


def _inverse_square_root(column):
  """Returns a power series P to the power -1/2.

  Q = P^(-1/2) satisfies Q' P = -1/2 P' Q, which gives it coefficient by
  coefficient.
  """
  found = np.zeros(len(column))
  found[0] = column[0] ** -0.5
  for k in range(1, len(column)):
    j = np.arange(1, k + 1)
    found[k] = (j / 2 - k) @ (column[1 : k + 1] * found[k - 1 :: -1][:k])
    found[k] /= k * column[0]
  return found


def loss_and_gradient(
  inverse: np.ndarray,
  contract: participation.Participation,
  form: np.ndarray,
) -> tuple[float, np.ndarray]:
  """Returns the logarithm of squared error times squared sensitivity.

  Like `toeplitz.loss_and_gradient`, but for the coefficients of C^-1.

  Args:
    inverse: The first column of C^-1 up to its last band, shape `[bands]`.
    contract: The participation contract.
    form: T, from `toeplitz.error_form`.
  """
  bands, n = len(inverse), contract.rounds
  with np.errstate(over='ignore', invalid='ignore'):
    form_q = form[:bands, :bands] @ inverse
    error = inverse @ form_q
    column = toeplitz.inverse(inverse, n)
    square, adjoint = toeplitz.square_and_gradient(column, contract)
    # d c = -c * c * d q, with * the convolution cut at n.
    adjoint = adjoint[::-1]
    for _ in range(2):
      adjoint = signal.lfilter([1.0], inverse, adjoint)
    gradient = 2 * form_q / error - adjoint[::-1][:bands] / square
    value = np.log(error) + np.log(square)
  if not (np.isfinite(value) and np.isfinite(gradient).all()):
    return np.inf, np.zeros(bands)
  return float(value), gradient


def optimize_banded_inverse(
  contract: participation.Participation,
  *,
  bands: int = DEFAULT_BANDS,
  workload: Optional[np.ndarray] = None,
  objective: str = 'rms',
  max_iterations: int = 300,
) -> np.ndarray:
  """Returns the best banded inverse whose sensitivity is exact.

  No coefficient of C^-1 after the first is positive, and those of C do not
  increase; then early participation is the worst case. It suffices that C does
  not increase over the bands: with C^-1 = 1 - F, each later difference is a sum
  of earlier ones, weighted by F.

  Args:
    contract: The participation contract.
    bands: The number of diagonals of C^-1 that may differ from zero; more than
      100 take seconds or longer.
    workload: A, shape `[n, n]`; prefix sums by default.
    objective: `'rms'` or `'max'`, see `toeplitz.error_form`.
    max_iterations: The limit of the optimizer.

  Returns:
    The first column of C^-1 up to its last band, shape `[bands]`; its first
    entry is 1.

  Raises:
    ValueError: If the number of bands is not between 1 and the rounds.
  """
  n = contract.rounds
  _check_bands(bands, n)
  if workload is None:
    workload = workloads.prefix_sum(n)
  workload = workloads.check_workload(workload, n)
  form = toeplitz.error_form(workload, objective)
  identity = np.append(1.0, np.zeros(bands - 1))
  if bands == 1:
    return identity
  start = _inverse_square_root(workload[:bands, 0])
  start /= start[0]
  if not _decreases(start, n):
    start = square_root(bands)

  def loss(x):
    value, gradient = loss_and_gradient(np.append(1.0, x), contract, form)
    # Line searches cope with huge values better than with infinite ones.
    return min(value, 1e3), gradient[1:]

  def slack(x):
    column = toeplitz.inverse(np.append(1.0, x), bands)
    return np.append(-np.diff(column), 1 + x.sum()) - _MARGIN

  def slack_gradient(x):
    column = toeplitz.inverse(np.append(1.0, x), bands)
    # d c = -c * c * d q.
    change = -toeplitz.matrix(np.convolve(column, column), bands)[:, :-1]
    change = np.concatenate([np.zeros([1, bands - 1]), change[:-1]])
    return np.concatenate([-np.diff(change, axis=0), np.ones([1, bands - 1])])

  result = optimize.minimize(
    loss,
    start[1:],
    jac=True,
    method='SLSQP',
    bounds=[(-1, 0)] * (bands - 1),
    constraints={'type': 'ineq', 'fun': slack, 'jac': slack_gradient},
    options={'maxiter': max_iterations, 'ftol': 1e-10},
  )
  end = np.append(1.0, np.clip(result.x, -1, 0))
  return min(
    (_towards(start, end, n), start, identity),
    key=lambda one: loss_and_gradient(one, contract, form)[0],
  )


def _check_bands(bands, rounds):
  if not 1 <= bands <= rounds:
    raise ValueError(
      f'{rounds} rounds take 1 to {rounds} bands; found {bands}.'
    )


def _decreases(inverse, n):
  """Returns whether the coefficients of C decrease and are not negative."""
  with np.errstate(over='ignore', invalid='ignore'):
    column = toeplitz.inverse(inverse, n)
    return bool((column >= 0).all() and (np.diff(column) <= 0).all())


def _towards(start, end, n):
  """Returns the last point of a line whose sensitivity is exact."""
  if _decreases(end, n):
    return end
  low, high = 0.0, 1.0
  for _ in range(40):
    middle = (low + high) / 2
    if _decreases(start + middle * (end - start), n):
      low = middle
    else:
      high = middle
  return start + low * (end - start)
