"""The figures of a report, drawn for a paper's column and for the screen."""

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
  run_groups,
)
from si_federated.reporting import runs as run_files
from si_federated.reporting.curves import Curve
from si_federated.reporting.plotting import Label, Picture

_ONLY_BEST = (
  ' Of each kind of run it is the setting with the lowest final perplexity.'
)
# The most telling measure of accuracy first.
_ACCURACIES = (
  (
    run_files.ACCURACY_NO_OOV_NO_EOS,
    ', words outside the vocabulary and ends of sentences not counted',
  ),
  (run_files.ACCURACY_NO_OOV, ', words outside the vocabulary not counted'),
  (run_files.ACCURACY, ''),
)


def draw_all(comparison: run_groups.Comparison) -> List[Picture]:
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
      _perplexity(curved, 'rounds'),
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


def _for_curves(comparison: run_groups.Comparison) -> run_groups.Comparison:
  """Returns what to draw curves of: the best settings, if all are too many."""
  kinds = best_settings.find_kinds(comparison)
  if len(comparison.groups) <= len(
    plotting.PALETTE
  ) or not best_settings.is_tuned(kinds):
    return comparison
  return dataclasses.replace(
    comparison, groups=tuple(kind.best for kind in kinds)
  )


def _traffic_differs(comparison: run_groups.Comparison) -> bool:
  """Tells whether clients of some runs upload more than those of others.

  If not, a picture against bytes is the one against rounds again.
  """
  sent = [
    float(values.mean())
    for group in comparison.groups
    for run in group.runs
    if len(values := run.finite(run_files.BYTES_UP))
  ]
  return len(sent) > 1 and max(sent) > 1.02 * min(sent)


def _perplexity(
  comparison: run_groups.Comparison, against: str
) -> Picture | None:
  drawn = [
    curves.curve(group, run_files.PERPLEXITY, against=against)
    for group in comparison.groups
  ]
  if all(one.end is None for one in drawn):
    return None
  dashed = baselines.reference_lines(comparison)
  full = [one for one in drawn if one.end is not None]
  # A diverging run leaves through the top instead of flattening the others.
  top = max([*(one.start for one in full), *dashed.values()]) * 1.15
  bottom = min([*(one.lowest for one in full), *dashed.values()]) * 0.88
  figure, axes = plotting.blank_axes('Validation perplexity', len(drawn))
  plotting.scale_y(axes, bottom, top)
  if against == 'bytes':
    drawn = _scale_costs(axes, drawn, 'Uploaded by all clients', _BYTES)
    caption = 'Validation perplexity against what all clients uploaded.'
    name = 'perplexity_by_bytes'
  elif against == 'time':
    drawn = _scale_costs(axes, drawn, 'Training time', _SECONDS)
    caption = 'Validation perplexity against training time.'
    name = 'perplexity_by_time'
  elif against == 'epsilon':
    axes.set_xlabel('ε spent so far')
    caption = 'Validation perplexity against the epsilon spent so far.'
    name = 'perplexity_by_epsilon'
  else:
    plotting.scale_rounds(axes)
    caption = 'Validation perplexity against rounds of training.'
    name = 'perplexity_by_round'
  labels = baselines.draw(axes, dashed)
  labels += _draw_curves(axes, drawn, line_styles.group_looks(comparison))
  if dashed:
    caption += ' Dashed: ' + ' and '.join(map(baselines.explain, dashed)) + '.'
  return plotting.finish(name, caption + _common(drawn), figure, axes, labels)


