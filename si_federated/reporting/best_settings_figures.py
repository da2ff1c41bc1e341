"""Figures of sweeps: against the learning rate, and against epsilon."""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterable, List, Sequence

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
from si_federated.reporting.plotting import Label, Picture
from si_federated.reporting.run_groups import Group

# More curves than these are drawn in a picture for each aggregator.
_MOST_CURVES = 5
_PANEL = 'aggregator'
# What sets how much noise there is; the epsilon is what comes of it.
NOISE = ('target_epsilon', 'noise_multiplier', 'noise_cohort_size')


def by_learning_rate(comparison: run_groups.Comparison) -> List[Picture]:
  """Draws the final perplexity against a learning rate tried at 3 values.

  Args:
    comparison: The runs.

  Returns:
    One picture, or, of many kinds of runs, one for each aggregator; none if no
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
  """Sorts kinds into pictures: all into one without a name, if they are few."""
  panels: Dict[str, List[best_settings.Kind]] = {}
  for kind in kinds:
    panels.setdefault(kind.groups[0].settings.get(_PANEL, ''), []).append(kind)
  # As many aggregators as kinds leave nothing to sort.
  crowded = len(kinds) > max(_MOST_CURVES, len(panels))
  named = all(map(str.isidentifier, panels))
  return panels if crowded and named else {'': list(kinds)}


def by_epsilon(comparison: run_groups.Comparison) -> Picture | None:
  """Draws the final perplexity against epsilon, if runs differ in it.

  Of each kind of run and each epsilon it is the best setting's.
  """
  lines: Dict[str, Dict[float, Group]] = {}
  others: Dict[str, float] = {}
  for kind in best_settings.find_kinds(
    comparison, (*best_settings.TUNED, *NOISE)
  ):
    found: Dict[float, List[Group]] = {}
    without: List[Group] = []
    for group in kind.groups:
      epsilon = _epsilon(group)
      if epsilon is None:
        without.append(group)
      else:
        found.setdefault(epsilon, []).append(group)
    if found:
      lines[kind.label] = {
        epsilon: best_settings.best_of(groups)
        for epsilon, groups in sorted(found.items())
      }
    values = (
      best_settings.final_values(best_settings.best_of(without))
      if without
      else []
    )
    if values:
      others[f'{kind.label}, not private'] = float(np.mean(values))
  if len({epsilon for points in lines.values() for epsilon in points}) < 2:
    return None
  return _draw(
    'final_by_epsilon',
    'Final validation perplexity against the epsilon of the whole run.',
    'ε',
    comparison,
    lines,
    {**baselines.reference_lines(comparison), **others},
  )


def _epsilon(group: Group) -> float | None:
  """Returns the epsilon that a group's runs share to three digits, or None."""
  found = [run.finite(run_files.EPSILON) for run in group.runs]
  last = [values.iloc[-1] for values in found if len(values)]
  return float(f'{max(last):.3g}') if last else None


def _draw(
  name: str,
  caption: str,
  xlabel: str,
  comparison: run_groups.Comparison,
  lines: Dict[str, Dict[float, Group]],
  dashed: Dict[str, float],
) -> Picture | None:
  """Draws final perplexities over one number, a curve for each kind."""
  if not lines or max(map(len, lines.values())) < 2:
    return None
  finals = [
    value
    for points in lines.values()
    for group in points.values()
    for value in best_settings.final_values(group)
  ]
  if not finals:
    return None
  # What diverged is drawn at the top, instead of flattening the others.
  top = max([*finals, *dashed.values()]) * 1.25
  bottom = min([*finals, *dashed.values()]) * 0.88
  figure, axes = plotting.blank_axes('Final validation perplexity', len(lines))
  plotting.scale_y(axes, bottom, top)
  labels = baselines.draw(axes, dashed)
  styles = line_styles.group_looks(
    dataclasses.replace(
      comparison,
      groups=tuple(next(iter(points.values())) for points in lines.values()),
    )
  )
  spread = False
  # Crosses of several kinds at one place stand side by side.
  shifts = np.exp(0.05 * (np.arange(len(lines)) - (len(lines) - 1) / 2))
  for look, shift, (label, points) in zip(styles, shifts, lines.items()):
    x = np.array([place for place in points if place > 0])
    if not len(x):
      continue
    known = [best_settings.final_values(points[place]) for place in x]
    mean = np.array([np.mean(v) if v else top for v in known])
    low = np.array([min(v) if v else top for v in known])
    high = np.array([max(v) if v else top for v in known])
    spread = spread or bool(np.any(high > low))
    axes.plot(
      x, mean, color=look.color, alpha=look.alpha, marker=look.marker or 'o',
      markersize=3.5, markevery=[i for i, v in enumerate(known) if v],
    )  # fmt: skip
    axes.fill_between(x, low, high, color=look.color, alpha=0.15, lw=0)
    for place in x:
      if best_settings.num_diverged(points[place]):
        axes.plot(
          place * shift, top, 'x', ms=5.5, mew=1.5, color=look.color,
          clip_on=False, zorder=5,
        )  # fmt: skip
    # The label leads to the last point that is not a cross.
    named = max((i for i, v in enumerate(known) if v), default=len(x) - 1)
    end = float(x[named]), float(mean[named])
    labels.append(Label(label, look.color, end[1], end))
  _scale_x(
    axes, xlabel, [p for points in lines.values() for p in points if p > 0]
  )
  if spread:
    caption += ' Line: mean over seeds; shade: smallest to largest.'
  diverged = _count_diverged(lines.values())
  if diverged:
    caption += (
      f' A cross at the top: {tables.count_of(diverged)} diverged there.'
    )
  if dashed:
    caption += ' Dashed: '
    caption += ' and '.join(map(baselines.explain, dashed)) + '.'
  return plotting.finish(name, caption, figure, axes, labels)


def _count_diverged(lines: Iterable[Dict[float, Group]]) -> int:
  return sum(
    best_settings.num_diverged(group)
    for points in lines
    for group in points.values()
  )


def _scale_x(axes: Axes, label: str, places: Sequence[float]) -> None:
  """Makes the x-axis logarithmic, with ticks at the places themselves."""
  kept: List[float] = []
  span = np.log(max(places) / min(places))
  for place in sorted(set(places)):
    # Those of a random search are too many to be named.
    if not kept or np.log(place / kept[-1]) > span / 12:
      kept.append(place)
  axes.set_xscale('log')
  axes.set_xlabel(label)
  axes.set_xticks(kept, minor=False)
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f'{v:g}'))
  axes.xaxis.set_minor_locator(ticker.NullLocator())
