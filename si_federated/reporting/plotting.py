"""The style of all figures, and functions to draw and save them."""

from __future__ import annotations

import dataclasses
import html
import io
import re
import textwrap
from typing import Any, Tuple

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Colors on white and on black, chosen so that all seven remain distinguishable
# under simulated red and green blindness and stand out from the page.
PALETTE = (
  ('#0b62a8', '#5aa5f5'),
  ('#b93a06', '#ff9457'),
  ('#0a7d5a', '#35c796'),
  ('#7a0f5e', '#c2479f'),
  ('#18181b', '#ffffff'),
  ('#b49600', '#f2e04a'),
  ('#34a0cc', '#8fe6f5'),
)
INK = ('#1a1a1a', '#e6e6e6')
QUIET = ('#6b6b6b', '#a3a3a3')
GRID = ('#e3e3e3', '#383838')

# Explains in a caption how `draw_band` draws repeated runs.
SEEDS = ' Line: mean over seeds; shade: smallest to largest.'

_COLUMN_INCHES = 3.5
STYLE = {
  'font.family': 'sans-serif',
  'font.sans-serif': ['DejaVu Sans'],
  'font.size': 8,
  'axes.labelsize': 8,
  'xtick.labelsize': 7.5,
  'ytick.labelsize': 7.5,
  'axes.linewidth': 0.6,
  'axes.edgecolor': QUIET[0],
  'axes.labelcolor': INK[0],
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.axisbelow': True,
  'text.color': INK[0],
  'xtick.color': QUIET[0],
  'ytick.color': QUIET[0],
  'xtick.labelcolor': INK[0],
  'ytick.labelcolor': INK[0],
  'xtick.major.width': 0.6,
  'ytick.major.width': 0.6,
  'xtick.major.size': 3,
  'ytick.major.size': 3,
  'ytick.minor.size': 0,
  'grid.color': GRID[0],
  'grid.linewidth': 0.5,
  'legend.frameon': False,
  'lines.linewidth': 1.4,
  'lines.solid_capstyle': 'round',
  'svg.fonttype': 'path',
}


@dataclasses.dataclass(frozen=True)
class Picture:
  """A drawn figure.

  Attributes:
    name: File name without extension.
    caption: Sentences that explain it.
    png: The picture for papers and Markdown, 300 dots per inch.
    svg: The same as vectors, in the colors for a white page.
  """

  name: str
  caption: str
  png: bytes
  svg: str


@dataclasses.dataclass(frozen=True)
class Style:
  """How a curve is drawn, in matplotlib's terms."""

  color: str
  alpha: float = 1.0
  marker: str | None = None


def blank_figure(width: float, height: float) -> Figure:
  """Returns an empty figure, its size in inches."""
  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure


def blank_axes(ylabel: str, num_curves: int) -> Tuple[Figure, Axes]:
  """Returns an empty figure as wide as a paper's column.

  Args:
    ylabel: The label of the y-axis.
    num_curves: Number of curves; many make the figure higher.
  """
  height = max(2.45, 0.6 + 0.18 * num_curves)
  figure = blank_figure(_COLUMN_INCHES, height)
  axes = figure.subplots()
  axes.set_ylabel(ylabel)
  axes.grid(axis='y')
  return figure, axes


def draw_band(
  axes: Axes,
  x: np.ndarray,
  mean: np.ndarray,
  low: np.ndarray,
  high: np.ndarray,
  style: Style,
  **line: Any,
) -> bool:
  """Draws a curve and, shaded, the range around it.

  Args:
    axes: The axes.
    x: `[N]`.
    mean: The curve, `[N]`.
    low: The range's lower end, `[N]`.
    high: Its upper end, `[N]`.
    style: Color, strength and marker.
    **line: Further options of matplotlib's line, such as its label.

  Returns:
    Whether there is any range to shade.
  """
  options = {**vars(style), 'markersize': 3.5, **line}
  axes.plot(x, mean, **options)
  axes.fill_between(x, low, high, color=style.color, alpha=0.18, linewidth=0)
  return bool(np.any(high > low))


def draw_level(axes: Axes, value: float, label: str) -> None:
  """Draws a dashed line to compare with."""
  axes.axhline(
    value, color=QUIET[0], linewidth=0.9, dashes=(4, 2.5), label=label
  )


