"""Shows a sweep's progress: a live table on a terminal, else plain lines."""

from __future__ import annotations

import collections
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from si_federated.sweeps import runner
from si_federated.sweeps.runner import Run
from si_federated.training.progress import duration

_LOG_SECS = 60.0
# The most important states come first, in case not all rows fit the terminal.
_ORDER = (runner.RUNNING, runner.FAILED, runner.FINISHED, runner.WAITING)
_COLUMNS = ('run', 'state', 'round', 'result', 'time')
_STYLES = {runner.RUNNING: 'bold', runner.FAILED: 'red', runner.WAITING: 'dim'}


class Lines:
  """Writes a line when a run starts or ends, and another every minute.

  Args:
    runs: The runs of the sweep.
    stream: The output; standard output if None.
    clock: Returns the time in seconds; for tests.
  """

  def __init__(
    self,
    runs: Sequence[Run],
    stream: TextIO | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._runs = runs
    self._stream = stream or sys.stdout
    self._clock = clock
    self._estimate = Estimate(runs, clock)
    self._written = clock()

  def __enter__(self):
    self._write(headline(self._runs))
    return self

  def __exit__(self, *unused_error):
    self._write(headline(self._runs))

  def changed(self, run: Run | None) -> None:
    """Reports a run whose state has changed, or all runs."""
    now = self._clock()
    if run is None:
      if now - self._written < _LOG_SECS:
        return
      running = [one for one in self._runs if one.state == runner.RUNNING]
      where = ', '.join(f'{one.name} {_round(one)}' for one in running)
      self._write(f'{headline(self._runs)}{self._estimate.left()}: {where}')
      return
    text = f'{run.state}: {run.name}'
    if run.state == runner.RUNNING:
      at = f', from round {run.round_num}' if run.round_num else ''
      text = f'started: {run.name}{at}'
    elif run.state == runner.FINISHED:
      facts = filter(None, (_result(run), duration(run.secs)))
      text += f' ({", ".join(facts)})'
    elif run.state == runner.FAILED:
      text = _failure(run)
    self._write(text)

  def _write(self, text: str) -> None:
    self._written = self._clock()
    print(text, file=self._stream, flush=True)


class Live:
  """A table that is kept up to date in place.

  Args:
    runs: The runs of the sweep.
  """

  def __init__(self, runs: Sequence[Run]):
    from rich import live

    self._runs = runs
    self._estimate = Estimate(runs, time.monotonic)
    self._live: Any = live.Live(self._table(), refresh_per_second=4)

  def __enter__(self):
    self._live.__enter__()
    return self

  def __exit__(self, *error):
    self._live.update(self._table())
    self._live.__exit__(*error)
    for run in self._runs:
      if run.state == runner.FAILED:
        print(_failure(run))

  def changed(self, unused_run: Run | None) -> None:
    """Updates the table."""
    self._live.update(self._table())

  def _table(self) -> Any:
    from rich import table

    height = max(5, shutil.get_terminal_size().lines - 5)
    rows, hidden = table_rows(self._runs, height)
    shown = table.Table(
      title=headline(self._runs) + self._estimate.left(),
      title_justify='left',
      caption=hidden or None,
      caption_justify='left',
      box=None,
      pad_edge=False,
    )
    for name in _COLUMNS:
      right = name in ('round', 'result', 'time')
      shown.add_column(
        name, justify='right' if right else 'left', no_wrap=name != 'run',
        overflow='fold',
      )  # fmt: skip
    for row in rows:
      shown.add_row(*row, style=_STYLES.get(row[1]))
    return shown


def show(runs: Sequence[Run]) -> Live | Lines:
  """Returns a live table on a terminal if `rich` is installed, else lines."""
  if sys.stdout.isatty():
    try:
      return Live(runs)
    except ImportError:
      pass
  return Lines(runs)


class Estimate:
  """Estimates the remaining time from the rounds of this session."""

  def __init__(self, runs: Sequence[Run], clock: Callable[[], float]):
    self._runs = runs
    self._clock = clock
    self._start = clock(), runner.progress(runs)[0]

  def left(self) -> str:
    """Returns a clause such as `, about 5m00s left`; empty if unknown."""
    done, total = runner.progress(
      [one for one in self._runs if one.state != runner.FAILED]
    )
    new = done - self._start[1]
    if new <= 0 or done >= total:
      return ''
    secs = (self._clock() - self._start[0]) * (total - done) / new
    return f', about {duration(secs)} left'


def headline(runs: Sequence[Run]) -> str:
  """Returns the number of runs in each state."""
  states = collections.Counter(run.state for run in runs)
  parts = [f'{states[runner.FINISHED]} of {len(runs)} runs finished']
  parts += [
    f'{states[state]} {state}'
    for state in (runner.RUNNING, runner.FAILED, runner.WAITING)
    if states[state]
  ]
  return ', '.join(parts)


def table_rows(
  runs: Sequence[Run], height: int
) -> tuple[list[tuple[str, ...]], str]:
  """Returns the rows that fit on a terminal.

  Args:
    runs: The runs of the sweep.
    height: Maximum number of rows.

  Returns:
    Rows of name, state, round, result and time, active runs first; and a note
    on the runs left out, empty if there are none.
  """
  ordered = sorted(runs, key=lambda run: _ORDER.index(run.state))
  hidden = len(ordered) - height
  rows: list[tuple[str, ...]] = [
    (
      run.name,
      run.state,
      _round(run),
      _result(run),
      duration(run.secs) if run.secs else '',
    )
    for run in ordered[:height]
  ]
  return rows, f'... and {hidden} more' if hidden > 0 else ''


def _failure(run: Run) -> str:
  return f'failed: {run.name}: {run.error} (full output: {run.log})'


def _round(run: Run) -> str:
  return f'{run.round_num}/{run.settings.total_rounds}'


def _result(run: Run) -> str:
  """Returns the last evaluation: perplexity, or accuracy of classifiers."""
  if run.perplexity is not None:
    big = not run.perplexity < 1e5
    number = f'{run.perplexity:.3g}' if big else f'{run.perplexity:.1f}'
    return f'perplexity {number}'
  return '' if run.accuracy is None else f'accuracy {run.accuracy:.1%}'
