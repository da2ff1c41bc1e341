"""Toeplitz strategies: coefficients, inverses, errors and optima."""

from __future__ import annotations

from typing import Optional

import numpy as np
from scipy import linalg, optimize, signal

from si_federated.privacy import participation, sensitivity, workloads


def inverse(coefficients: np.ndarray, rounds: int) -> np.ndarray:
  """Returns the first column of the inverse of a Toeplitz matrix.

  Args:
    coefficients: The first column of C, without its final zeros; the first
      entry is not zero.
    rounds: The number of entries to return.

  Returns:
    The first column of C^-1, shape `[rounds]`.
  """
  impulse = np.zeros(rounds)
  impulse[0] = 1
  return signal.lfilter([1.0], np.asarray(coefficients, float), impulse)


def square_root(rounds: int) -> np.ndarray:
  """Returns coefficients of the square root of the prefix sums, A = C C.

  Optimal for the maximum error with one participation (Fichtenberger et al.
  2022; Dvijotham et al. 2024, arXiv 2404.16706).

  Args:
    rounds: The number of coefficients.
  """
  i = np.arange(1, rounds)
  return np.cumprod(np.concatenate([[1.0], (2 * i - 1) / (2 * i)]))


def error_form(workload: np.ndarray, objective: str) -> np.ndarray:
  """Returns T such that q T q is a squared error of a Toeplitz strategy.

  Here q is the first column of C^-1, and noise has a standard deviation of 1.
  All columns of C^-1 are shifts of q, so that the sum of squares of A C^-1 is
  a quadratic form in q, found once in O(n^3).

  Args:
    workload: A, shape `[n, n]`.
    objective: `'rms'` for the mean over rounds of the squared error, `'max'`
      for that of the last round, which is the largest for prefix sums.

  Returns:
    T, shape `[n, n]`.

  Raises:
    ValueError: If the objective is neither.
  """
  n = len(workload)
  if objective == 'rms':
    gram = workload.T @ workload / n
  elif objective == 'max':
    gram = np.outer(workload[-1], workload[-1])
  else:
    raise ValueError(f'objective is {objective!r}; known are rms and max.')
  # T_ij = sum over s of G_{s+i, s+j}: a sum along the diagonal from the end.
  form = gram
  for i in range(n - 2, -1, -1):
    form[i, :-1] += form[i + 1, 1:]
  return form


def error_and_gradient(
  coefficients: np.ndarray, form: np.ndarray
) -> tuple[float, np.ndarray]:
  """Returns q T q and its gradient by the coefficients of C.

  Args:
    coefficients: The first column of C, shape `[n]`.
    form: T, from `error_form`.
  """
  n = len(form)
  q = inverse(coefficients, n)
  form_q = form @ q
  # C q = 1 gives dq = -q * q * dc, where * is the convolution truncated at n.
  # The adjoint of convolving with q is filtering by 1 / c from the end.
  adjoint = form_q[::-1]
  for _ in range(2):
    adjoint = signal.lfilter([1.0], coefficients, adjoint)
  return float(q @ form_q), -2 * adjoint[::-1][: len(coefficients)]


def square_and_gradient(
  coefficients: np.ndarray, contract: participation.Participation
) -> tuple[float, np.ndarray]:
  """Returns the squared sensitivity and its gradient.

  Valid only for non-negative coefficients that do not increase.

  Args:
    coefficients: The first column of C, shape `[contract.rounds]`.
    contract: The participation contract.
  """
  n, b = contract.rounds, contract.min_separation
  image = sensitivity.first_rounds_image(coefficients, contract)
  gradient = np.zeros(n)
  for m in range(contract.participations):
    gradient[: n - m * b] += 2 * image[m * b :]
  return float(image @ image), gradient


def loss_and_gradient(
  coefficients: np.ndarray,
  contract: participation.Participation,
  form: np.ndarray,
) -> tuple[float, np.ndarray]:
  """Returns the log of squared error times squared sensitivity, and gradient.

  The loss is invariant to the scale of the coefficients.

  Args:
    coefficients: The first column of C, shape `[contract.rounds]`.
    contract: The participation contract.
    form: T, from `error_form`.
  """
  error, error_gradient = error_and_gradient(coefficients, form)
  square, square_gradient = square_and_gradient(coefficients, contract)
  if not (np.isfinite(error) and error > 0):
    return np.inf, np.zeros_like(coefficients)
  gradient = error_gradient / error + square_gradient / square
  return float(np.log(error) + np.log(square)), gradient


