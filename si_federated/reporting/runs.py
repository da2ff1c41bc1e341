"""Reads run folders in any state: settings, task, measurements."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import pathlib
import re
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np
import pandas as pd

METRICS_FILE = 'metrics.csv'
ROUND = 'round_num'
LOSS = 'train/loss'
PERPLEXITY = 'eval/perplexity'
EVAL_LOSS = 'eval/loss'
ACCURACY = 'eval/accuracy'
ACCURACY_NO_OOV = 'eval/accuracy_no_oov'
ACCURACY_NO_OOV_NO_EOS = 'eval/accuracy_no_oov_no_eos'
ROUND_SECS = 'round_secs'
TOTAL_SECS = 'secs_total'
BYTES_UP = 'bytes_up_per_client'
BYTES_DOWN = 'bytes_down_per_client'
BYTES_UP_TOTAL = 'bytes_up_total'
EPSILON = 'privacy/epsilon'

# A run counts as diverged once its perplexity exceeds the first multiple of its
# starting value, or if its last one exceeds the second multiple.
DIVERGENCE_FACTOR = 10.0
_LAST_FACTOR = 2.0


@dataclasses.dataclass(frozen=True)
class Divergence:
  """Where a run diverged.

  Attributes:
    round_num: The round at which it was first seen.
    reason: The symptom, as the end of a sentence about the run.
  """

  round_num: int
  reason: str


@dataclasses.dataclass(frozen=True)
class Run:
  """The contents of a run folder.

  Attributes:
    path: The folder.
    name: The experiment's name.
    config: `config.json`, empty if missing.
    task: `task.json`, empty if missing.
    summary: `summary.json`, empty until the run has ended.
    series: Column of `metrics.csv` -> its values by round number, for rounds
      that have the value, including NaN and infinities.
    last_round: The last round in `metrics.csv`, 0 if there is none.
    divergence: Where the run diverged, or None.
    notes: Sentences about oddities of the folder.
    privacy: `privacy.json`, empty if missing.
  """

  path: pathlib.Path
  name: str
  config: Mapping[str, Any]
  task: Mapping[str, Any]
  summary: Mapping[str, Any]
  series: Mapping[str, pd.Series]
  last_round: int
  divergence: Divergence | None
  notes: Tuple[str, ...]
  privacy: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def total_rounds(self) -> int | None:
    """The round at which the run will end, None if unknown."""
    value = self.config.get('total_rounds')
    return value if isinstance(value, int) else None

  @property
  def finished(self) -> bool:
    """Whether the run wrote its summary."""
    return bool(self.summary)

  @property
  def num_parameters(self) -> int | None:
    """Parameters of the model, None if no file states them."""
    for source in (self.summary, self.task, self.config):
      for key in ('num_parameters', 'num_trainable_parameters'):
        if isinstance(source.get(key), (int, float)):
          return int(source[key])
    return None

  @property
  def reference_perplexity(self) -> Dict[str, float]:
    """Perplexities to compare with, as `{'unigram': 412.0}`."""
    lines = self.task.get('reference_perplexity')
    if not isinstance(lines, dict):
      return {}
    return {
      str(name): float(value)
      for name, value in lines.items()
      if isinstance(value, (int, float)) and 0 < value < math.inf
    }

  def finite(self, column: str) -> pd.Series:
    """Returns the finite values of a column by round; empty if it's missing."""
    values = self.series.get(column)
    if values is None:
      return pd.Series(dtype=float)
    return values[np.isfinite(values)]

  def last(self, column: str) -> float | None:
    """Returns the last finite value of a column, None if there is none."""
    values = self.finite(column)
    return float(values.iloc[-1]) if len(values) else None

  def summarize(self, column: str, statistic: str) -> float | None:
    """Returns a pandas statistic of the finite values, None without any."""
    values = self.finite(column)
    return float(values.agg(statistic)) if len(values) else None

  def wall_secs(self) -> pd.Series:
    """Returns the seconds of training up to each round, where known."""
    total = self.finite(TOTAL_SECS)
    return total if len(total) else self.finite(ROUND_SECS).cumsum()


