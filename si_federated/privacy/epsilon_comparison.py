"""Errors of the mechanisms at one epsilon, with and without amplification.

`comparison` compares at equal rho, which mechanisms under sampling have not.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from si_federated.privacy import (
  accounting,
  band_choice,
  comparison,
  participation,
  schedules,
  sensitivity,
  strategies,
)

# Those that sampling amplifies.
_SAMPLED = ('gaussian', 'banded_toeplitz', 'banded')


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
  """A mechanism's errors at one epsilon.

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
  cyclic Poisson sampling, in the number of groups that is best for them.

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
  groups = None
  for mechanism in mechanisms:
    start = time.monotonic()
    (row,) = comparison.compare(contract, mechanisms=[mechanism], cache=cache)
    sampling, sampled = '', None
    if num_clients is not None and mechanism in _SAMPLED:
      population: dict[str, Any] = {
        'num_clients': num_clients,
        'clients_per_round': clients_per_round,
      }
      if mechanism == 'gaussian':
        record = _poisson(contract.rounds, **population)
        sampling = 'Poisson'
      else:
        if groups is None:
          best, _ = band_choice.choose_groups(
            contract.rounds,
            target_epsilon=target_epsilon,
            delta=delta,
            cache=cache,
            **population,
          )
          groups = best.groups
        record = band_choice.sampled_record(
          contract.rounds,
          groups=groups,
          mechanism=mechanism,
          cache=cache,
          **population,
        )
        sampling = f'cyclic Poisson, {groups} groups'
      record = accounting.calibrate(
        record, target_epsilon=target_epsilon, delta=delta
      )
      errors = record.strategy.errors()
      z = record.noise_multiplier
      sampled = Errors(z, z * errors.maximum, z * errors.rms)
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
      is none in any.
  """
  titles = ['mechanism', 'sensitivity', 'noise', 'max error', 'rms error']
  with_sampling = any(row.sampled for row in rows)
  if with_sampling:
    titles += ['amplified by', 'noise', 'max error', 'rms error']
  titles.append('seconds')
  lines = []
  for row in rows:
    bound = '' if row.sensitivity.is_exact else ' (bound)'
    cells = [row.mechanism, f'{row.sensitivity.value:.3f}{bound}']
    cells += _numbers(row.plain)
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
