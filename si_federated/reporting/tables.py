"""The table of runs and the few words in which it says how each run stands."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Callable, Dict, List, Mapping, Sequence, Tuple

from si_federated.reporting import run_groups
from si_federated.reporting import runs as run_files
from si_federated.reporting.runs import Run

_Cell = Callable[[Run], str]
_NOT_FINITE = 'not finite'


@dataclasses.dataclass(frozen=True)
class Table:
  """Text cells under headings.

  Attributes:
    columns: The headings.
    rows: Cells of each row, as many as columns.
    numeric: For each column, whether it is set flush right.
  """

  columns: Tuple[str, ...]
  rows: Tuple[Tuple[str, ...], ...]
  numeric: Tuple[bool, ...]

  def as_text(self) -> str:
    """Returns the table for a terminal."""
    lines = [self.columns, *self.rows]
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    text = []
    for line in lines:
      cells = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(line, widths, self.numeric)
      ]
      text.append('  '.join(cells).rstrip())
    text.insert(1, '  '.join('-' * width for width in widths))
    return '\n'.join(text)

  def as_markdown(self) -> str:
    """Returns the table in Markdown's pipe form."""
    ruler = ['---:' if right else '---' for right in self.numeric]
    lines = [self.columns, ruler, *self.rows]
    return '\n'.join(
      '| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |'
      for line in lines
    )


def runs_table(comparison: run_groups.Comparison) -> Table:
  """Builds the table with one row a run, without columns that have no value.

  Args:
    comparison: The runs.

  Returns:
    The table: name, the settings that differ, but for those that
    `implied_table` has, results, costs, state.
  """
  runs = [run for group in comparison.groups for run in group.runs]
  columns: List[Tuple[str, _Cell]] = [('run', lambda run: run.name)]
  _, implied = run_groups.implied(comparison)
  for name in comparison.differing:
    if name not in implied:
      columns.append((run_groups.heading(name), _setting(name)))
  columns += [
    ('parameters', lambda run: count(run.num_parameters)),
    ('rounds', lambda run: str(run.last_round)),
    ('final perplexity', final_perplexity),
    ('best perplexity', best_perplexity),
    ('best at round', best_round),
    ('accuracy', _accuracy),
    ('ε', _last(run_files.EPSILON, '{:.3g}')),
    ('secs a round', _round_secs),
    ('wall time', _wall_time),
    ('up a client', _traffic(run_files.BYTES_UP)),
    ('down a client', _traffic(run_files.BYTES_DOWN)),
    ('state', state),
  ]
  kept: Dict[str, Tuple[str, ...]] = {}
  for title, cell in columns:
    cells = tuple(cell(run) for run in runs)
    if set(cells) != {run_groups.MISSING}:
      kept[title] = cells
  return assemble(kept)


def groups_table(comparison: run_groups.Comparison) -> Table | None:
  """Builds the table with one row for each set of repeated runs, if any.

  Args:
    comparison: The runs.

  Returns:
    Mean and standard deviation of the best and final perplexity over seeds, or
    None if no run was repeated.
  """
  if all(len(group.runs) == 1 for group in comparison.groups):
    return None
  kept: Dict[str, Tuple[str, ...]] = {
    'setting': tuple(group.label for group in comparison.groups),
    'seeds': tuple(str(len(group.runs)) for group in comparison.groups),
    'final perplexity': tuple(
      mean_and_deviation(group.runs, final_value) for group in comparison.groups
    ),
    'best perplexity': tuple(
      mean_and_deviation(group.runs, best_value) for group in comparison.groups
    ),
    'diverged': tuple(
      str(sum(run.divergence is not None for run in group.runs))
      for group in comparison.groups
    ),
  }
  return assemble(kept)


def implied_table(comparison: run_groups.Comparison) -> Table | None:
  """Builds the table of settings that follow from those in labels, if any.

  Args:
    comparison: The runs.

  Returns:
    A row for each setting, a column for each set of runs that share them all;
    None if labels name all that differs.
  """
  labels, implied = run_groups.implied(comparison)
  if not implied:
    return None
  kept = {'setting': tuple(map(run_groups.full_name, implied))}
  kept.update(zip(labels, zip(*implied.values())))
  return assemble(kept)


def state(run: Run) -> str:
  """Says in a few words how a run ended or how far it is."""
  if run.divergence:
    return f'diverged at round {run.divergence.round_num}'
  if run.finished:
    return 'finished'
  if run.total_rounds:
    return f'unfinished, {run.last_round} of {run.total_rounds} rounds'
  return 'unfinished'


def final_value(run: Run) -> float | None:
  """Returns the last evaluation perplexity, None if it isn't finite."""
  values = run.series.get(run_files.PERPLEXITY)
  last = math.nan if values is None else float(values.iloc[-1])
  return last if math.isfinite(last) else None