def has_classes(run: Run) -> bool:
  """Whether a run trains a classifier, which has no perplexity."""
  return 'classes' in run.task


def find_runs(paths: Sequence[str]) -> List[pathlib.Path]:
  """Finds the run folders in a user's paths.

  Args:
    paths: Run folders, or folders whose children are run folders.

  Returns:
    The run folders in the order given, without duplicates; children are sorted
    by name, numbers in numerical order.

  Raises:
    FileNotFoundError: If a folder doesn't exist or contains no run.
  """
  found: List[pathlib.Path] = []
  for path in map(pathlib.Path, paths):
    if not path.is_dir():
      raise FileNotFoundError(
        f'There is no folder {path}; give run folders or a folder of them.'
      )
    if (path / METRICS_FILE).is_file():
      found.append(path)
      continue
    children = [file.parent for file in path.glob(f'*/{METRICS_FILE}')]
    if not children:
      raise FileNotFoundError(
        f'Neither {path} nor a folder in it has a {METRICS_FILE}; give a run '
        'folder written by experiments.train.'
      )
    found.extend(sorted(children, key=lambda child: _natural(child.name)))
  return list({path.resolve(): path.absolute() for path in found}.values())


def read_run(path: pathlib.Path) -> Run:
  """Reads one run folder, finished or not.

  Args:
    path: Folder with `metrics.csv` and, if they exist, `config.json`,
      `task.json`, `summary.json` and `privacy.json`.

  Returns:
    The run.

  Raises:
    FileNotFoundError: If `metrics.csv` is missing.
    ValueError: If a file is empty, garbled, or lacks a column.
  """
  notes: List[str] = []
  config = read_json(path / 'config.json')
  if not config:
    notes.append('config.json is missing, so its settings are not shown.')
  series, torn = _read_metrics(path / METRICS_FILE)
  if torn:
    notes.append(f'the incomplete last line of {METRICS_FILE} was left out.')
  rounds = [values.index[-1] for values in series.values() if len(values)]
  return Run(
    path=path,
    name=str(config.get('experiment_name') or path.name),
    config=config,
    task=read_json(path / 'task.json'),
    summary=read_json(path / 'summary.json'),
    series=series,
    last_round=int(max(rounds)) if rounds else 0,
    divergence=_find_divergence(series),
    notes=tuple(notes),
    privacy=read_json(path / 'privacy.json'),
  )


def _natural(name: str) -> List[Tuple[int, float, str]]:
  """Returns a sort key by which `lr0.3` comes before `lr3` and `lr10`."""
  parts = re.split(r'(\d+(?:\.\d+)?)', name)
  return [
    (1, float(part), '') if index % 2 else (0, 0.0, part)
    for index, part in enumerate(parts)
  ]


def read_json(path: pathlib.Path) -> Dict[str, Any]:
  """Reads a JSON object from a run's folder.

  Args:
    path: The file.

  Returns:
    The object; empty if the file is missing.

  Raises:
    ValueError: If the file is not a JSON object.
  """
  if not path.is_file():
    return {}
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except ValueError:
    content = None
  if not isinstance(content, dict):
    raise ValueError(
      f'{path} is not a JSON object; restore it, or delete it to report '
      'without it.'
    )
  return content


