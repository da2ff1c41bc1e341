"""Buffered linear Toeplitz (BLT) strategies.

A strategy of d buffers is Toeplitz with c_0 = 1 and, for i > 0,
c_i = sum_j scale_j decay_j^(i - 1) (Dvijotham et al. 2024, arXiv 2404.16706;
McMahan et al. 2024, arXiv 2408.08868, where decay is theta and scale omega).
Its inverse has the same form, so correlated noise needs only d buffers.
"""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
from scipy import optimize, special

from si_federated.privacy import participation, toeplitz, workloads

# The strength of the logarithmic barrier that keeps decays away from 0 and 1.
_BARRIER = 1e-8
# The tolerance on the error when choosing the fewest buffers.
_MOST_BUFFERS = 4
_NEAR = 1e-3
# Losses that differ by less are equal up to the optimizer's accuracy.
_TIE = 1e-6
# Decays that differ by less, relative to the gaps to 0 and 1, count as equal: a
# single buffer has the same error.
_LEAST_GAP = 1e-3
# The scale / decay of an additional buffer that has no effect.
_LEAST_WEIGHT = 1e-9
# The distance of sum(scale / decay) from 1 where the optimum lies at the limit.
_MARGIN = 1e-12


def check_parameters(
  decay: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns parameters as float64 after checks.

  Args:
    decay: The decay of each buffer; distinct, in (0, 1).
    scale: The positive scale of each buffer; scale / decay sums to below 1.

  Raises:
    ValueError: If a condition is violated. Together they ensure that
      coefficients are positive and decreasing, and that the inverse is a BLT
      with decays in (0, 1).
  """
  decay, scale = np.asarray(decay, float), np.asarray(scale, float)
  if decay.ndim != 1 or decay.shape != scale.shape or not decay.size:
    raise ValueError(
      'A BLT strategy has as many decays as scales, at least one; found '
      f'shapes {decay.shape} and {scale.shape}.'
    )
  if not (
    ((decay > 0) & (decay < 1) & (scale > 0)).all()
    and len(np.unique(decay)) == len(decay)
    and (scale / decay).sum() < 1
  ):
    raise ValueError(
      'A BLT strategy needs distinct decays in (0, 1) and positive scales with '
      f'sum(scale / decay) < 1; found decays {decay} and scales {scale}.'
    )
  return decay, scale


def coefficients(
  decay: np.ndarray, scale: np.ndarray, rounds: int
) -> np.ndarray:
  """Returns the first column of C, shape `[rounds]`."""
  powers = np.power.outer(decay, np.arange(rounds - 1))
  return np.append(1.0, scale @ powers)


def optimize_blt(
  contract: participation.Participation,
  *,
  num_buffers: Optional[int] = None,
  workload: Optional[np.ndarray] = None,
  objective: str = 'rms',
  max_iterations: int = 1000,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the parameters with the least error at a given privacy.

  Minimises the exact product of squared error and squared sensitivity in
  a parametrization that is always feasible: each decay is the logistic function
  of a free number, and scale / decay a softmax with an additional, unused part.

  Args:
    contract: The participation contract.
    num_buffers: The number of buffers d; by default the fewest, up to 4, whose
      error is within 0.1 % of the best. Superfluous buffers get almost no
      weight.
    workload: A, shape `[n, n]`; prefix sums by default.
    objective: `'rms'` or `'max'`, see `toeplitz.error_form`.
    max_iterations: The limit of the optimizer from each starting point.

  Returns:
    Strictly decreasing decays, and their scales.

  Raises:
    ValueError: If the number of buffers is not between 1 and 20.
  """
  n = contract.rounds
  if num_buffers is not None and not 1 <= num_buffers <= 20:
    raise ValueError(f'num_buffers is {num_buffers}; take 1 to 20.')
  if workload is None:
    workload = workloads.prefix_sum(n)
  form = toeplitz.error_form(workloads.check_workload(workload, n), objective)

  found = []
  for count in range(1, (num_buffers or _MOST_BUFFERS) + 1):
    decay, scale = _optimize(contract, count, form, max_iterations)
    # If buffers coincide, fewer are as good.
    if count == 1 or _differ(decay):
      column = coefficients(decay, scale, n)
      loss, _ = toeplitz.loss_and_gradient(column, contract, form)
      found.append((loss, decay, scale))
  best = min(loss for loss, _, _ in found)
  # Losses are logarithms of squares.
  near = [one for one in found if one[0] <= best + 2 * np.log1p(_NEAR)]
  if num_buffers is None:
    return check_parameters(*near[0][1:])
  # More buffers may end in a worse local optimum.
  near = [one for one in near if one[0] <= best + _TIE]
  return check_parameters(*_filled(*near[-1][1:], num_buffers))


def _optimize(contract, num_buffers, form, max_iterations):
  """Returns decreasing decays, perhaps almost equal ones, and scales."""
  n = contract.rounds

  def loss(x):
    decay, scale, decay_jacobian, scale_jacobian = _parameters(x, n)
    powers = np.power.outer(decay, np.arange(n - 1))
    column = np.append(1.0, scale @ powers)
    value, gradient = toeplitz.loss_and_gradient(column, contract, form)
    by_scale = powers @ gradient[1:]
    slopes = np.arange(1, n - 1) * powers[:, :-1]
    by_decay = scale * (slopes @ gradient[2:])
    gradient = by_decay @ decay_jacobian + by_scale @ scale_jacobian
    free = x[:num_buffers]
    value += _BARRIER * (np.logaddexp(0, free) + np.logaddexp(0, -free)).sum()
    gradient[:num_buffers] += _BARRIER * np.tanh(free / 2)
    return value, gradient

  best: Any = None
  for slowest in (max(n, 4), max(contract.min_separation, 4)):
    found = optimize.minimize(
      loss,
      _start(num_buffers, slowest),
      jac=True,
      method='BFGS',
      options={'maxiter': max_iterations, 'gtol': 1e-7},
    )
    if best is None or found.fun < best.fun:
      best = found
  decay, scale, _, _ = _parameters(best.x, n)
  order = np.argsort(-decay)
  # Without a gradient (two rounds), a decay can underflow.
  return _inside(np.maximum(decay[order], _MARGIN), scale[order])


def _inside(decay, scale):
  """Moves parameters back inside their limits after rounding."""
  scale = np.maximum(scale, _MARGIN**2 * decay)
  most, total = 1 - _MARGIN, (scale / decay).sum()
  return decay, scale * most / total if total > most else scale


def _differ(decay):
  """Returns whether decreasing decays are far enough apart to be distinct."""
  gaps = np.diff(special.logit(decay))
  return bool((gaps < -_LEAST_GAP).all())


def _filled(decay, scale, num_buffers):
  """Adds buffers with almost no weight and successively smaller decays."""
  more = num_buffers - len(decay)
  smaller = decay[-1] * 0.5 ** np.arange(1, more + 1)
  return _inside(
    np.append(decay, smaller), np.append(scale, _LEAST_WEIGHT * smaller)
  )


def _parameters(x, rounds):
  """Returns decays and scales, and their Jacobians in the free numbers."""
  d = len(x) // 2
  # Decays closer to 1 make no difference within these rounds.
  most = 1 - 0.01 / rounds
  logistic = special.expit(x[:d])
  decay = most * logistic
  weights = np.exp(x[d:] - max(x[d:].max(), 0))
  left_over = np.exp(-max(x[d:].max(), 0))
  parts = weights / (weights.sum() + left_over)
  slope = np.diag(decay * (1 - logistic))
  softmax = np.diag(parts) - np.outer(parts, parts)
  decay_jacobian = np.hstack([slope, np.zeros((d, d))])
  scale_jacobian = np.hstack([parts[:, None] * slope, decay[:, None] * softmax])
  return decay, decay * parts, decay_jacobian, scale_jacobian


def _start(num_buffers, slowest):
  """Returns free numbers whose coefficients are near those of 1 / sqrt(1 - x).

  The coefficients 1 / sqrt(pi i) are an integral over decays; at decays spaced
  evenly in log(1 - decay), all parts have about the same weight near 1.
  """
  gaps = np.geomspace(1.0 / slowest, 0.6, num_buffers)
  target = toeplitz.square_root(slowest)
  weight = 1 / np.sqrt(np.arange(1, slowest))
  powers = np.power.outer(1 - gaps, np.arange(slowest - 1))
  scale, _ = optimize.nnls((powers * weight).T, target[1:] * weight)
  parts = np.maximum(scale, 1e-4) / (1 - gaps)
  parts *= min(1.0, 0.95 / parts.sum())
  return np.append(
    np.log((1 - gaps) / gaps), np.log(parts) - np.log(1 - parts.sum())
  )