def best_value(run: Run) -> float | None:
  """Returns the lowest evaluation perplexity, None if there is none."""
  values = run.finite(run_files.PERPLEXITY)
  return float(values.min()) if len(values) else None


def final_perplexity(run: Run) -> str:
  """Returns the last evaluation perplexity as text."""
  value = final_value(run)
  if value is None and run_files.PERPLEXITY in run.series:
    return _NOT_FINITE
  return number(value)


def best_perplexity(run: Run) -> str:
  """Returns the lowest evaluation perplexity as text."""
  return number(best_value(run))


def number(value: float | None) -> str:
  """Formats a perplexity: a decimal below 1,000, none above."""
  if value is None:
    return run_groups.MISSING
  if abs(value) >= 1e7:
    return f'{value:.2g}'
  return (
    f'{value:.2f}'
    if value < 10
    else (f'{value:.1f}' if value < 1000 else f'{value:,.0f}')
  )


def count(value: float | None) -> str:
  """Formats a whole number with thousands set apart."""
  return run_groups.MISSING if value is None else f'{int(value):,}'


def count_of(number_of_runs: int) -> str:
  """Returns `1 run`, `2 runs` and so on."""
  return f'{number_of_runs} run' + ('s' if number_of_runs != 1 else '')


def duration(secs: float | None) -> str:
  """Formats a duration."""
  if secs is None:
    return run_groups.MISSING
  minutes, seconds = divmod(round(secs), 60)
  if not minutes:
    return f'{seconds} s'
  if minutes < 60:
    return f'{minutes} min {seconds:02d} s'
  return f'{minutes // 60:,} h {minutes % 60:02d} min'


def assemble(kept: Mapping[str, Sequence[str]]) -> Table:
  """Builds a table from columns of cells, by heading.

  Columns of numbers, but for the first, are set flush right.
  """
  return Table(
    columns=tuple(kept),
    rows=tuple(zip(*kept.values())),
    numeric=tuple(
      column > 0
      and all(
        cell[:1].isdigit() or cell in (run_groups.MISSING, _NOT_FINITE)
        for cell in cells
      )
      for column, cells in enumerate(kept.values())
    ),
  )


def _setting(name: str) -> _Cell:
  return lambda run: run_groups.settings_of(run).get(name, run_groups.MISSING)


def _last(column: str, form: str) -> _Cell:
  def cell(run: Run) -> str:
    values = run.finite(column)
    return form.format(values.iloc[-1]) if len(values) else run_groups.MISSING

  return cell


def best_round(run: Run) -> str:
  """Returns the round of the best perplexity, or accuracy, as text."""
  values = run.finite(run_files.PERPLEXITY)
  if run_files.has_classes(run):
    values = -run.finite(run_files.ACCURACY)
  return str(values.idxmin()) if len(values) else run_groups.MISSING


def _accuracy(run: Run) -> str:
  column = run_files.ACCURACY_NO_OOV_NO_EOS
  if run_files.has_classes(run):
    column = run_files.ACCURACY
  values = run.finite(column)
  return f'{100 * values.iloc[-1]:.1f} %' if len(values) else run_groups.MISSING


def _round_secs(run: Run) -> str:
  values = run.finite(run_files.ROUND_SECS)
  # The median leaves out the first round, which also traces and compiles.
  return f'{values.median():.3g}' if len(values) else run_groups.MISSING


def _wall_time(run: Run) -> str:
  secs = run.wall_secs()
  return duration(float(secs.iloc[-1]) if len(secs) else None)


def _traffic(column: str) -> _Cell:
  def cell(run: Run) -> str:
    values = run.finite(column)
    if not len(values):
      return run_groups.MISSING
    mean = values.mean()
    for unit in ('B', 'kB', 'MB'):
      if mean < 1000:
        return f'{mean:.3g} {unit}'
      mean /= 1000
    return f'{mean:.3g} GB'

  return cell


def last_value(group: run_groups.Group, column: str) -> float | None:
  """Returns the mean of the last values of a column, None without any."""
  found = [run.finite(column) for run in group.runs]
  last = [float(values.iloc[-1]) for values in found if len(values)]
  return sum(last) / len(last) if last else None


def mean_and_deviation(
  runs: Sequence[Run], value: Callable[[Run], float | None]
) -> str:
  """Returns mean ± sample standard deviation over runs as text."""
  known: Sequence[float] = [one for one in map(value, runs) if one is not None]
  if not known or len(known) < len(runs):
    return f'known for {len(known)} of {len(runs)}'
  mean = sum(known) / len(known)
  if len(known) == 1:
    return number(mean)
  return f'{number(mean)} ± {number(statistics.stdev(known))}'
