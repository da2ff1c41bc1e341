"""Figures of sweeps: against the learning rate, and against epsilon."""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from si_federated.reporting import (
  baselines,
  best_settings,
  line_styles,
  plotting,
  run_groups,
  tables,
)
from si_federated.reporting import runs as run_files
from si_federated.reporting.plotting import Picture
from si_federated.reporting.run_groups import Comparison, Group

# More curves than this are split into a picture for each aggregator.
_MOST_CURVES = 5
_PANEL = 'aggregator'
# Settings of the amount of noise, which determines epsilon.
NOISE = ('target_epsilon', 'noise_multiplier', 'noise_cohort_size')


def by_learning_rate(comparison: Comparison) -> List[Picture]:
  """Draws the final perplexity against a learning rate tried at 3 values.

  Args:
    comparison: The runs.

  Returns:
    One picture or, for many kinds of runs, one for each aggregator; none if no
    learning rate was tried at three values.
  """
  rate = best_settings.swept_rate(comparison)
  if rate is None:
    return []
  words = rate.replace('_', ' ')
  drawn = []
  for panel, kinds in _panels(best_settings.find_kinds(comparison)).items():
    lines = {}
    for kind in kinds:
      points = {
        value: best_settings.best_of(groups)
        for value, groups in best_settings.rates_of(kind.groups, rate).items()
      }
      if points:
        hidden = (*best_settings.TUNED, _PANEL)
        label = run_groups.without(kind.groups[0], *hidden) if panel else ''
        lines[label or kind.label] = points
    caption = f'Final validation perplexity of each run against its {words}'
    caption += f', with {_PANEL} {panel}.' if panel else '.'
    drawn.append(
      _draw(
        f'final_by_{rate}' + (f'_{panel}' if panel else ''),
        caption,
        words.capitalize(),
        comparison,
        lines,
        baselines.reference_lines(comparison),
      )
    )
  return [picture for picture in drawn if picture is not None]


def _panels(
  kinds: Sequence[best_settings.Kind],
) -> Dict[str, List[best_settings.Kind]]:
  """Splits kinds into pictures: a single, nameless one if they are few."""
  panels: Dict[str, List[best_settings.Kind]] = {}
  for kind in kinds:
    panels.setdefault(kind.groups[0].settings.get(_PANEL, ''), []).append(kind)
  # If each kind has its own aggregator, there is nothing to split.
  crowded = len(kinds) > max(_MOST_CURVES, len(panels))
  named = all(map(str.isidentifier, panels))
  return panels if crowded and named else {'': list(kinds)}


def by_epsilon(comparison: Comparison) -> Picture | None:
  """Draws the final perplexity against epsilon, if runs differ in it.

  The figure shows the best setting for each kind of run and each epsilon.
  """
  lines: Dict[str, Dict[float, Group]] = {}
  dashed = baselines.reference_lines(comparison)
  left_out = (*best_settings.TUNED, *NOISE)
  for kind in best_settings.find_kinds(comparison, left_out):
    found: Dict[float, List[Group]] = {}
    not_private: List[Group] = []
    for group in kind.groups:
      epsilon = _epsilon(group)
      if epsilon is None:
        not_private.append(group)
      else:
        found.setdefault(epsilon, []).append(group)
    if found:
      lines[kind.label] = {
        epsilon: best_settings.best_of(groups)
        for epsilon, groups in sorted(found.items())
      }
    if not_private:
      best = best_settings.best_of(not_private)
      if values := best_settings.final_values(best):
        dashed[f'{kind.label}, not private'] = float(np.mean(values))
  if len({epsilon for points in lines.values() for epsilon in points}) < 2:
    return None
  return _draw(
    'final_by_epsilon',
    'Final validation perplexity against the epsilon of the whole run.',
    'ε',
    comparison,
    lines,
    dashed,
  )


def _epsilon(group: Group) -> float | None:
  """Returns the largest epsilon of a group's runs to three digits, if any."""
  found = [run.last(run_files.EPSILON) for run in group.runs]
  known = [value for value in found if value is not None]
  return float(f'{max(known):.3g}') if known else None


def _draw(
  name: str,
  caption: str,
  xlabel: str,
  comparison: Comparison,
  lines: Dict[str, Dict[float, Group]],
  dashed: Dict[str, float],
) -> Picture | None:
  """Draws final perplexities over one number, a curve for each kind."""
  if not lines or max(map(len, lines.values())) < 2:
    return None
  groups = [group for points in lines.values() for group in points.values()]
  finals = [v for group in groups for v in best_settings.final_values(group)]
  if not finals:
    return None
  figure, axes = plotting.blank_axes('Final validation perplexity', len(lines))
  finals += dashed.values()
  plotting.scale_y(axes, min(finals), max(finals))
  # Diverged runs are drawn at the top, instead of flattening the others.
  top = axes.get_ylim()[1]
  explained = baselines.draw(axes, dashed)
  first = tuple(next(iter(points.values())) for points in lines.values())
  styles = line_styles.group_styles(
    dataclasses.replace(comparison, groups=first)
  )
  shaded = False
  # Draws crosses of several kinds at the same place side by side.
  shifts = np.exp(0.05 * (np.arange(len(lines)) - (len(lines) - 1) / 2))
  for style, shift, (label, points) in zip(styles, shifts, lines.items()):
    x = np.array([place for place in points if place > 0])
    if not len(x):
      continue
    known = [best_settings.final_values(points[place]) for place in x]
    shown = [values or [top] for values in known]
    shaded |= plotting.draw_band(
      axes, x, np.array([np.mean(values) for values in shown]),
      np.array([min(values) for values in shown]),
      np.array([max(values) for values in shown]), style,
      label=label, marker=style.marker or 'o',
      markevery=[i for i, values in enumerate(known) if values],
    )  # fmt: skip
    for place in x:
      if best_settings.num_diverged(points[place]):
        plotting.draw_cross(axes, place * shift, top, style.color)
  _scale_x(
    axes, xlabel, [p for points in lines.values() for p in points if p > 0]
  )
  caption += plotting.SEEDS if shaded else ''
  if diverged := sum(map(best_settings.num_diverged, groups)):
    caption += (
      f' A cross at the top: {tables.count_of(diverged)} diverged there.'
    )
  return plotting.finish(name, caption + explained, figure, axes)


def _scale_x(axes: Axes, label: str, places: Sequence[float]) -> None:
  """Makes the x-axis logarithmic, with ticks at the places themselves."""
  kept: List[float] = []
  span = np.log(max(places) / min(places))
  for place in sorted(set(places)):
    # A random search has too many places to label them all.
    if not kept or np.log(place / kept[-1]) > span / 12:
      kept.append(place)
  axes.set_xscale('log')
  axes.set_xlabel(label)
  axes.set_xticks(kept, minor=False)
  axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}')
  axes.xaxis.set_minor_locator(ticker.NullLocator())