def optimize_toeplitz(
  contract: participation.Participation,
  *,
  bands: Optional[int] = None,
  workload: Optional[np.ndarray] = None,
  objective: str = 'rms',
  max_iterations: int = 200,
) -> np.ndarray:
  """Returns the best Toeplitz strategy whose sensitivity is exact.

  Up to `min_separation` bands may have any coefficients. More bands need
  non-negative coefficients that do not increase; such a result is returned only
  if it is better than the best with `min_separation` bands.

  Args:
    contract: The participation contract.
    bands: The number of coefficients that may differ from zero; all by
      default, which gives the optimal Toeplitz strategy.
    workload: A, shape `[n, n]`; prefix sums by default.
    objective: `'rms'` or `'max'`, see `error_form`.
    max_iterations: The optimizer's limit.

  Returns:
    The coefficients, shape `[bands]` or shorter; the first is 1.

  Raises:
    ValueError: If the number of bands is not between 1 and the rounds.
  """
  n = contract.rounds
  bands = n if bands is None else bands
  if not 1 <= bands <= n:
    raise ValueError(f'{n} rounds take 1 to {n} bands; found {bands}.')
  if workload is None:
    workload = workloads.prefix_sum(n)
  form = error_form(workloads.check_workload(workload, n), objective)
  best = _free(contract, min(bands, contract.separation), form, max_iterations)
  if bands > contract.separation:
    more = _decreasing(contract, best, bands, form, max_iterations)
    values = [
      loss_and_gradient(_padded(column, n), contract, form)[0]
      for column in (best, more)
    ]
    best = more if values[1] < values[0] else best
  return best / best[0]


def _free(contract, bands, form, max_iterations):
  """Optimizes few enough coefficients for the sensitivity to be exact."""
  start = square_root(bands)

  # In units of the start, because coefficients span orders of magnitude.
  def loss(x):
    column = _padded(np.append(1.0, x * start[1:]), contract.rounds)
    value, gradient = loss_and_gradient(column, contract, form)
    return value, gradient[1:bands] * start[1:]

  if bands == 1:
    return start
  found = _minimize(loss, np.ones(bands - 1), max_iterations)
  return np.append(1.0, found * start[1:])


def _decreasing(contract, start, bands, form, max_iterations):
  """Optimizes coefficients that are non-negative and do not increase.

  With c_i as the sum of decrements d_j >= 0 from i on, simple bounds suffice.
  """
  scale = -np.diff(np.append(square_root(bands), 0))

  def loss(x):
    column = _padded((x * scale)[::-1].cumsum()[::-1], contract.rounds)
    value, gradient = loss_and_gradient(column, contract, form)
    return value, gradient[:bands].cumsum() * scale

  start = np.minimum.accumulate(np.maximum(_padded(start, bands), 0))
  decrements = -np.diff(np.append(start, 0)) / scale
  bounds = [(0, None)] * bands
  found = _minimize(loss, decrements, max_iterations, bounds)
  return (found * scale)[::-1].cumsum()[::-1]


def _minimize(loss, start, max_iterations, bounds=None):
  options = {
    'maxiter': max_iterations,
    'maxfun': 2 * max_iterations,
    'maxcor': 20,
    'ftol': 1e-14,
    'gtol': 1e-9,
  }
  found = optimize.minimize(
    loss, start, jac=True, method='L-BFGS-B', bounds=bounds, options=options
  )
  return found.x


def _padded(column, rounds):
  return np.append(column, np.zeros(rounds - len(column)))


def matrix(coefficients: np.ndarray, rounds: int) -> np.ndarray:
  """Returns the lower-triangular Toeplitz matrix of a first column.

  Args:
    coefficients: The first column; zero after its end.
    rounds: The size of the matrix.
  """
  column = _padded(np.asarray(coefficients, np.float64)[:rounds], rounds)
  return linalg.toeplitz(column, np.zeros(rounds))
