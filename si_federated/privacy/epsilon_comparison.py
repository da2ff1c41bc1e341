"""Errors of the mechanisms at equal epsilon, with and without amplification.

`comparison` compares at equal rho, which amplified mechanisms do not have.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from si_federated.privacy import (
  accounting,
  band_choice,
  calibration,
  comparison,
  participation,
  schedules,
  sensitivity,
  separation_choice,
  strategies,
)

# The mechanisms that cyclic Poisson and b-min-separation sampling amplify...
_BANDED = ('banded_toeplitz', 'banded')
# ...and that balls in bins do; others have more bands, or negative entries.
_IN_BINS = ('gaussian', 'blt', 'toeplitz')
# The samples of a Monte Carlo figure and the tolerance of its noise: for bounds
# that are slightly larger but take seconds.
_SAMPLES, _TOLERANCE = 2**15, 1e-2


@dataclasses.dataclass(frozen=True)
class Errors:
  """The errors of a mechanism at a given epsilon.

  Attributes:
    noise_multiplier: The noise that achieves the epsilon.
    max_error: The largest standard deviation of an iterate, in clip norms.
    rms_error: The root mean square over rounds of the same.
  """

  noise_multiplier: float
  max_error: float
  rms_error: float


@dataclasses.dataclass(frozen=True)
class Row:
  """A mechanism's errors at a given epsilon, with one sampling or none.

  Attributes:
    mechanism: One of `comparison.MECHANISMS`.
    sensitivity: The sensitivity under the contract.
    plain: The errors under the contract, without amplification.
    sampling: The sampling that amplifies it, in words; empty if none does.
    sampled: The errors under that sampling; None if none amplifies it.
    secs: The seconds that the computation took.
  """

  mechanism: str
  sensitivity: sensitivity.Sensitivity
  plain: Errors
  sampling: str
  sampled: Optional[Errors]
  secs: float


def compare_at_epsilon(
  contract: participation.Participation,
  *,
  target_epsilon: float,
  delta: float,
  num_clients: Optional[int] = None,
  clients_per_round: int = 1,
  mechanisms: Sequence[str] = comparison.MECHANISMS,
  cache: Optional[str] = None,
) -> Iterator[Row]:
  """Yields a row for each mechanism, as soon as it is computed.

  Errors are those of prefix sums, with one sum released per round. These
  samplings amplify:

  - `gaussian`: Poisson sampling in all rounds;
  - banded strategies: cyclic Poisson sampling with the best number of groups,
    and in a separate row b-min-separation sampling, with this separation or a
    better one of 2, 4, ... times as much;
  - `gaussian`, `blt` and `toeplitz`: balls in bins with as many groups as there
    are whole cohorts.

  For b-min-separation and balls in bins, noise is found by Monte Carlo: it
  achieves the epsilon with the confidence of `monte_carlo`, and is slightly
  larger than needed, since samples are few.

  Args:
    contract: The participation contract of mechanisms without amplification.
    target_epsilon: The epsilon of all mechanisms, finite.
    delta: In (0, 1).
    num_clients: The size of the population to sample from; None for no
      sampling.
    clients_per_round: The mean size of a cohort.
    mechanisms: A choice of `comparison.MECHANISMS`.
    cache: A folder that keeps optimised strategies.

  Raises:
    ValueError: If a mechanism is unknown, or no noise achieves the epsilon.
  """
  one = accounting.PrivacyRecord(
    strategies.identity(1), 1.0, participation.Participation(1, 1, 1)
  )
  noise = accounting.calibrate(
    one, target_epsilon=target_epsilon, delta=delta
  ).noise_multiplier
  population: dict[str, Any] = {
    'num_clients': num_clients,
    'clients_per_round': clients_per_round,
  }
  groups, separation = None, None
  for mechanism in mechanisms:
    start = time.monotonic()
    (row,) = comparison.compare(contract, mechanisms=[mechanism], cache=cache)
    records: list[tuple[str, Optional[accounting.PrivacyRecord]]] = []
    if num_clients is not None:
      if mechanism in _BANDED and groups is None:
        best, _ = band_choice.choose_groups(
          contract.rounds,
          target_epsilon=target_epsilon,
          delta=delta,
          cache=cache,
          **population,
        )
        groups = best.groups
        separation = separation_choice.choose_separation(
          contract.rounds,
          target_epsilon=target_epsilon,
          delta=delta,
          groups=groups,
          cache=cache,
          **population,
        )
      records += _sampled(
        mechanism, contract.rounds, groups, separation, cache, **population
      )
    for sampling, record in records or [('', None)]:
      sampled = None
      if record is not None:
        sampled = _errors(record, target_epsilon, delta)
      yield Row(
        mechanism,
        row.sensitivity,
        Errors(
          noise * row.sensitivity.value,
          noise * row.max_error,
          noise * row.rms_error,
        ),
        sampling,
        sampled,
        time.monotonic() - start,
      )
      start = time.monotonic()


def _sampled(
  mechanism: str,
  rounds: int,
  groups: Optional[int],
  separation: Optional[int],
  cache: Optional[str],
  num_clients: int,
  clients_per_round: int,
) -> Iterator[tuple[str, accounting.PrivacyRecord]]:
  """Yields each sampling that amplifies a mechanism, and its record there."""
  if mechanism == 'gaussian':
    yield 'Poisson', _poisson(rounds, num_clients, clients_per_round)
  if mechanism in _BANDED:
    assert groups is not None and separation is not None
    options: dict[str, Any] = {
      'num_clients': num_clients,
      'clients_per_round': clients_per_round,
      'mechanism': mechanism,
      'cache': cache,
    }
    yield (
      f'cyclic Poisson, {groups} groups',
      band_choice.sampled_record(rounds, groups=groups, **options),
    )
    # With one group, both are Poisson sampling.
    if separation > 1:
      apart = separation_choice.separated_record(
        rounds, separation=separation, **options
      )
      if apart is not None:
        yield f'b-min-separation, {separation} rounds', apart
  if mechanism in _IN_BINS:
    # Build the strategy for the sampling's own contract.
    bins = schedules.BallsInBins(num_clients, clients_per_round, 0)
    strategy = comparison.build(mechanism, bins.contract(rounds), cache=cache)
    if not strategy.has_negative_entries:
      yield (
        f'balls in bins, {bins.min_separation} groups',
        accounting.PrivacyRecord(
          strategy, 1.0, bins.contract(rounds), bins.amplification
        ),
      )


def _errors(record, target_epsilon, delta):
  """Returns the errors of an amplified record at an epsilon."""
  if record.is_by_monte_carlo:
    record = calibration.by_samples(
      record,
      target_epsilon,
      delta,
      samples=_SAMPLES,
      tolerance=_TOLERANCE,
    )
  else:
    record = accounting.calibrate(
      record, target_epsilon=target_epsilon, delta=delta
    )
  errors, z = record.strategy.errors(), record.noise_multiplier
  return Errors(z, z * errors.maximum, z * errors.rms)


def _poisson(rounds, num_clients, clients_per_round):
  """Returns the record of DP-SGD."""
  schedule = schedules.Poisson(num_clients, clients_per_round, 0)
  return accounting.PrivacyRecord(
    strategies.identity(rounds),
    1.0,
    schedule.contract(rounds),
    schedule.amplification,
  )


def format_rows(rows: Sequence[Row]) -> str:
  """Returns a table in Markdown.

  Args:
    rows: From `compare_at_epsilon`. Columns about sampling are left out if no
      row has any; a mechanism's own columns are filled in its first row only.
  """
  titles = ['mechanism', 'sensitivity', 'noise', 'max error', 'rms error']
  with_sampling = any(row.sampled for row in rows)
  if with_sampling:
    titles += ['amplified by', 'noise', 'max error', 'rms error']
  titles.append('seconds')
  lines: list[list[str]] = []
  for row, before in zip(rows, [None, *rows]):
    bound = '' if row.sensitivity.is_exact else ' (bound)'
    cells = [row.mechanism, f'{row.sensitivity.value:.3f}{bound}']
    cells += _numbers(row.plain)
    if before and before.mechanism == row.mechanism:
      cells = [''] * len(cells)
    if with_sampling:
      cells += [row.sampling, *_numbers(row.sampled)]
    cells.append(f'{row.secs:.1f}')
    lines.append(cells)
  rules = [
    '---' if t in ('mechanism', 'amplified by') else '---:' for t in titles
  ]
  return '\n'.join(
    f'| {" | ".join(cells)} |' for cells in [titles, rules, *lines]
  )


def _numbers(errors):
  if errors is None:
    return [''] * 3
  return [f'{value:.3f}' for value in dataclasses.astuple(errors)]
