"""The figures of a report, drawn for a paper's column and for the screen."""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Sequence, Tuple

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from si_federated.reporting import canvas, curves, looks, settings
from si_federated.reporting import runs as run_files
from si_federated.reporting.canvas import Label, Picture
from si_federated.reporting.curves import Curve

# The most telling measure of accuracy first.
_ACCURACIES = (
  (
    run_files.ACCURACY_NO_OOV_NO_EOS,
    ', words outside the vocabulary and ends of sentences not counted',
  ),
  (run_files.ACCURACY_NO_OOV, ', words outside the vocabulary not counted'),
  (run_files.ACCURACY, ''),
)


def draw_all(comparison: settings.Comparison) -> List[Picture]:
  """Draws every figure for which the runs have data.

  Args:
    comparison: The runs.

  Returns:
    The pictures, perplexity against rounds first.
  """
  with matplotlib.rc_context(rc=canvas.STYLE):  # type: ignore[arg-type]
    drawn = [
      _perplexity(comparison, 'rounds'),
      _perplexity(comparison, 'time'),
      _perplexity(comparison, 'bytes')
      if _traffic_differs(comparison)
      else None,
      _sweep(comparison),
      _loss(comparison),
      _accuracy(comparison),
    ]
  return [picture for picture in drawn if picture is not None]


def reference_lines(comparison: settings.Comparison) -> Dict[str, float]:
  """Returns the perplexities to compare with, by label.

  Lines of the same name and (to three digits) the same value are one; where
  tasks disagree the label names the task.
  """
  found: Dict[Tuple[str, str], List[Tuple[str, float]]] = {}
  for group in comparison.groups:
    for run in group.runs:
      for name, value in run.reference_perplexity.items():
        key = name, f'{value:.2e}'
        found.setdefault(key, []).append((run.task.get('name', ''), value))
  names = [name for name, _ in found]
  lines = {}
  for (name, _), entries in found.items():
    task, value = entries[0]
    label = name if names.count(name) == 1 else f'{name} {task}'.strip()
    while label in lines:
      label += '′'
    lines[label] = value
  return lines


def _traffic_differs(comparison: settings.Comparison) -> bool:
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
  comparison: settings.Comparison, against: str
) -> Picture | None:
  drawn = [
    curves.curve(group, run_files.PERPLEXITY, against=against)
    for group in comparison.groups
  ]
  if all(one.end is None for one in drawn):
    return None
  references = reference_lines(comparison)
  full = [one for one in drawn if one.end is not None]
  # A diverging run leaves through the top instead of flattening the others.
  top = max([*(one.start for one in full), *references.values()]) * 1.15
  bottom = min([*(one.lowest for one in full), *references.values()]) * 0.88
  figure, axes = canvas.blank_axes('Validation perplexity', len(drawn))
  canvas.scale_y(axes, bottom, top)
  if against == 'bytes':
    drawn = _scale_costs(axes, drawn, 'Uploaded by all clients', _BYTES)
    caption = 'Validation perplexity against what all clients uploaded.'
    name = 'perplexity_by_bytes'
  elif against == 'time':
    drawn = _scale_costs(axes, drawn, 'Training time', _SECONDS)
    caption = 'Validation perplexity against training time.'
    name = 'perplexity_by_time'
  else:
    canvas.scale_rounds(axes)
    caption = 'Validation perplexity against rounds of training.'
    name = 'perplexity_by_round'
  labels = _draw_references(axes, references)
  labels += _draw_curves(axes, drawn, looks.group_looks(comparison))
  if references:
    caption += ' Dashed: ' + ' and '.join(_explain(one) for one in references)
    caption += '.'
  return canvas.finish(name, caption + _common(drawn), figure, axes, labels)


def _loss(comparison: settings.Comparison) -> Picture | None:
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
  figure, axes = canvas.blank_axes('Training loss (nats a token)', len(drawn))
  low, high = min(one.lowest for one in full), max(one.start for one in full)
  margin = 0.06 * (high - low) or 0.1
  axes.set_ylim(low - margin, high + margin)
  canvas.scale_rounds(axes)
  labels = _draw_curves(axes, drawn, looks.group_looks(comparison))
  caption = "Training loss on the round's clients against rounds."
  if window > 1:
    caption += f' Trailing mean over {window} rounds.'
  return canvas.finish(
    'training_loss', caption + _common(drawn), figure, axes, labels
  )


