"""Errors of the mechanisms at one epsilon, with and without amplification.

`comparison` compares at equal rho, which mechanisms under sampling have not.
"""

from __future__ import annotations

import dataclasses
import math
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
  strategies,
)

# Those that cyclic Poisson and b-min-separation sampling amplify...
_BANDED = ('banded_toeplitz', 'banded')
# ...and balls in bins; others have more bands, or negative entries.
_IN_BINS = ('gaussian', 'blt', 'toeplitz')
# Of a figure by Monte Carlo, samples and the tolerance of noise: for seconds
# each, and bounds that are a little larger; and to choose a separation.
_FINE, _COARSE = (2**15, 1e-2), (2**12, 2e-2)


@dataclasses.dataclass(frozen=True)
class Errors:
  """What one epsilon costs a mechanism.

  Attributes:
    noise_multiplier: The noise that the epsilon takes.
    max_error: The largest standard deviation of an iterate, in clip norms.
    rms_error: The same, root of the mean square over rounds.
  """

  noise_multiplier: float
  max_error: float
  rms_error: float


@dataclasses.dataclass(frozen=True)
class Row:
  """A mechanism's errors at one epsilon, with one sampling or none.

  Attributes:
    mechanism: One of `comparison.MECHANISMS`.
    sensitivity: Under the contract.
    plain: Its errors under the contract, without amplification.
    sampling: The sampling that amplifies it, in words; empty if none does.
    sampled: Its errors under that sampling; None if none amplifies it.
    secs: The seconds it took.
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

  Errors are of prefix sums, for one sum released a round. Under sampling,
  `gaussian` has Poisson sampling in all rounds, and the banded strategies
  cyclic Poisson sampling, in the number of groups that is best for them; and in
  a row of its own b-min-separation sampling, as many rounds apart, or a better
  one of 2, 4, ... times as many. `gaussian`, `blt` and `toeplitz` have balls in
  bins, in as many groups as there are whole cohorts. The last two take noise by
  Monte Carlo: it keeps to the epsilon with the confidence of `monte_carlo`, and
  few samples ask for a little more.

  Args:
    contract: The participation contract of mechanisms without amplification.
    target_epsilon: The epsilon of all, finite.
    delta: In (0, 1).
    num_clients: The population to sample from; None for no sampling.
    clients_per_round: The mean size of a cohort.
    mechanisms: A choice of `comparison.MECHANISMS`.
    cache: A folder that keeps optimised strategies.

  Raises:
    ValueError: If a mechanism is unknown, or no noise gives the epsilon.
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
        separation = _best_separation(
          contract.rounds, groups, target_epsilon, delta, cache, **population
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
  """Yields samplings that amplify a mechanism, and its records under them."""
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
    apart = _apart(rounds, separation, **options)
    # In one group, both are Poisson sampling.
    if separation > 1 and apart is not None:
      yield f'b-min-separation, {separation} rounds', apart
  if mechanism in _IN_BINS:
    # A strategy is that of the sampling's contract.
    bins = schedules.BallsInBins(num_clients, clients_per_round, 0)
    strategy = comparison.build(mechanism, bins.contract(rounds), cache=cache)
    if not (strategy.matrix() < 0).any():
      yield (
        f'balls in bins, {bins.min_separation} groups',
        accounting.PrivacyRecord(
          strategy, 1.0, bins.contract(rounds), bins.amplification
        ),
      )


def _apart(rounds, separation, num_clients, clients_per_round, **options):
  """Returns the record of b-min-separation sampling; None if not amplified."""
  record = band_choice.sampled_record(
    rounds,
    groups=separation,
    num_clients=num_clients,
    clients_per_round=clients_per_round,
    **options,
  )
  if (record.strategy.matrix() < 0).any():
    return None
  schedule = schedules.BMinSep(
    num_clients, clients_per_round, 0, min_separation=separation
  )
  return dataclasses.replace(
    record,
    contract=schedule.contract(rounds),
    amplification=schedule.amplification,
  )


def _best_separation(
  rounds: int,
  groups: int,
  target_epsilon: float,
  delta: float,
  cache: Optional[str],
  num_clients: int,
  clients_per_round: int,
) -> int:
  """Returns a separation for b-min-separation sampling, from groups on.

  It amplifies wider bands more than cyclic Poisson sampling does. Doubles as
  long as errors of Toeplitz strategies fall, by few samples.
  """
  found, least = groups, math.inf
  most = min(num_clients // clients_per_round, rounds)
  separation = groups
  while 1 < separation <= most:
    record = _apart(
      rounds, separation, num_clients, clients_per_round, cache=cache
    )
    error = math.inf
    if record is not None:
      error = _errors(record, target_epsilon, delta, _COARSE).rms_error
    if error >= least:
      break
    found, least = separation, error
    separation *= 2
  return found


def _errors(record, target_epsilon, delta, effort=_FINE):
  """Returns the errors at an epsilon of a record that is amplified."""
  if record.is_by_monte_carlo:
    samples, tolerance = effort
    record = calibration.by_samples(
      record,
      target_epsilon,
      delta,
      samples=samples,
      tolerance=tolerance,
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
    rows: From `compare_at_epsilon`; columns of sampling are left out if there
      is none in any, and a mechanism's own after its first row.
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
