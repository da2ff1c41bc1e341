"""Workload matrices A: how training combines the noisy updates.

Row t of A contains the weights of all rounds' updates in the model after round
t, so that `A x` are the iterates of server SGD. Mechanisms release
`A (x + C^-1 z)`.
"""

from __future__ import annotations

from typing import Optional

import numpy as np
from scipy import linalg, signal


def prefix_sum(rounds: int) -> np.ndarray:
  """Returns the workload of plain server SGD, shape `[rounds, rounds]`."""
  return np.tril(np.ones((rounds, rounds)))


def cool_down(
  rounds: int, *, fraction: float = 0.25, final: float = 0.05
) -> np.ndarray:
  """Returns learning rates that decrease linearly at the end.

  The defaults are those of Choquette-Choo et al. 2022, arXiv 2211.06530.

  Args:
    rounds: The number of rounds.
    fraction: The fraction of the rounds in which the rate decreases.
    final: The last rate, relative to the first.

  Returns:
    Rates relative to the first, shape `[rounds]`.
  """
  if not 0 <= fraction <= 1 or not 0 <= final <= 1:
    raise ValueError(
      f'A cool-down over {fraction} of the rounds to {final} of the learning '
      'rate is not possible; both lie between 0 and 1.'
    )
  rates = np.ones(rounds)
  falling = round(fraction * rounds)
  if falling:
    rates[-falling:] = np.linspace(1, final, falling + 1)[1:]
  return rates


def momentum_sgd(
  rounds: int,
  *,
  momentum: float = 0.0,
  learning_rates: Optional[np.ndarray] = None,
) -> np.ndarray:
  """Returns the workload of server SGD with momentum and a rate schedule.

  With v_t = momentum v_{t-1} + x_t and iterates that move by rate_t v_t, entry
  (t, s) is the sum over r from s to t of rate_r momentum^(r - s).

  Args:
    rounds: The number of rounds.
    momentum: The momentum, in [0, 1).
    learning_rates: Rates relative to the first, shape `[rounds]`; constant by
      default.

  Returns:
    The workload, shape `[rounds, rounds]`, lower triangular.

  Raises:
    ValueError: If momentum or rates are out of range.
  """
  if not 0 <= momentum < 1:
    raise ValueError(f'momentum is {momentum}; it must be in [0, 1).')
  rates = np.ones(rounds) if learning_rates is None else learning_rates
  rates = np.asarray(rates, np.float64)
  if rates.shape != (rounds,) or not (rates > 0).all():
    raise ValueError(f'{rounds} rounds need as many positive learning rates.')
  velocity = signal.lfilter([1.0], [1.0, -momentum], np.eye(rounds), axis=0)
  return np.tril(np.cumsum(rates[:, None] * velocity, axis=0))


def server_sgd(
  rounds: int, *, momentum: float = 0.0, falling: float = 0.0
) -> Optional[np.ndarray]:
  """Returns the workload of server SGD; None for prefix sums.

  Args:
    rounds: The number of rounds.
    momentum: The momentum, in [0, 1).
    falling: The fraction of the rounds, at the end, in which the learning rate
      decreases.
  """
  if not momentum and not falling:
    return None
  return momentum_sgd(
    rounds,
    momentum=momentum,
    learning_rates=cool_down(rounds, fraction=falling),
  )


def check_workload(workload: np.ndarray, rounds: int) -> np.ndarray:
  """Returns a valid workload as float64.

  Args:
    workload: The matrix A.
    rounds: The number of rounds that it must have.

  Raises:
    ValueError: If it is not `[rounds, rounds]`, finite, lower triangular with
      no zero on the diagonal.
  """
  workload = np.asarray(workload, np.float64)
  if workload.shape != (rounds, rounds):
    raise ValueError(
      f'A workload for {rounds} rounds is square of that size; found shape '
      f'{workload.shape}.'
    )
  if (
    not np.isfinite(workload).all()
    or np.triu(workload, 1).any()
    or not workload.diagonal().all()
  ):
    raise ValueError(
      'A workload is finite and lower triangular, with no zero on the diagonal.'
    )
  return workload


def decoder(workload: np.ndarray, matrix: np.ndarray) -> np.ndarray:
  """Returns B with B C = A for a square strategy C.

  Args:
    workload: A, shape `[n, n]`.
    matrix: C, shape `[n, n]`, lower triangular, invertible.
  """
  return linalg.solve_triangular(
    matrix, workload.T, lower=True, trans='T', check_finite=False
  ).T
