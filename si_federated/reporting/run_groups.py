"""Settings that runs share, those in which they differ, and repeated runs."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from typing import Any, Dict, List, Sequence, Tuple

import pandas as pd

from si_federated.reporting.runs import Run

MISSING = '–'

# Settings written in the grammar `name:key=value,key=value`.
_PARTS = (
  'model', 'transform', 'task', 'algorithm', 'aggregator', 'compression',
  'client_optimizer', 'server_optimizer', 'runtime',
)  # fmt: skip
_FIRST = (
  'model', 'transform', 'client_optimizer', 'client_learning_rate',
  'server_optimizer', 'server_learning_rate', 'server_momentum',
  'clients_per_round', 'aggregator', 'clip_norm', 'noise_multiplier', 'task',
  'algorithm', 'total_rounds',
)  # fmt: skip
# If more settings differ, labels name only settings that determine the others,
# preferably these.
_MOST_NAMED = 3
_NAMED_FIRST = (
  'model', 'aggregator', 'target_epsilon', 'noise_multiplier',
  'client_learning_rate', 'server_learning_rate', 'compression',
)  # fmt: skip
_IDENTITY = frozenset(
  ['experiment_name', 'run_name', 'root_output_dir', 'diagnostics']
)
_SHORT = {
  'client_learning_rate': 'client lr',
  'server_learning_rate': 'server lr',
  'server_momentum': 'momentum',
  'clients_per_round': 'clients a round',
  'client_batch_size': 'batch size',
  'client_epochs_per_round': 'client epochs',
}


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ only in their seeds.

  Attributes:
    label: Distinguishes this group from the others; short enough for a figure.
    settings: Differing setting -> its value in this group.
    runs: The runs, at least one.
    label_settings: The settings that the label names: if many differ, those
      that determine all others.
  """

  label: str
  settings: Dict[str, str]
  runs: Tuple[Run, ...]
  label_settings: Tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Runs compared with one another.

  Attributes:
    groups: The runs, grouped by all settings but their seeds.
    differing: Names of the settings in which the runs differ, including seeds.
    shared: Setting -> value, for those that are the same in all runs.
  """

  groups: Tuple[Group, ...]
  differing: Tuple[str, ...]
  shared: Dict[str, str]

  @property
  def runs(self) -> List[Run]:
    """The runs of all groups."""
    return [run for group in self.groups for run in group.runs]


def settings_of(run: Run) -> Dict[str, str]:
  """Returns a run's settings as text, parts split into name and options.

  `{'model': 'cifg:units=670'}` becomes `{'model': 'cifg', 'model.units':
  '670'}`. Unset settings, and those that only name the run, are left out.

  Args:
    run: The run.

  Returns:
    Setting -> value, the most important settings first.
  """
  settings = {}
  for name, value in run.config.items():
    if name in _IDENTITY or value is None or value == '' or value == []:
      continue
    text = _as_text(value)
    if name in _PARTS:
      text, _, options = text.partition(':')
      # Commas inside brackets belong to a value.
      for option in re.split(r',(?![^(\[]*[)\]])', options):
        key, _, setting = option.partition('=')
        if key:
          settings[f'{name}.{key.strip()}'] = _as_text(_number(setting))
    settings[name] = text
  return dict(sorted(settings.items(), key=lambda item: _rank(item[0])))


def heading(name: str) -> str:
  """Returns a setting's name for tables and labels."""
  part, _, option = name.partition('.')
  if part == 'model' and option:
    part, option = option, ''
  words = _SHORT.get(part, part.replace('_', ' '))
  return f'{words} {option.replace("_", " ")}'.strip()


def full_name(name: str) -> str:
  """Returns a setting's name, spelled out."""
  part, _, option = name.partition('.')
  words = f'{part} {option}'.replace('_', ' ').strip()
  return re.sub(r'\bnum\b', 'number of', words)


def is_seed(name: str) -> bool:
  """Whether a setting is a random seed."""
  return name == 'seed' or name.endswith(('_seed', '.seed'))