def _read_metrics(path: pathlib.Path) -> Tuple[Dict[str, pd.Series], bool]:
  """Returns the columns of a metrics file and whether its end is torn."""
  try:
    data = path.read_bytes()
    torn = bool(data) and not data.endswith(b'\n')
    if torn and b'\n' in data:  # The run is writing, or was killed doing so.
      data = data[: data.rindex(b'\n') + 1]
    rows = list(csv.reader(data.decode('utf-8').splitlines()))
  except FileNotFoundError:
    raise FileNotFoundError(
      f'{path} does not exist; give a run folder written by experiments.train.'
    ) from None
  except (UnicodeDecodeError, csv.Error):
    raise ValueError(
      f'{path} is not a CSV file; leave this run out or restore the file.'
    ) from None
  if not rows or not any(rows[0]):
    raise ValueError(f'{path} is empty; leave this run out or run it again.')
  header = rows[0]
  if ROUND not in header:
    raise ValueError(
      f'{path} has no column {ROUND}; it must be a metrics file written by '
      'experiments.train.'
    )
  if not {LOSS, PERPLEXITY, EVAL_LOSS} & set(header) and len(rows) > 1:
    raise ValueError(
      f'{path} has none of the columns {LOSS}, {PERPLEXITY} and {EVAL_LOSS}; '
      'there is nothing to report.'
    )
  table: Dict[int, Dict[str, float]] = {}
  for line, row in enumerate(rows[1:], start=2):
    if not row:
      continue
    if len(row) != len(header):
      raise ValueError(
        f'{path}, line {line}, has {len(row)} fields instead of {len(header)}; '
        'remove the line or leave this run out.'
      )
    values = _read_row(path, line, header, row)
    # A resumed run can write a round again; its last row counts.
    table[int(values[ROUND])] = values
  series = {}
  for column in header:
    cells = {r: table[r][column] for r in sorted(table) if column in table[r]}
    if cells and column != ROUND:
      series[column] = pd.Series(cells, dtype=float)
  # An empty column means that the loss is not per token.
  if PERPLEXITY not in header and EVAL_LOSS in series:
    with np.errstate(over='ignore'):
      series[PERPLEXITY] = series[EVAL_LOSS].apply(np.exp)
  return series, torn


def _read_row(
  path: pathlib.Path, line: int, header: List[str], row: List[str]
) -> Dict[str, float]:
  values = {}
  for column, cell in zip(header, row):
    if not cell.strip():
      continue
    try:
      values[column] = float(cell)
    except ValueError:
      if column in _NUMERIC:
        raise ValueError(
          f'{path}, line {line}, column {column}: {cell[:40]!r} is not a '
          'number; fix the line or leave this run out.'
        ) from None
  if not values.get(ROUND, math.nan).is_integer():
    raise ValueError(
      f'{path}, line {line}, has no whole number in column {ROUND}; fix the '
      'line or leave this run out.'
    )
  return values


_NUMERIC = frozenset(
  [
    ROUND, LOSS, PERPLEXITY, EVAL_LOSS, ACCURACY, ACCURACY_NO_OOV,
    ACCURACY_NO_OOV_NO_EOS, ROUND_SECS, TOTAL_SECS, BYTES_UP, BYTES_DOWN,
    BYTES_UP_TOTAL, EPSILON,
  ]
)  # fmt: skip


def _find_divergence(series: Mapping[str, pd.Series]) -> Divergence | None:
  none = pd.Series(dtype=float)
  loss, perplexity = (series.get(name, none) for name in (LOSS, PERPLEXITY))
  known = perplexity[np.isfinite(perplexity)]
  start = known.iloc[0] if len(known) else math.nan
  high = known[known > DIVERGENCE_FACTOR * start]
  last = known[-1:] if not len(high) else none
  symptoms = {
    'its training loss became non-finite': loss[~np.isfinite(loss)],
    'its perplexity became non-finite': perplexity[~np.isfinite(perplexity)],
    f'its perplexity passed {DIVERGENCE_FACTOR:g} times its starting '
    'value': high,
    f'its last perplexity is over {_LAST_FACTOR:g} times its starting '
    'value': last[last > _LAST_FACTOR * start],
  }
  found = [
    Divergence(int(rounds.index[0]), reason)
    for reason, rounds in symptoms.items()
    if len(rounds)
  ]
  return min(found, key=lambda one: one.round_num) if found else None
