"""The figure of final results against a numeric setting of the runs."""

from __future__ import annotations

from typing import Dict, List

import numpy as np
from matplotlib import ticker

from si_federated.reporting import (
  best_settings,
  best_settings_figures,
  line_styles,
  plotting,
  run_groups,
)
from si_federated.reporting import runs as run_files
from si_federated.reporting.plotting import Picture
from si_federated.reporting.run_groups import Comparison

# These have figures of their own.
_NOT_DRAWN = frozenset((*best_settings.TUNED, *best_settings_figures.NOISE))
_FEWEST = 3


def varied_number(comparison: Comparison) -> str | None:
  """Returns the numeric setting that takes the most values.

  Args:
    comparison: The runs.

  Returns:
    A setting that is a number in all groups and takes at least three values;
    None if there is none. Options of the task come before other settings.
  """
  found = []
  for name in comparison.differing:
    if name in _NOT_DRAWN or run_groups.is_seed(name):
      continue
    values = {group.settings.get(name, '') for group in comparison.groups}
    if len(values) >= _FEWEST and all(map(_is_number, values)):
      found.append((not name.startswith('task.'), -len(values), name))
  return min(found)[2] if found else None


def by_number(comparison: Comparison) -> Picture | None:
  """Draws the final result against a numeric setting in which runs differ.

  Args:
    comparison: The runs.

  Returns:
    The picture, of accuracy for classifiers and of perplexity for language
    models; None if there is no such setting.
  """
  name = varied_number(comparison)
  if name is None:
    return None
  is_language = any(
    len(run.finite(run_files.PERPLEXITY)) for run in comparison.runs
  )
  column = run_files.PERPLEXITY if is_language else run_files.ACCURACY
  lines: Dict[str, Dict[float, List[float]]] = {}
  hidden = _following(comparison, name)
  for group in comparison.groups:
    last = [run.last(column) for run in best_settings.final_runs(group)]
    finals = [value for value in last if value is not None]
    if finals:
      label = run_groups.without(group, name, *hidden) or 'all runs'
      points = lines.setdefault(label, {})
      points.setdefault(float(group.settings[name]), []).extend(finals)
  if not lines or max(map(len, lines.values())) < _FEWEST:
    return None
  what = 'perplexity' if is_language else 'accuracy'
  words = run_groups.full_name(name.partition('.')[2] or name)
  caption = f'Final validation {what} of each run against {words}.'
  figure, axes = plotting.blank_axes(f'Final validation {what}', len(lines))
  finals = [v for points in lines.values() for p in points.values() for v in p]
  references = {} if is_language else _references(comparison)
  if is_language:
    plotting.scale_y(axes, min(finals), max(finals))
  else:
    axes.set_ylim(0, min(1.0, 1.1 * max([*finals, *references.values()])) or 1)
    axes.yaxis.set_major_formatter(plotting.percent)
  shaded = False
  styles = line_styles.palette_styles(len(lines))
  for style, (label, points) in zip(styles, lines.items()):
    x = sorted(points)
    mean = np.array([np.mean(points[place]) for place in x])
    low = np.array([min(points[place]) for place in x])
    high = np.array([max(points[place]) for place in x])
    shaded |= plotting.draw_band(
      axes, np.array(x), mean, low, high, style,
      label=label, marker=style.marker or 'o',
    )  # fmt: skip
  caption += ' Line: mean over runs; shade: smallest to largest.' * shaded
  for label, value in references.items():
    plotting.draw_level(axes, value, f'{label} {value:.0%}')
  if references:
    caption += ' Dashed: accuracy of guessing the most frequent class.'
  places = sorted({place for points in lines.values() for place in points})
  if places[0] > 0 and places[-1] >= 8 * places[0]:
    axes.set_xscale('log', base=2)
  axes.set_xticks(places if len(places) <= 12 else places[:: len(places) // 6])
  axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}')
  axes.xaxis.set_minor_locator(ticker.NullLocator())
  axes.set_xlabel(words.capitalize())
  option = name.replace('.', '_')
  return plotting.finish(f'final_by_{option}', caption, figure, axes)


def _is_number(text: str) -> bool:
  try:
    return bool(np.isfinite(float(text)))
  except ValueError:
    return False


def _following(comparison: Comparison, name: str) -> List[str]:
  """Returns the settings that are determined by the value of another one."""
  found = []
  for other in comparison.differing:
    if other == name or run_groups.is_seed(other):
      continue
    pairs = {
      (group.settings.get(name), group.settings.get(other))
      for group in comparison.groups
    }
    if len(pairs) == len({value for value, _ in pairs}):
      found.append(other)
  return found


def _references(comparison: Comparison) -> Dict[str, float]:
  """Returns accuracies to compare with, the highest of each name."""
  lines: Dict[str, float] = {}
  for run in comparison.runs:
    known = run.task.get('reference_accuracy')
    for label, value in (known if isinstance(known, dict) else {}).items():
      if isinstance(value, (int, float)):
        lines[str(label)] = max(float(value), lines.get(str(label), 0.0))
  return lines