def compare(runs: Sequence[Run]) -> Comparison:
  """Sorts settings into shared and differing, and runs into groups.

  Args:
    runs: At least one run, in the order in which to show them.

  Returns:
    The comparison, its groups in the order of their first runs.
  """
  settings = [settings_of(run) for run in runs]
  known = [one for one in settings if one]
  shared, differing = {}, []
  for name in sorted(set().union(*settings), key=_rank):
    if len({one.get(name) for one in known}) > 1:
      differing.append(name)
    else:
      shared[name] = known[0][name]

  varied = [name for name in differing if not is_seed(name)]
  seeds = [name for name in differing if is_seed(name)]
  alike: Dict[Tuple[str, ...], List[int]] = collections.defaultdict(list)
  for index, one in enumerate(settings):
    chosen = [one.get(name, MISSING) for name in varied]
    # A run with unknown settings has a group of its own.
    alike[(*chosen, '' if one else str(index))].append(index)
  groups = []
  named = _independent(varied, [key[:-1] for key in alike])
  for key, members in alike.items():
    values = dict(zip(varied, key))
    drawn = {tuple(settings[i].get(s) for s in seeds) for i in members}
    label = _label({name: values[name] for name in named})
    label = label or shared.get('model', '')
    # Runs with the same seeds aren't repetitions: they differ in something that
    # the settings don't show.
    repeated = len(drawn) == len(members)
    for cluster in [members] if repeated else [[i] for i in members]:
      first = runs[cluster[0]]
      known_label = label if repeated and settings[cluster[0]] else ''
      group = Group(
        known_label or first.name,
        values,
        tuple(runs[i] for i in cluster),
        named,
      )
      groups.append((cluster[0], group))
  groups.sort(key=lambda pair: pair[0])
  return Comparison(
    tuple(group for _, group in groups), tuple(differing), shared
  )


def _independent(
  names: Sequence[str], rows: Sequence[Tuple[str, ...]]
) -> Tuple[str, ...]:
  """Returns settings that suffice to distinguish all rows.

  Recipes differ in many settings at once: a private aggregator has its own clip
  norm, server optimizer and so on. Settings that those already chosen determine
  are left out. If only a few settings differ, all are kept.
  """
  if len(names) <= _MOST_NAMED:
    return tuple(names)
  first = [name for name in _NAMED_FIRST if name in names]
  table = pd.DataFrame(rows, columns=list(names))
  kept: List[str] = []
  distinct = 1
  for name in dict.fromkeys((*first, *names)):
    found = len(table[[*kept, name]].drop_duplicates())
    if found > distinct:
      kept.append(name)
      distinct = found
  return tuple(name for name in names if name in kept)


def _label(values: Dict[str, str]) -> str:
  pieces = []
  for name, value in values.items():
    if value == MISSING and '.' in name:
      continue
    plain = name in _PARTS and value != MISSING
    pieces.append(value if plain else f'{heading(name)} {value}')
  return ', '.join(pieces)


def implied(
  comparison: Comparison,
) -> Tuple[Tuple[str, ...], Dict[str, Tuple[str, ...]]]:
  """Returns the settings that those named in labels determine.

  Args:
    comparison: The runs.

  Returns:
    Labels of the sets of runs that share all these settings, and setting -> its
    value in each set; no settings if the labels name all differing ones.
  """
  groups = comparison.groups
  key = groups[0].label_settings
  names = tuple(
    name
    for name in comparison.differing
    if not is_seed(name) and name not in key
  )
  # Drops a setting, such as a learning rate, that determines no other.
  for name in key:
    fewer = tuple(one for one in key if one != name)
    if len(_rows(groups, fewer + names)) == len(_rows(groups, fewer)):
      key = fewer
  rows = _rows(groups, key + names)
  labels = tuple(_label(dict(zip(key, row))) for row in rows)
  return labels, dict(zip(names, zip(*(row[len(key) :] for row in rows))))


def _rows(
  groups: Sequence[Group], names: Sequence[str]
) -> List[Tuple[str, ...]]:
  """Returns the distinct combinations of some settings' values."""
  rows = (tuple(group.settings[name] for name in names) for group in groups)
  return list(dict.fromkeys(rows))


def without(group: Group, *names: str) -> str:
  """Returns a group's label without some settings, such as the x-axis's."""
  return _label(
    {
      name: group.settings[name]
      for name in group.label_settings
      if name not in names
    }
  )


def _rank(name: str) -> Tuple[int, str]:
  part = name.partition('.')[0]
  return (_FIRST.index(part) if part in _FIRST else len(_FIRST), name)


def _number(text: str) -> Any:
  try:
    return float(text) if math.isfinite(float(text)) else text
  except ValueError:
    return text


def _as_text(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:.6g}' if abs(value) < 1e6 else f'{value:.0f}'
  if isinstance(value, dict):
    return ', '.join(f'{key}={_as_text(one)}' for key, one in value.items())
  if isinstance(value, (list, tuple)):
    return ', '.join(map(_as_text, value))
  return str(value)
