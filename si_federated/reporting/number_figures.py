"""The figure of final results against a number in which runs differ."""

from __future__ import annotations

from typing import Dict, List, Tuple

import numpy as np
from matplotlib import ticker

from si_federated.reporting import (
  best_settings,
  line_styles,
  plotting,
  run_groups,
)
from si_federated.reporting import runs as run_files
from si_federated.reporting.plotting import Label, Picture

# Drawn elsewhere, or no sizes of anything.
_NOT_DRAWN = frozenset(
  (
    *best_settings.TUNED,
    'target_epsilon',
    'noise_multiplier',
    'noise_cohort_size',
  )
)
_FEWEST = 3


def varied_number(comparison: run_groups.Comparison) -> str | None:
  """Returns the setting whose number differs most often between runs.

  Args:
    comparison: The runs.

  Returns:
    A setting that is a number in all groups, of three values or more; None if
    there is none. Options of the task come before other settings.
  """
  found: List[Tuple[int, int, str]] = []
  for name in comparison.differing:
    if name in _NOT_DRAWN or run_groups.is_seed(name):
      continue
    values = {group.settings.get(name, '') for group in comparison.groups}
    if len(values) >= _FEWEST and all(map(_is_number, values)):
      found.append((not name.startswith('task.'), -len(values), name))
  return min(found)[2] if found else None


def by_number(comparison: run_groups.Comparison) -> Picture | None:
  """Draws the final result against a number in which runs differ.

  Args:
    comparison: The runs.

  Returns:
    The picture, of accuracy for classifiers and of perplexity for language
    models; None if there is no such number.
  """
  name = varied_number(comparison)
  if name is None:
    return None
  runs = [run for group in comparison.groups for run in group.runs]
  is_language = any(len(run.finite(run_files.PERPLEXITY)) for run in runs)
  column = run_files.PERPLEXITY if is_language else run_files.ACCURACY
  lines: Dict[str, Dict[float, List[float]]] = {}
  hidden = _following(comparison, name)
  for group in comparison.groups:
    finals = [
      float(values.iloc[-1])
      for run in best_settings.final_runs(group)
      if len(values := run.finite(column))
    ]
    if finals:
      label = run_groups.without(group, name, *hidden) or 'all runs'
      points = lines.setdefault(label, {})
      points.setdefault(float(group.settings[name]), []).extend(finals)
  if not lines or max(map(len, lines.values())) < _FEWEST:
    return None
  what = 'perplexity' if is_language else 'accuracy'
  words = run_groups.full_name(name.partition('.')[2] or name)
  figure, axes = plotting.blank_axes(f'Final validation {what}', len(lines))
  finals = [v for points in lines.values() for p in points.values() for v in p]
  labels: List[Label] = []
  if is_language:
    plotting.scale_y(axes, min(finals) * 0.88, max(finals) * 1.15)
  else:
    references = _references(comparison)
    axes.set_ylim(0, min(1.0, 1.1 * max([*finals, *references.values()])) or 1)
    axes.yaxis.set_major_formatter(
      ticker.FuncFormatter(lambda v, _: f'{100 * v:g} %')
    )
    for label, value in references.items():
      axes.axhline(value, color=plotting.QUIET[0], lw=0.9, dashes=(4, 2.5))
      text = f'{label} {value:.0%}'
      labels.append(Label(text, plotting.QUIET[0], value))
  spread = False
  styles = line_styles.palette_looks(len(lines))
  for look, (label, points) in zip(styles, lines.items()):
    x = np.array(sorted(points))
    mean = np.array([np.mean(points[place]) for place in x])
    low = np.array([min(points[place]) for place in x])
    high = np.array([max(points[place]) for place in x])
    spread = spread or bool(np.any(high > low))
    axes.plot(
      x, mean, color=look.color, alpha=look.alpha, marker=look.marker or 'o',
      markersize=3.5,
    )  # fmt: skip
    axes.fill_between(x, low, high, color=look.color, alpha=0.15, lw=0)
    end = float(x[-1]), float(mean[-1])
    labels.append(Label(label, look.color, end[1], end))
  places = sorted({place for points in lines.values() for place in points})
  if places[0] > 0 and places[-1] >= 8 * places[0]:
    axes.set_xscale('log', base=2)
  axes.set_xticks(places if len(places) <= 12 else places[:: len(places) // 6])
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f'{v:g}'))
  axes.xaxis.set_minor_locator(ticker.NullLocator())
  axes.set_xlabel(words.capitalize())
  caption = f'Final validation {what} of each run against {words}.'
  if spread:
    caption += ' Line: mean over runs; shade: smallest to largest.'
  if len(labels) > len(lines):
    caption += ' Dashed: of guessing the most frequent class.'
  option = name.replace('.', '_')
  return plotting.finish(f'final_by_{option}', caption, figure, axes, labels)


def _is_number(text: str) -> bool:
  try:
    return bool(np.isfinite(float(text)))
  except ValueError:
    return False


def _following(comparison: run_groups.Comparison, name: str) -> List[str]:
  """Returns settings whose value is settled by that of another."""
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


def _references(comparison: run_groups.Comparison) -> Dict[str, float]:
  """Returns accuracies to compare with; of several of a name the highest."""
  lines: Dict[str, float] = {}
  for group in comparison.groups:
    for run in group.runs:
      known = run.task.get('reference_accuracy')
      for label, value in (known if isinstance(known, dict) else {}).items():
        if isinstance(value, (int, float)):
          lines[str(label)] = max(float(value), lines.get(str(label), 0.0))
  return lines
