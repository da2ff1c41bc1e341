"""The tuned settings of a sweep, and the best setting of each kind of run."""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Dict, List, Sequence, Tuple

from si_federated.reporting import run_groups, tables
from si_federated.reporting import runs as run_files
from si_federated.reporting.run_groups import Comparison, Group
from si_federated.reporting.runs import Run

# Settings for which a fair comparison uses the best value of each model.
TUNED = (
  'client_learning_rate',
  'server_learning_rate',
  'server_momentum',
  'clip_norm',
)
_SWEPT = ('client_learning_rate', 'server_learning_rate')
# A curve needs this many values.
_LEAST_VALUES = 3


@dataclasses.dataclass(frozen=True)
class Kind:
  """Groups of runs that differ only in tuned settings.

  Attributes:
    label: Distinguishes this kind from the others.
    groups: The settings that were tried.
    best: The setting with the lowest mean final perplexity over its seeds, if
      possible without a diverged run.
  """

  label: str
  groups: Tuple[Group, ...]
  best: Group

  @property
  def num_runs(self) -> int:
    """Runs of all its settings."""
    return sum(len(group.runs) for group in self.groups)

  @property
  def num_diverged(self) -> int:
    """Runs that diverged, of all its settings."""
    return sum(map(num_diverged, self.groups))


def num_diverged(group: Group) -> int:
  """Returns how many runs of a group diverged."""
  return sum(run.divergence is not None for run in group.runs)


def final_runs(group: Group) -> List[Run]:
  """Returns the runs whose last results count as final.

  These are the finished runs that didn't diverge. Unfinished runs, which look
  worse than they are, count only if no run has finished.
  """
  known = [run for run in group.runs if run.divergence is None]
  return [run for run in known if run.finished] or known


def final_values(group: Group) -> List[float]:
  """Returns the final perplexities of `final_runs`."""
  known = [tables.final_value(run) for run in final_runs(group)]
  return [value for value in known if value is not None]


def best_of(groups: Sequence[Group]) -> Group:
  """Returns the group with the lowest mean final perplexity.

  Groups with diverged runs, or without an evaluation, come last.
  """

  def score(group: Group) -> Tuple[int, float]:
    known = final_values(group)
    if not known:
      return len(group.runs), math.inf
    return num_diverged(group), sum(known) / len(known)

  return min(groups, key=score)


def find_kinds(
  comparison: Comparison, without: Sequence[str] = TUNED
) -> List[Kind]:
  """Collects the groups that agree in all settings except the ignored ones.

  Args:
    comparison: The runs.
    without: The settings to ignore.

  Returns:
    The kinds, in the order of their first groups.
  """
  found: Dict[Tuple[str, ...], List[Group]] = {}
  alike = collections.Counter(
    tuple(group.settings.values()) for group in comparison.groups
  )
  for group in comparison.groups:
    key = tuple(
      value for name, value in group.settings.items() if name not in without
    )
    # A group that its settings don't distinguish becomes a kind of its own.
    if alike[tuple(group.settings.values())] > 1 or not group.runs[0].config:
      key = (*key, group.label)
    found.setdefault(key, []).append(group)
  kinds = []
  for groups in found.values():
    label = run_groups.without(groups[0], *without)
    if not label:
      shared = comparison.shared.get('model', 'all runs')
      label = shared if len(found) == 1 else groups[0].label
    kinds.append(Kind(label, tuple(groups), best_of(groups)))
  return kinds


def is_tuned(kinds: Sequence[Kind]) -> bool:
  """Whether any kind was run in more than one setting."""
  return any(len(kind.groups) > 1 for kind in kinds)


def swept_rate(comparison: Comparison) -> str | None:
  """Returns the learning rate tried at three values or more, or None."""
  for name in _SWEPT:
    if len(rates_of(comparison.groups, name)) >= _LEAST_VALUES:
      return name
  return None


def rates_of(groups: Sequence[Group], rate: str) -> Dict[float, List[Group]]:
  """Returns the groups by a learning rate, in ascending order."""
  found: Dict[float, List[Group]] = {}
  for group in groups:
    try:
      value = float(group.settings[rate])
    except (KeyError, ValueError):
      continue
    found.setdefault(value, []).append(group)
  return dict(sorted(found.items()))


def best_table(comparison: Comparison) -> tables.Table | None:
  """Builds the table with the best setting of each kind, if any was tuned."""
  kinds = find_kinds(comparison)
  if not is_tuned(kinds):
    return None
  columns: Dict[str, List[str]] = {'kind': [kind.label for kind in kinds]}
  for name in TUNED:
    if name in comparison.differing:
      columns[f'best {run_groups.heading(name)}'] = [
        kind.best.settings[name] for kind in kinds
      ]
  columns['of settings'] = [str(len(kind.groups)) for kind in kinds]
  columns['seeds'] = [str(len(final_runs(kind.best))) for kind in kinds]
  columns['final perplexity'] = [
    tables.mean_and_deviation(final_runs(kind.best), tables.final_value)
    for kind in kinds
  ]
  columns['ε'] = [
    tables.cell(tables.last_value(kind.best, run_files.EPSILON), '{:.3g}')
    for kind in kinds
  ]
  columns['diverged, all settings'] = [
    f'{kind.num_diverged} of {kind.num_runs} runs' for kind in kinds
  ]
  return tables.assemble(tables.without_empty(columns))


def rate_heading(comparison: Comparison) -> str:
  """Returns the heading of `rate_table`."""
  rate = swept_rate(comparison) or 'learning rate'
  return f'Final perplexity by {rate.replace("_", " ")}'


def rate_table(comparison: Comparison) -> tables.Table | None:
  """Builds the table of final perplexity by kind and learning rate.

  Args:
    comparison: The runs.

  Returns:
    The table, or None if no learning rate was tried at three values. If other
    settings were tuned too, a cell is the best of them.
  """
  rate = swept_rate(comparison)
  if rate is None:
    return None
  rates = rates_of(comparison.groups, rate)
  kinds = [
    kind for kind in find_kinds(comparison) if rates_of(kind.groups, rate)
  ]
  columns: Dict[str, List[str]] = {'kind': [kind.label for kind in kinds]}
  for value in rates:
    columns[f'{value:g}'] = [
      _cell(rates_of(kind.groups, rate).get(value, [])) for kind in kinds
    ]
  return tables.assemble(columns)


def _cell(groups: Sequence[Group]) -> str:
  if not groups:
    return run_groups.MISSING
  group = best_of(groups)
  diverged = num_diverged(group)
  if not diverged:
    return tables.mean_and_deviation(final_runs(group), tables.final_value)
  return f'{diverged} of {len(group.runs)} diverged'
