"""The figures of a report, sized for a paper's column and for the screen."""

from __future__ import annotations

import dataclasses
from typing import List, Sequence, Tuple

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from si_federated.reporting import (
  baselines,
  best_settings,
  best_settings_figures,
  client_figures,
  curves,
  line_styles,
  number_figures,
  plotting,
)
from si_federated.reporting import runs as run_files
from si_federated.reporting.curves import Curve
from si_federated.reporting.plotting import Picture
from si_federated.reporting.run_groups import Comparison

_ONLY_BEST = (
  ' Each kind of run is shown in its setting with the lowest final perplexity.'
)
# The most informative measure of accuracy first.
_ACCURACIES = (
  (
    run_files.ACCURACY_NO_OOV_NO_EOS,
    ', not counting words outside the vocabulary and ends of sentences',
  ),
  (run_files.ACCURACY_NO_OOV, ', not counting words outside the vocabulary'),
  (run_files.ACCURACY, ''),
)
# For each x-axis of perplexity: its title, the words for the caption, and its
# units, each with the smallest number to show in it.
_AGAINST = {
  'round': ('Round', 'rounds of training', ()),
  'time': (
    'Training time',
    'training time',
    ((1, 'seconds'), (60, 'minutes'), (3600, 'hours')),
  ),
  'bytes': (
    'Uploaded by all clients',
    "all clients' uploads",
    ((1, 'B'), (1e3, 'kB'), (1e6, 'MB'), (1e9, 'GB'), (1e12, 'TB')),
  ),
  'epsilon': ('ε spent so far', 'the epsilon spent so far', ()),
}


def draw_all(comparison: Comparison) -> List[Picture]:
  """Draws every figure for which the runs have data.

  Args:
    comparison: The runs.

  Returns:
    The pictures, perplexity against rounds first.
  """
  with matplotlib.rc_context(rc=plotting.STYLE):  # type: ignore[arg-type]
    by_epsilon = best_settings_figures.by_epsilon(comparison)
    curved = _for_curves(comparison)
    drawn = [
      _perplexity(curved, 'round'),
      _perplexity(curved, 'time'),
      _perplexity(curved, 'bytes') if _traffic_differs(curved) else None,
      *best_settings_figures.by_learning_rate(comparison),
      number_figures.by_number(comparison),
      by_epsilon or _perplexity(curved, 'epsilon'),
      _loss(curved),
      _accuracy(curved),
      *client_figures.draw(comparison),
    ]
  pictures = [picture for picture in drawn if picture is not None]
  if len(curved.groups) == len(comparison.groups):
    return pictures
  return [
    one
    if one.name.startswith('final_by_')
    else dataclasses.replace(one, caption=one.caption + _ONLY_BEST)
    for one in pictures
  ]


def _for_curves(comparison: Comparison) -> Comparison:
  """Returns the groups to draw: all, or the best settings if there are many."""
  kinds = best_settings.find_kinds(comparison)
  few = len(comparison.groups) <= len(plotting.PALETTE)
  if few or not best_settings.is_tuned(kinds):
    return comparison
  return dataclasses.replace(
    comparison, groups=tuple(kind.best for kind in kinds)
  )


def _traffic_differs(comparison: Comparison) -> bool:
  """Whether clients of some runs upload more than those of others.

  If not, perplexity against bytes is the same curve as against rounds.
  """
  sent = [
    float(values.mean())
    for run in comparison.runs
    if len(values := run.finite(run_files.BYTES_UP))
  ]
  return len(sent) > 1 and max(sent) > 1.02 * min(sent)


def _perplexity(comparison: Comparison, against: str) -> Picture | None:
  drawn = [
    curves.curve(group, run_files.PERPLEXITY, against=against)
    for group in comparison.groups
  ]
  full = [one for one in drawn if one.end is not None]
  if not full:
    return None
  dashed = baselines.reference_lines(comparison)
  figure, axes = plotting.blank_axes('Validation perplexity', len(drawn))
  # A diverging run leaves the axes at the top instead of flattening the others.
  plotting.scale_y(
    axes,
    min([*(one.lowest for one in full), *dashed.values()]),
    max([*(one.start for one in full), *dashed.values()]),
  )
  title, words, units = _AGAINST[against]
  if against == 'round':
    plotting.scale_rounds(axes)
  elif units:
    drawn, title = _scale_costs(drawn, title, units)
  axes.set_xlabel(title)
  caption = f'Validation perplexity against {words}.'
  caption += baselines.draw(axes, dashed)
  caption += _draw_curves(axes, drawn, comparison)
  return plotting.finish(f'perplexity_by_{against}', caption, figure, axes)


