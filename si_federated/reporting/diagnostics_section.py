"""Figures of the measurements of --diagnostics, by layer and round."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Dict, List, Mapping, NamedTuple, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import colors, ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from si_federated.reporting import curves, line_styles, plotting, run_groups
from si_federated.reporting.plotting import Picture
from si_federated.reporting.runs import Run

FILE = 'diagnostics.csv'
_COLUMNS = ['round_num', 'layer', 'quantity', 'value']
_MODEL = 'model'
_BLENDING = 'blending_'
# Only the first runs get their own pictures: a sweep can have hundreds.
_MOST_RUNS = 4
_INCHES_A_ROW = 0.115
_MOST_PARTS = 12


class _Map(NamedTuple):
  """A panel of layers against rounds.

  Attributes:
    quantity: The quantity shown.
    title: Its heading.
    scale: `'log'`, `'sign'` if values can be negative, or `'linear'`.
  """

  quantity: str
  title: str
  scale: str


_MAPS = (
  _Map(
    'effective_learning_rate',
    "Effective learning rate: server's step / weights (log)",
    'log',
  ),
  _Map('gradient_weight_cosine', 'Cosine of gradient and weights', 'sign'),
  _Map('client_drift', "Clients' drift (log)", 'log'),
  _Map('dead_gates', 'Fraction of dead SI gates', 'linear'),
  _Map('attention_entropy', 'Entropy of attention (nats)', 'linear'),
)

# Quantities of the whole model, drawn as a curve for each set of runs.
_CURVES: Dict[str, str] = {
  'effective_learning_rate': "Server's step / norm of weights",
  'client_drift': "Clients' distance from the server",
  'client_variance': "Variance of clients' updates",
  'clip_fraction': 'Fraction of clipped clients',
  'dead_gates': 'Fraction of dead SI gates',
  'attention_entropy': 'Mean entropy of attention (nats)',
}

# Quantities of each part of the model, drawn in a panel with all sets of runs.
_PART_CURVES: Dict[str, str] = {
  'weight_norm': 'Norm of weights',
  'effective_learning_rate': "Server's step / norm of weights",
}


def read(path: pathlib.Path) -> pd.DataFrame:
  """Reads the diagnostics of a run.

  Args:
    path: The run's folder.

  Returns:
    Columns `round_num`, `layer`, `quantity` and `value`; no rows if there is no
    such file.

  Raises:
    ValueError: If the file is not a valid file of diagnostics.
  """
  file = path / FILE
  if not file.is_file():
    return pd.DataFrame({name: [] for name in _COLUMNS})
  try:
    table = pd.read_csv(file, dtype={'layer': str, 'quantity': str})
    if list(table.columns) != _COLUMNS:
      raise ValueError(f'its columns are {list(table.columns)}')
    return table.astype({'round_num': int, 'value': float})
  except (ValueError, UnicodeDecodeError) as error:
    raise ValueError(
      f'{file} is not a file of diagnostics ({error}); delete it to report '
      'without.'
    ) from error


def draw(comparison: run_groups.Comparison) -> List[Picture]:
  """Draws the measurements of the whole model, and layer by layer.

  Args:
    comparison: The runs.

  Returns:
    A picture of curves for each quantity, of the model and of its parts, and at
    most two pictures for each of the first runs that have diagnostics; none
    without.
  """
  tables = {run.path: read(run.path) for run in comparison.runs}
  if not any(len(table) for table in tables.values()):
    return []
  pictures: List[Picture | None] = []
  shown = 0
  with matplotlib.rc_context(rc=plotting.STYLE):  # type: ignore[arg-type]
    extended = _with_series(comparison, tables)
    for quantity, words in _CURVES.items():
      pictures.append(_draw_curves(extended, quantity, words))
    for quantity, words in _PART_CURVES.items():
      pictures.append(_draw_parts(extended, quantity, words))
    for group in comparison.groups:
      table = tables[group.runs[0].path]
      if not len(table) or shown == _MOST_RUNS:
        continue
      shown += 1
      place = f'diagnostics_{shown}'
      label = group.label or group.runs[0].name
      pictures.append(_draw_blending(table, f'{place}_blending', label))
      pictures.append(_draw_maps(table, f'{place}_layers', label))
  return [picture for picture in pictures if picture is not None]


def _with_series(
  comparison: run_groups.Comparison,
  tables: Mapping[pathlib.Path, pd.DataFrame],
) -> run_groups.Comparison:
  """Returns the runs with `diagnostics/QUANTITY[/PART]` among their series."""

  def extended(run: Run) -> Run:
    table = tables[run.path]
    series = {
      f'diagnostics/{quantity}': rows.set_index('round_num')['value']
      for quantity, rows in table[table['layer'] == _MODEL].groupby('quantity')
    }
    parts = part_series(table)
    return dataclasses.replace(run, series={**run.series, **series, **parts})

  return dataclasses.replace(
    comparison,
    groups=tuple(
      dataclasses.replace(group, runs=tuple(map(extended, group.runs)))
      for group in comparison.groups
    ),
  )


def part_series(table: pd.DataFrame) -> Dict[str, pd.Series]:
  """Measures parts: all layers whose names begin with the same word.

  Args:
    table: The diagnostics of a run, from `read`.

  Returns:
    Values by round, `diagnostics/QUANTITY/PART`, of `weight_norm` and
    `effective_learning_rate`.
  """
  rows = table[table['layer'] != _MODEL]
  rows = rows.assign(part=[name.split('/')[0] for name in rows['layer']])
  layers = rows.pivot_table('value', ['part', 'round_num', 'layer'], 'quantity')
  series: Dict[str, pd.Series] = {}

  def add(quantity, values):
    for part, of_part in values.dropna().groupby('part'):
      name = f'diagnostics/{quantity}/{part}'
      series[name] = of_part.droplevel('part')

  def norm(values):
    return np.sqrt((values**2).groupby(['part', 'round_num']).sum(min_count=1))

  if 'weight_norm' in layers:
    add('weight_norm', norm(layers['weight_norm']))
  if {'update_norm', 'effective_learning_rate'} <= set(layers):
    step = layers['update_norm']
    # The norm before the step.
    norms = step / layers['effective_learning_rate']
    add('effective_learning_rate', norm(step) / norm(norms))
  return series


def _draw_parts(
  comparison: run_groups.Comparison, quantity: str, words: str
) -> Picture | None:
  prefix = f'diagnostics/{quantity}/'
  parts = [
    name.removeprefix(prefix)
    for group in comparison.groups
    for name in group.runs[0].series
    if name.startswith(prefix)
  ]
  parts = list(dict.fromkeys(parts))
  if not 2 <= len(parts) <= _MOST_PARTS:
    return None
  columns = min(len(parts), 3)
  lines = -(-len(parts) // columns)
  figure = plotting.blank_figure(1.75 * max(columns, 2), 1.35 * lines + 0.6)
  axes = figure.subplots(lines, columns, sharex=True, squeeze=False)
  for at in axes.flat[len(parts) :]:
    at.set_visible(False)
  labels: Dict[str, Artist] = {}
  for at, part in zip(axes.flat, parts):
    low, high = np.inf, -np.inf
    for group, style in zip(
      comparison.groups, line_styles.group_styles(comparison)
    ):
      one = curves.curve(group, prefix + part)
      if len(one.x):
        plotting.draw_band(
          at, one.x, one.mean, one.low, one.high, style, label=one.label
        )
        low, high = min(low, one.lowest), max(high, one.highest)
    handles, names = at.get_legend_handles_labels()
    labels.update(zip(names, handles))
    if low <= high:
      plotting.scale_y(at, low, high)
    at.set_title(part, fontsize=7, loc='left')
    at.tick_params(labelsize=6)
    at.grid(axis='y')
    plotting.scale_rounds(at)
    at.set_xlabel('Round' if at in axes[-1] else '', fontsize=6.5)
    at.xaxis.set_major_locator(ticker.MaxNLocator(3, integer=True))
  figure.supylabel(words, fontsize=7)
  figure.legend(
    list(labels.values()),
    list(labels),
    loc='outside upper center',
    fontsize=6.5,
    ncols=min(len(labels), 3),
    labelcolor='linecolor',
    handlelength=1.5,
  )
  caption = f'{words}, of each part of the model, by round.'
  return plotting.render(f'diagnostics_{quantity}_by_part', caption, figure)


def _draw_curves(
  comparison: run_groups.Comparison, quantity: str, words: str
) -> Picture | None:
  styles = line_styles.group_styles(comparison)
  drawn = [
    (one, style)
    for group, style in zip(comparison.groups, styles)
    if len((one := curves.curve(group, f'diagnostics/{quantity}')).x)
  ]
  if not drawn:
    return None
  figure, axes = plotting.blank_axes(words, len(drawn))
  plotting.scale_y(
    axes,
    min(float(one.low.min()) for one, _ in drawn),
    max(float(one.high.max()) for one, _ in drawn),
  )
  plotting.scale_rounds(axes)
  for one, style in drawn:
    plotting.draw_band(
      axes, one.x, one.mean, one.low, one.high, style, label=one.label
    )
  axes.set_xlim(0, max(one.x[-1] for one, _ in drawn) or 1.0)
  caption = f'{words}, of the whole model, by round.'
  return plotting.finish(f'diagnostics_{quantity}', caption, figure, axes)


def _draw_maps(table: pd.DataFrame, name: str, label: str) -> Picture | None:
  panels = []
  for one in _MAPS:
    rows = table[(table['quantity'] == one.quantity)]
    rows = rows[rows['layer'] != _MODEL]
    if one.quantity == 'attention_entropy':
      rows = rows[rows['layer'].str.contains('/head_')]
    if not len(rows):
      continue
    order = list(dict.fromkeys(rows['layer']))
    panels.append(
      (one, rows.pivot_table('value', 'layer', 'round_num').loc[order])
    )
  if not panels:
    return None
  rows_of = [len(grid) for _, grid in panels]
  heights = [_INCHES_A_ROW * n + 0.45 for n in rows_of]
  figure = plotting.blank_figure(4.6, sum(heights) + 0.25)
  axes = figure.subplots(
    len(panels), 1, gridspec_kw={'height_ratios': heights}, squeeze=False
  )[:, 0]
  for at, (one, grid) in zip(axes, panels):
    _draw_map(figure, at, one, grid)
  axes[-1].set_xlabel('Round')
  caption = (
    f'{label}: measurements of each layer at each evaluation, of the model '
    'that clients get from the server. Gradients, gates and attention are on '
    'sentences of validation clients.'
  )
  return plotting.render(name, caption, figure)


def _draw_map(figure: Figure, axes: Axes, one: _Map, grid) -> None:
  values = grid.to_numpy(dtype=float)
  finite = values[np.isfinite(values)]
  most = max(np.abs(finite).max(initial=0.0), 1e-3)
  scale = colors.Normalize(-most if one.scale == 'sign' else 0.0, most)
  if one.scale == 'log':
    positive = finite[finite > 0]
    low, high = (
      (positive.min(), positive.max()) if len(positive) else (0.1, 1.0)
    )
    scale = colors.LogNorm(low, max(high, low * 1.01))
  image = axes.imshow(
    np.ma.masked_invalid(values),
    aspect='auto',
    cmap='RdBu_r' if one.scale == 'sign' else 'viridis',
    norm=scale,
    interpolation='none',
  )
  axes.set_title(one.title, fontsize=7, loc='left')
  small = 5.5 if len(grid) <= 40 else 4.5
  axes.set_yticks(range(len(grid)), list(grid.index), fontsize=small)
  axes.tick_params(axis='y', length=0)
  step = -(-len(grid.columns) // 8)
  places = range(0, len(grid.columns), step)
  axes.set_xticks(places, [f'{grid.columns[i]:g}' for i in places], fontsize=6)
  axes.grid(False)
  axes.spines[:].set_visible(False)
  bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05)
  bar.ax.tick_params(which='both', labelsize=5.5, length=2)
  bar.outline.set_visible(False)


def _draw_blending(
  table: pd.DataFrame, name: str, label: str
) -> Picture | None:
  rows = table[table['quantity'].str.startswith(_BLENDING)]
  if not len(rows):
    return None
  layers = list(dict.fromkeys(rows['layer']))
  functions = list(dict.fromkeys(rows['quantity']))
  columns = min(len(layers), 2 if len(layers) <= 4 else 4)
  lines = -(-len(layers) // columns)
  figure = plotting.blank_figure(1.75 * max(columns, 2), 1.25 * lines + 0.5)
  axes = figure.subplots(
    lines, columns, sharex=True, sharey=True, squeeze=False
  )
  for at in axes.flat[len(layers) :]:
    at.set_visible(False)
  for at, layer in zip(axes.flat, layers):
    of_layer = rows[rows['layer'] == layer]
    for index, function in enumerate(functions):
      line = of_layer[of_layer['quantity'] == function]
      at.plot(
        line['round_num'],
        line['value'],
        color=plotting.PALETTE[index % len(plotting.PALETTE)][0],
        label=function[len(_BLENDING) :],
        linewidth=1.1,
      )
    at.set_title(layer, fontsize=6, loc='left')
    at.axhline(0, color=plotting.QUIET[0], linewidth=0.5)
    at.tick_params(labelsize=6)
    at.xaxis.set_major_locator(ticker.MaxNLocator(3, integer=True))
  for at in axes[-1]:
    at.set_xlabel('Round', fontsize=6.5)
  figure.legend(
    *axes.flat[0].get_legend_handles_labels(),
    loc='outside upper center',
    ncols=len(functions),
    fontsize=6.5,
    handlelength=1.2,
    columnspacing=1.0,
  )
  caption = (
    f'{label}: the share of each function in the adaptive blending units, '
    'as their mode normalizes it.'
  )
  return plotting.render(name, caption, figure)


def sentences(comparison: run_groups.Comparison) -> Sequence[str]:
  """Names private runs whose diagnostics are not protected by noise."""
  said = []
  for run in comparison.runs:
    diagnostics = run.summary.get('diagnostics') or {}
    if outside := diagnostics.get('outside_the_guarantee'):
      said.append(
        f'{run.name}: its diagnostics ({", ".join(outside)}) come from updates '
        'without noise, which its ε does not cover.'
      )
  return said
