"""The tables of a report, and how it formats numbers and states."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Callable, Dict, Iterable, List, Mapping, Sequence, Tuple

from si_federated.reporting import run_groups
from si_federated.reporting import runs as run_files
from si_federated.reporting.run_groups import MISSING
from si_federated.reporting.runs import Run

_NOT_FINITE = 'not finite'


@dataclasses.dataclass(frozen=True)
class Table:
  """Text cells under headings.

  Attributes:
    columns: The headings.
    rows: Cells of each row, as many as columns.
    numeric: For each column, whether it is aligned right.
  """

  columns: Tuple[str, ...]
  rows: Tuple[Tuple[str, ...], ...]
  numeric: Tuple[bool, ...]

  def as_text(self) -> str:
    """Returns the table for a terminal."""
    widths = [max(map(len, cells)) for cells in zip(self.columns, *self.rows)]
    ruler = ['-' * width for width in widths]
    form = '  '.join(
      f'{{:{">" if right else "<"}{width}}}'
      for width, right in zip(widths, self.numeric)
    )
    lines = (self.columns, ruler, *self.rows)
    return '\n'.join(form.format(*cells).rstrip() for cells in lines)

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
    The table: name, the settings that differ except those in `implied_table`,
    results, costs, state.
  """
  runs = comparison.runs
  settings = [run_groups.settings_of(run) for run in runs]
  _, implied = run_groups.implied(comparison)
  columns: Dict[str, List[str]] = {'run': [run.name for run in runs]}
  for name in comparison.differing:
    if name not in implied:
      columns[run_groups.heading(name)] = [
        one.get(name, MISSING) for one in settings
      ]
  cells: Dict[str, Callable[[Run], str]] = {
    'parameters': lambda run: count(run.num_parameters),
    'rounds': lambda run: str(run.last_round),
    'final perplexity': final_perplexity,
    'best perplexity': best_perplexity,
    'best at round': best_round,
    'accuracy': _accuracy,
    'ε': lambda run: cell(run.last(run_files.EPSILON), '{:.3g}'),
    # The median leaves out the first round, which also traces and compiles.
    'secs a round': lambda run: cell(
      run.summarize(run_files.ROUND_SECS, 'median'), '{:.3g}'
    ),
    'wall time': _wall_time,
    'up a client': lambda run: _size(run.summarize(run_files.BYTES_UP, 'mean')),
    'down a client': lambda run: _size(
      run.summarize(run_files.BYTES_DOWN, 'mean')
    ),
    'state': state,
  }
  columns.update({title: list(map(of, runs)) for title, of in cells.items()})
  return assemble(without_empty(columns))


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
  groups = comparison.groups
  return assemble(
    {
      'setting': [group.label for group in groups],
      'seeds': [str(len(group.runs)) for group in groups],
      'final perplexity': [
        mean_and_deviation(group.runs, final_value) for group in groups
      ],
      'best perplexity': [
        mean_and_deviation(group.runs, best_value) for group in groups
      ],
      'diverged': [
        str(sum(run.divergence is not None for run in group.runs))
        for group in groups
      ],
    }
  )


def implied_table(comparison: run_groups.Comparison) -> Table | None:
  """Builds the table of settings determined by those in labels, if any.

  Args:
    comparison: The runs.

  Returns:
    A row for each setting, a column for each set of runs that share them all;
    None if labels name all differing settings.
  """
  labels, implied = run_groups.implied(comparison)
  if not implied:
    return None
  kept = {'setting': tuple(map(run_groups.full_name, implied))}
  kept.update(zip(labels, zip(*implied.values())))
  return assemble(kept)


def state(run: Run) -> str:
  """Describes in a few words how a run ended or how far it is."""
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
  if values is None or not math.isfinite(values.iloc[-1]):
    return None
  return float(values.iloc[-1])


def best_value(run: Run) -> float | None:
  """Returns the lowest evaluation perplexity, None if there is none."""
  return run.summarize(run_files.PERPLEXITY, 'min')


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
    return MISSING
  forms = ((10, '.2f'), (1000, '.1f'), (1e7, ',.0f'))
  form = next((form for end, form in forms if abs(value) < end), '.2g')
  return f'{value:{form}}'


def cell(value: float | None, form: str) -> str:
  """Formats a number, or the sign for a missing one."""
  return MISSING if value is None else form.format(value)


def count(value: float | None) -> str:
  """Formats an integer with separators of thousands."""
  return MISSING if value is None else f'{int(value):,}'


def count_of(number_of_runs: int) -> str:
  """Returns `1 run`, `2 runs` and so on."""
  return f'{number_of_runs} run' + ('s' if number_of_runs != 1 else '')


def duration(secs: float | None) -> str:
  """Formats a duration."""
  if secs is None:
    return MISSING
  minutes, seconds = divmod(round(secs), 60)
  if not minutes:
    return f'{seconds} s'
  if minutes < 60:
    return f'{minutes} min {seconds:02d} s'
  return f'{minutes // 60:,} h {minutes % 60:02d} min'


def without_empty(
  columns: Mapping[str, Sequence[str]],
) -> Dict[str, Sequence[str]]:
  """Returns the columns that have any value."""
  return {
    title: cells for title, cells in columns.items() if set(cells) != {MISSING}
  }


def assemble(columns: Mapping[str, Sequence[str]]) -> Table:
  """Builds a table from columns of cells, by heading.

  Columns of numbers, except the first, are aligned right.
  """

  def is_numeric(cells: Iterable[str]) -> bool:
    return all(
      text[:1].isdigit() or text in (MISSING, _NOT_FINITE) for text in cells
    )

  return Table(
    columns=tuple(columns),
    rows=tuple(zip(*columns.values())),
    numeric=(False, *map(is_numeric, list(columns.values())[1:])),
  )


def best_round(run: Run) -> str:
  """Returns the round of the best perplexity, or accuracy, as text."""
  values = run.finite(run_files.PERPLEXITY)
  if run_files.has_classes(run):
    values = -run.finite(run_files.ACCURACY)
  return str(values.idxmin()) if len(values) else MISSING


def _accuracy(run: Run) -> str:
  column = run_files.ACCURACY_NO_OOV_NO_EOS
  if run_files.has_classes(run):
    column = run_files.ACCURACY
  value = run.last(column)
  return MISSING if value is None else f'{100 * value:.1f} %'


def _wall_time(run: Run) -> str:
  secs = run.wall_secs()
  return duration(float(secs.iloc[-1]) if len(secs) else None)


def _size(num_bytes: float | None) -> str:
  if num_bytes is None:
    return MISSING
  for unit in ('B', 'kB', 'MB'):
    if num_bytes < 1000:
      return f'{num_bytes:.3g} {unit}'
    num_bytes /= 1000
  return f'{num_bytes:.3g} GB'


def last_value(group: run_groups.Group, column: str) -> float | None:
  """Returns the mean of the last values of a column, None without any."""
  found = [run.last(column) for run in group.runs]
  known = [value for value in found if value is not None]
  return statistics.fmean(known) if known else None


def mean_and_deviation(
  runs: Sequence[Run], value: Callable[[Run], float | None]
) -> str:
  """Returns mean ± sample standard deviation over runs as text."""
  known: Sequence[float] = [one for one in map(value, runs) if one is not None]
  if not known or len(known) < len(runs):
    return f'known for {len(known)} of {len(runs)}'
  mean = statistics.fmean(known)
  if len(known) == 1:
    return number(mean)
  return f'{number(mean)} ± {number(statistics.stdev(known))}'