def _accuracy(comparison: settings.Comparison) -> Picture | None:
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
  figure, axes = canvas.blank_axes('Validation accuracy', len(drawn))
  highest = max(one.highest for one in drawn if one.end is not None)
  axes.set_ylim(0, highest * 1.08 or 1.0)
  axes.yaxis.set_major_locator(ticker.MaxNLocator(8, steps=[1, 2, 5, 10]))
  axes.yaxis.set_major_formatter(
    ticker.FuncFormatter(lambda v, _: f'{100 * v:g} %')
  )
  canvas.scale_rounds(axes)
  labels = _draw_curves(axes, drawn, looks.group_looks(comparison))
  caption = f'Share of next words guessed right on validation clients{words}.'
  return canvas.finish(
    'accuracy', caption + _common(drawn), figure, axes, labels
  )


def _sweep(comparison: settings.Comparison) -> Picture | None:
  """Draws the best perplexity against a learning rate tried at 3 values."""
  rate = settings.swept_rate(comparison)
  if rate is None:
    return None
  lines: Dict[str, List[Tuple[float, float, float, float, bool]]] = {}
  for group in comparison.groups:
    try:
      place = float(group.settings[rate])
    except ValueError:
      continue
    best = [
      float(run.finite(run_files.PERPLEXITY).min())
      for run in group.runs
      if len(run.finite(run_files.PERPLEXITY))
    ]
    if best:
      broken = any(run.divergence for run in group.runs)
      label = settings.without(group, rate) or 'all runs'
      point = place, float(np.mean(best)), min(best), max(best), broken
      lines.setdefault(label, []).append(point)
  if not lines or max(map(len, lines.values())) < 2:
    return None
  references = reference_lines(comparison)
  figure, axes = canvas.blank_axes('Best validation perplexity', len(lines))
  values = [p[i] for points in lines.values() for p in points for i in (2, 3)]
  canvas.scale_y(
    axes,
    min([*values, *references.values()]) * 0.88,
    max([*values, *references.values()]) * 1.15,
  )
  axes.set_xscale('log')
  axes.set_xlabel(rate.replace('_', ' ').capitalize())
  labels = _draw_references(axes, references)
  styles = looks.palette_looks(len(lines))
  places = set()
  for look, (label, points) in zip(styles, lines.items()):
    points.sort()
    x, mean, low, high, diverged = map(np.array, zip(*points))
    places.update(x.tolist())
    axes.plot(x, mean, color=look.color, marker=look.marker, alpha=look.alpha)
    if np.any(high > low):
      axes.fill_between(x, low, high, color=look.color, alpha=0.15, lw=0)
    fine = diverged == 0
    axes.plot(x[fine], mean[fine], 'o', ms=3.5, color=look.color)
    axes.plot(x[~fine], mean[~fine], 'x', ms=5.5, mew=1.5, color=look.color)
    labels.append(Label(label, look.color, mean[-1], (x[-1], mean[-1])))
  axes.set_xticks(sorted(places), minor=False)
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f'{v:g}'))
  axes.xaxis.set_minor_locator(ticker.NullLocator())
  caption = (
    f'Best validation perplexity of each run against its '
    f'{rate.replace("_", " ")}.'
  )
  if any(point[4] for points in lines.values() for point in points):
    caption += ' A cross marks runs that diverged: their best before that.'
  name = f'best_by_{rate}'
  return canvas.finish(name, caption, figure, axes, labels)


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


def _draw_references(axes: Axes, references: Dict[str, float]) -> List[Label]:
  labels = []
  for name, value in references.items():
    axes.axhline(value, color=canvas.QUIET[0], linewidth=0.9, dashes=(4, 2.5))
    text = f'{name} {canvas.tick(value)}'
    labels.append(Label(text, canvas.QUIET[0], value))
  return labels


def _draw_curves(
  axes: Axes, drawn: Sequence[Curve], styles: Sequence[looks.Look]
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


def _explain(label: str) -> str:
  if label.startswith('unigram'):
    return f'{label}, a model that knows only how frequent each word is'
  if label.startswith('floor'):
    return f'{label}, the lowest that any model can reach'
  return label


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