def _loss(comparison: Comparison) -> Picture | None:
  longest = max(len(run.finite(run_files.LOSS)) for run in comparison.runs)
  if not longest:
    return None
  window = max(1, longest // 40)
  drawn = [
    curves.curve(group, run_files.LOSS, window=window)
    for group in comparison.groups
  ]
  full = [one for one in drawn if one.end is not None]
  classes = any(map(run_files.has_classes, comparison.runs))
  unit = 'nats' if classes else 'nats a token'
  figure, axes = plotting.blank_axes(f'Training loss ({unit})', len(drawn))
  low, high = min(one.lowest for one in full), max(one.start for one in full)
  margin = 0.06 * (high - low) or 0.1
  axes.set_ylim(low - margin, high + margin)
  plotting.scale_rounds(axes)
  caption = "Training loss on the round's clients against rounds."
  if window > 1:
    caption += f' Trailing mean over {window} rounds.'
  caption += _draw_curves(axes, drawn, comparison)
  return plotting.finish('training_loss', caption, figure, axes)


def _accuracy(comparison: Comparison) -> Picture | None:
  measured = (
    (column, words)
    for column, words in _ACCURACIES
    if any(len(run.finite(column)) for run in comparison.runs)
  )
  column, words = next(measured, (run_files.ACCURACY, ''))
  drawn = [
    curves.curve(group, column, until_divergence=True)
    for group in comparison.groups
  ]
  full = [one for one in drawn if one.end is not None]
  if not full:
    return None
  figure, axes = plotting.blank_axes('Validation accuracy', len(drawn))
  axes.set_ylim(0, max(one.highest for one in full) * 1.08 or 1.0)
  axes.yaxis.set_major_locator(ticker.MaxNLocator(8, steps=[1, 2, 5, 10]))
  axes.yaxis.set_major_formatter(plotting.percent)
  plotting.scale_rounds(axes)
  caption = f'Share of next words guessed right on validation clients{words}.'
  if all(map(run_files.has_classes, comparison.runs)):
    caption = 'Share of validation texts whose class was guessed right.'
  caption += _draw_curves(axes, drawn, comparison)
  return plotting.finish('accuracy', caption, figure, axes)


def _scale_costs(
  drawn: Sequence[Curve], title: str, units: Sequence[Tuple[float, str]]
) -> Tuple[List[Curve], str]:
  """Returns curves whose x is in the largest unit that fits, and its title."""
  most = max(one.end[0] for one in drawn if one.end is not None)
  size, word = [
    unit for unit in units if unit is units[0] or most >= 3 * unit[0]
  ][-1]
  scaled = [
    dataclasses.replace(
      one,
      x=one.x / size,
      tails=tuple((x / size, y) for x, y in one.tails),
      end=one.end and (one.end[0] / size, one.end[1]),
    )
    for one in drawn
  ]
  return scaled, f'{title} ({word})'


def _draw_curves(
  axes: Axes, drawn: Sequence[Curve], comparison: Comparison
) -> str:
  """Draws a curve for each group and returns sentences for the caption."""
  few = max(len(one.x) for one in drawn) <= 12
  shaded = False
  for one, style in zip(drawn, line_styles.group_styles(comparison)):
    if one.end is None:
      continue
    dots = few or len(one.x) == 1
    shaded |= plotting.draw_band(
      axes, one.x, one.mean, one.low, one.high, style,
      label=one.label + (', diverged' if one.diverged else ''),
      marker=style.marker or ('o' if dots else None),
      markersize=3.2 if style.marker else 2.8,
      markevery=1 if dots else max(1, len(one.x) // 6),
      clip_on=len(one.x) > 1,
    )  # fmt: skip
    for x, y in one.tails:
      axes.plot(
        x, y, color=style.color, alpha=0.55, linewidth=0.8,
        marker='o' if len(x) == 1 else None, markersize=2.4,
      )  # fmt: skip
    if one.diverged:
      plotting.draw_cross(axes, *_leaving_point(axes, one), style.color)
  longest = max((one.end[0] for one in drawn if one.end), default=0.0)
  axes.set_xlim(0, longest or 1.0)
  caption = plotting.SEEDS if shaded else ''
  if any(one.tails and len(one.x) for one in drawn):
    caption += ' Thin: single runs beyond the rounds that all seeds have.'
  if any(one.diverged for one in drawn):
    caption += ' A cross marks where a run diverged.'
  return caption


def _leaving_point(axes: Axes, one: Curve) -> Tuple[float, float]:
  """Returns where a diverged curve ends or leaves the axes at the top."""
  assert one.end is not None
  top = axes.get_ylim()[1]
  for x, y in [(one.x, one.mean), *one.tails]:
    above = np.flatnonzero(y > top)
    if len(above):
      around = [max(0, above[0] - 1), above[0]]
      heights = np.array([top, *y[around]])
      if axes.get_yscale() == 'log':
        heights = np.log(heights)
      return float(np.interp(heights[0], heights[1:], x[around])), top
  return one.end[0], min(one.end[1], top)