def draw_cross(axes: Axes, x: float, y: float, color: str) -> None:
  """Marks where a run diverged."""
  axes.plot(
    x, y, 'x', color=color, markersize=6, markeredgewidth=1.6, clip_on=False,
    zorder=5,
  )  # fmt: skip


def scale_y(axes: Axes, low: float, high: float) -> None:
  """Sets the limits of the y-axis, with plain numbers at its ticks.

  Args:
    axes: The axes. If all values are positive and their range is wide, the axis
      becomes logarithmic.
    low: The smallest value.
    high: The largest value.
  """
  axes.yaxis.set_major_formatter(lambda value, _: tick(value))
  if low <= 0:
    axes.set_ylim(low, high * 1.08 or 1.0)
    return
  bottom, top = 0.88 * low, 1.15 * high
  if top / bottom > 3:
    axes.set_yscale('log')
    subs = [1.0, 1.5, 2.0, 3.0, 5.0, 7.0]
    if top / bottom > 8:
      subs = [1.0, 2.0, 5.0]
    if top / bottom > 3000:
      subs = [1.0]
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs, numticks=20))
    axes.yaxis.set_major_formatter(lambda value, _: tick(value))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
  axes.set_ylim(bottom, top)


def scale_rounds(axes: Axes) -> None:
  """Labels the x-axis as rounds."""
  axes.set_xlabel('Round')
  axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))


def tick(value: float) -> str:
  """Formats a number for an axis."""
  if value >= 1e6:
    return f'{value:.0e}'.replace('e+0', 'e').replace('e+', 'e')
  if value >= 100:
    return f'{value:,.0f}'
  return f'{value:.3g}'


def percent(value: float, unused_position: float = 0) -> str:
  """Formats a fraction for an axis."""
  return f'{100 * value:g} %'


def finish(name: str, caption: str, figure: Figure, axes: Axes) -> Picture:
  """Adds a legend in the order in which the curves end, and renders.

  Args:
    name: File name without extension.
    caption: Sentences that explain the figure.
    figure: A figure from `blank_axes`.
    axes: Its axes, with labelled curves.
  """

  def end(entry: Tuple[Any, str]) -> float:
    values = entry[0].get_ydata()
    return float(values[-1]) if len(values) else -np.inf

  entries = sorted(
    zip(*axes.get_legend_handles_labels()), key=end, reverse=True
  )
  many = len(entries) > 8
  figure.legend(
    [handle for handle, _ in entries],
    [_wrap(label, 24 if many else 18) for _, label in entries],
    loc='outside right upper',
    fontsize=6 if many else 7,
    labelcolor='linecolor',
    handlelength=1.5,
    labelspacing=0.6,
    borderpad=0,
  )
  return render(name, caption, figure)


def _wrap(label: str, width: int) -> str:
  """Breaks a label after commas only."""
  unbroken = label.replace(' ', '\xa0').replace(',\xa0', ', ')
  lines = textwrap.fill(
    unbroken, width, break_long_words=False, break_on_hyphens=False
  )
  return lines.replace('\xa0', ' ')


def render(name: str, caption: str, figure: Figure) -> Picture:
  """Saves a finished figure as PNG and SVG.

  Args:
    name: File name without extension.
    caption: Sentences that explain the figure.
    figure: The figure.
  """
  png, svg = io.BytesIO(), io.BytesIO()
  figure.savefig(png, format='png', dpi=300, metadata={'Software': None})
  with matplotlib.rc_context({'svg.hashsalt': name}):
    figure.savefig(
      svg, format='svg', transparent=True,
      metadata={'Date': None, 'Creator': None},
    )  # fmt: skip
  return Picture(name, caption, png.getvalue(), svg.getvalue().decode('utf-8'))


def for_page(picture: Picture) -> str:
  """Returns a picture's SVG for a page that can be light or dark.

  Colors become the page's variables (`--c0`, ..., `--ink`, `--quiet`,
  `--grid`). Ids are prefixed by the picture's name, so that a page can contain
  several pictures.
  """
  svg = picture.svg[picture.svg.index('<svg') :]
  named = [(f'--c{i}', light) for i, (light, _) in enumerate(PALETTE)]
  named += [('--ink', INK[0]), ('--quiet', QUIET[0]), ('--grid', GRID[0])]
  for variable, color in named:
    svg = svg.replace(color, f'var({variable})')
  svg = re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{picture.name}-', svg)
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  words = html.escape(picture.caption)
  return svg.replace('<svg ', f'<svg role="img" aria-label="{words}" ', 1)