def _loss(comparison: run_groups.Comparison) -> Picture | None:
  lengths = [
    len(run.finite(run_files.LOSS))
    for group in comparison.groups
    for run in group.runs
  ]
  if not any(lengths):
    return None
  window = max(1, max(lengths) // 40)
  drawn = [
    curves.curve(group, run_files.LOSS, window=window)
    for group in comparison.groups
  ]
  full = [one for one in drawn if one.end is not None]
  runs = [run for group in comparison.groups for run in group.runs]
  unit = 'nats' if any(map(run_files.has_classes, runs)) else 'nats a token'
  figure, axes = plotting.blank_axes(f'Training loss ({unit})', len(drawn))
  low, high = min(one.lowest for one in full), max(one.start for one in full)
  margin = 0.06 * (high - low) or 0.1
  axes.set_ylim(low - margin, high + margin)
  plotting.scale_rounds(axes)
  labels = _draw_curves(axes, drawn, line_styles.group_looks(comparison))
  caption = "Training loss on the round's clients against rounds."
  if window > 1:
    caption += f' Trailing mean over {window} rounds.'
  return plotting.finish(
    'training_loss', caption + _common(drawn), figure, axes, labels
  )


def _accuracy(comparison: run_groups.Comparison) -> Picture | None:
  runs = [run for group in comparison.groups for run in group.runs]
  measured = [
    (column, words)
    for column, words in _ACCURACIES
    if any(len(run.finite(column)) for run in runs)
  ]
  if not measured:
    return None
  column, words = measured[0]
  drawn = [
    curves.curve(group, column, until_divergence=True)
    for group in comparison.groups
  ]
  if all(one.end is None for one in drawn):
    return None
  figure, axes = plotting.blank_axes('Validation accuracy', len(drawn))
  highest = max(one.highest for one in drawn if one.end is not None)
  axes.set_ylim(0, highest * 1.08 or 1.0)
  axes.yaxis.set_major_locator(ticker.MaxNLocator(8, steps=[1, 2, 5, 10]))
  axes.yaxis.set_major_formatter(
    ticker.FuncFormatter(lambda v, _: f'{100 * v:g} %')
  )
  plotting.scale_rounds(axes)
  labels = _draw_curves(axes, drawn, line_styles.group_looks(comparison))
  caption = f'Share of next words guessed right on validation clients{words}.'
  if all(map(run_files.has_classes, runs)):
    caption = 'Share of validation texts whose class was guessed right.'
  return plotting.finish(
    'accuracy', caption + _common(drawn), figure, axes, labels
  )


# The smallest number that reads well in a unit, and its name.
_SECONDS = ((1, 'seconds'), (60, 'minutes'), (3600, 'hours'))
_BYTES = ((1, 'B'), (1e3, 'kB'), (1e6, 'MB'), (1e9, 'GB'), (1e12, 'TB'))


def _scale_costs(
  axes: Axes,
  drawn: Sequence[Curve],
  title: str,
  units: Sequence[Tuple[float, str]],
) -> List[Curve]:
  """Returns curves whose x is in the largest unit that fits them."""
  most = max(one.end[0] for one in drawn if one.end is not None)
  for size, word in units:
    if size == units[0][0] or most >= 3 * size:
      unit, name = size, word
  axes.set_xlabel(f'{title} ({name})')
  return [
    dataclasses.replace(
      one,
      x=one.x / unit,
      tails=tuple((x / unit, y) for x, y in one.tails),
      end=one.end and (one.end[0] / unit, one.end[1]),
    )
    for one in drawn
  ]


def _draw_curves(
  axes: Axes, drawn: Sequence[Curve], styles: Sequence[line_styles.Look]
) -> List[Label]:
  labels: List[Label] = []
  few = max(len(one.x) for one in drawn) <= 12
  for one, look in zip(drawn, styles):
    if one.end is None:
      continue
    dots = few or len(one.x) == 1
    axes.plot(
      one.x,
      one.mean,
      color=look.color,
      alpha=look.alpha,
      marker=look.marker or ('o' if dots else None),
      markersize=3.2 if look.marker else 2.8,
      markevery=1 if dots else max(1, len(one.x) // 6),
      clip_on=len(one.x) > 1,
    )
    if np.any(one.high > one.low):
      axes.fill_between(
        one.x, one.low, one.high, color=look.color, alpha=0.18, linewidth=0
      )
    for x, y in one.tails:
      axes.plot(
        x, y, color=look.color, alpha=0.55, linewidth=0.8,
        marker='o' if len(x) == 1 else None, markersize=2.4,
      )  # fmt: skip
    end, label = one.end, one.label
    if one.diverged:
      end = _leaving_point(axes, one)
      axes.plot(
        *end, 'x', color=look.color, markersize=6, markeredgewidth=1.6,
        clip_on=False, zorder=5,
      )  # fmt: skip
      label += ', diverged'
    labels.append(Label(label, look.color, end[1], end))
  longest = max((one.end[0] for one in drawn if one.end), default=0.0)
  axes.set_xlim(0, longest or 1.0)
  return labels


def _leaving_point(axes: Axes, one: Curve) -> Tuple[float, float]:
  """Returns where a diverged curve ends or leaves the axes through the top."""
  assert one.end is not None
  top = axes.get_ylim()[1]
  for x, y in [(one.x, one.mean), *one.tails]:
    above = np.flatnonzero(y > top)
    if len(above):
      after = above[0]
      before = max(0, after - 1)
      heights = np.array([top, y[before], y[after]])
      if axes.get_yscale() == 'log':
        heights = np.log(heights)
      crossing = np.interp(heights[0], heights[1:], x[[before, after]])
      return float(crossing), top
  return one.end[0], min(one.end[1], top)


def _common(drawn: Sequence[Curve]) -> str:
  """Returns the sentences that explain bands, thin lines and crosses."""
  words = ''
  if any(np.any(one.high > one.low) for one in drawn):
    words += ' Line: mean over seeds; shade: smallest to largest.'
  if any(one.tails and len(one.x) for one in drawn):
    words += ' Thin: single runs beyond the rounds that all seeds have.'
  if any(one.diverged for one in drawn):
    words += ' A cross marks where a run diverged.'
  return words
