"""Comparison of the mechanisms' errors at equal privacy."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional

import numpy as np

from si_federated.privacy import (
  banded_inverse,
  blt,
  gram,
  participation,
  sensitivity,
  strategies,
  strategy_files,
  toeplitz,
)

MECHANISMS = (
  'gaussian',
  'tree_plain',
  'tree',
  'tree_restarted',
  'tree_full',
  'banded_toeplitz',
  'banded',
  'inverse_square_root',
  'banded_inverse',
  'blt',
  'toeplitz',
  'dense',
)
# The decoders of trees that are not restarted.
_DECODERS = {'tree_plain': 'plain', 'tree': 'honaker', 'tree_full': 'full'}


@dataclasses.dataclass(frozen=True)
class Row:
  """A mechanism's errors times its sensitivity.

  Attributes:
    mechanism: One of `MECHANISMS`.
    sensitivity: The sensitivity under the contract.
    max_error: The largest standard deviation of an iterate, in units of the
      clip norm, if the noise multiplier is the sensitivity (rho = 1/2).
    rms_error: The root mean square over rounds of that standard deviation.
    secs: The seconds that optimising or loading took.
  """

  mechanism: str
  sensitivity: sensitivity.Sensitivity
  max_error: float
  rms_error: float
  secs: float


def compare(
  contract: participation.Participation,
  *,
  mechanisms: Sequence[str] = MECHANISMS,
  workload: Optional[np.ndarray] = None,
  **options: Any,
) -> Iterator[Row]:
  """Yields a row for each mechanism, as soon as it is computed.

  `dense` is optimal for fixed cycles, and compared under that narrower
  contract: under minimum separation, only a bound on its sensitivity is known.

  Args:
    contract: The participation contract.
    mechanisms: A choice of `MECHANISMS`.
    workload: A, shape `[n, n]`; prefix sums by default. Trees are compared for
      prefix sums only.
    **options: Options of `build`: `bands`, `num_buffers`, `cache`.

  Raises:
    ValueError: If a mechanism is unknown.
  """
  for mechanism in mechanisms:
    if workload is not None and mechanism.startswith('tree'):
      continue
    start = time.monotonic()
    strategy = build(mechanism, contract, workload=workload, **options)
    secs = time.monotonic() - start
    measured = contract
    if mechanism == 'dense':
      measured = dataclasses.replace(contract, cyclic=True)
    found = strategy.sensitivity(measured)
    errors = strategy.errors(workload)
    yield Row(
      mechanism,
      found,
      errors.maximum * found.value,
      errors.rms * found.value,
      secs,
    )


def build(
  mechanism: str,
  contract: participation.Participation,
  *,
  bands: Optional[int] = None,
  num_buffers: Optional[int] = None,
  workload: Optional[np.ndarray] = None,
  objective: str = 'rms',
  restart_every: Optional[int] = None,
  cache: Optional[str] = None,
) -> strategies.Strategy:
  """Returns the strategy of a mechanism for a contract.

  Args:
    mechanism: One of `MECHANISMS`.
    contract: The participation contract.
    bands: The number of bands of banded strategies; by default the separation,
      but at most 16 for a banded inverse, to limit the time that noise takes.
    num_buffers: The number of buffers of blt; by default the fewest that are
      nearly the best.
    workload: A, shape `[n, n]`; prefix sums by default.
    objective: The objective of Toeplitz strategies, `'rms'` or `'max'`.
    restart_every: The interval of restarted trees; by default an epoch: a block
      of the contract, or the separation.
    cache: A folder that keeps optimised strategies; not used if a workload is
      given, which has no name.

  Raises:
    ValueError: If the mechanism is unknown or an option out of range.
  """
  n = contract.rounds
  if mechanism == 'gaussian':
    return strategies.identity(n)
  if mechanism == 'tree_restarted':
    every = restart_every or contract.block or contract.separation
    return strategies.Tree(n, restart_every=every, complete=True)
  if mechanism in _DECODERS:
    return strategies.Tree(n, _DECODERS[mechanism])
  if bands is None:
    bands = contract.separation
    if 'inverse' in mechanism:
      bands = min(banded_inverse.DEFAULT_BANDS, n)
  if mechanism == 'inverse_square_root':
    root = banded_inverse.square_root(bands, workload)
    return strategies.BandedInverse.from_inverse(root, n)

  def make_toeplitz(width):
    column = toeplitz.optimize_toeplitz(
      contract, bands=width, workload=workload, objective=objective
    )
    return strategies.Toeplitz(column, n, mechanism)

  def make_blt():
    decay, scale = blt.optimize_blt(
      contract,
      num_buffers=num_buffers,
      workload=workload,
      objective=objective,
    )
    return strategies.Blt.from_parameters(decay, scale, n)

  builders: dict[str, Callable[[], strategies.Strategy]] = {
    'banded_toeplitz': lambda: make_toeplitz(bands),
    'toeplitz': lambda: make_toeplitz(n),
    'banded_inverse': lambda: strategies.BandedInverse.from_inverse(
      banded_inverse.optimize_banded_inverse(
        contract, bands=bands, workload=workload, objective=objective
      ),
      n,
    ),
    'blt': make_blt,
    'banded': lambda: strategies.Matrix(
      gram.optimize_banded(contract, bands=bands, workload=workload), 'banded'
    ),
    'dense': lambda: strategies.Matrix(
      gram.optimize_dense(contract, workload=workload), 'dense'
    ),
  }
  if mechanism not in builders:
    raise ValueError(
      f'Mechanism {mechanism!r} is unknown; known are {", ".join(MECHANISMS)}.'
    )
  parameters = {
    'kind': mechanism,
    'rounds': n,
    'participations': contract.participations,
    'separation': contract.separation,
    'bands': bands if mechanism.startswith('banded') else None,
    'num_buffers': num_buffers if mechanism == 'blt' else None,
    'objective': objective,
  }
  return strategy_files.cached(
    cache if workload is None else None, parameters, builders[mechanism]
  )


def format_rows(rows: Sequence[Row]) -> str:
  """Returns a table in Markdown.

  Args:
    rows: From `compare`.
  """
  lines = [
    '| mechanism | sensitivity | max error | rms error | seconds |',
    '| --- | ---: | ---: | ---: | ---: |',
  ]
  for row in rows:
    bound = '' if row.sensitivity.is_exact else ' (bound)'
    lines.append(
      f'| {row.mechanism} | {row.sensitivity.value:.3f}{bound} | '
      f'{row.max_error:.3f} | {row.rms_error:.3f} | {row.secs:.1f} |'
    )
  return '\n'.join(lines)
