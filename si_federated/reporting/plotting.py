"""The paper that figures are drawn on: style, axes, labels, files."""

from __future__ import annotations

import dataclasses
import html
import io
import re
from typing import List, Sequence, Tuple

import matplotlib
from matplotlib import lines, ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Colour on white, colour on black. Chosen so that all seven stay apart under
# simulated red and green blindness and stand out from the page.
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

_COLUMN_INCHES = 3.5
_POINTS = 72.0
_GAP = 9.0  # Points between the axes and the labels.
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
  'lines.linewidth': 1.4,
  'lines.solid_capstyle': 'round',
  'svg.fonttype': 'path',
}


@dataclasses.dataclass(frozen=True)
class Picture:
  """A drawn figure.

  Attributes:
    name: File name without ending.
    caption: What it shows, in sentences.
    png: The picture for papers and Markdown, 300 dots an inch.
    svg: The same as vectors, with the colours for a white page.
  """

  name: str
  caption: str
  png: bytes
  svg: str


@dataclasses.dataclass(frozen=True)
class Label:
  """Text in the right margin.

  Attributes:
    text: The text.
    color: Its colour.
    value: The y, in data, of what it names.
    end: Where the curve that it names ends, in data; None for a level line.
  """

  text: str
  color: str
  value: float
  end: Tuple[float, float] | None = None


def blank_axes(ylabel: str, curves_drawn: int) -> Tuple[Figure, Axes]:
  """Returns an empty figure as wide as a paper's column.

  Args:
    ylabel: What the y-axis shows.
    curves_drawn: Number of curves; many make the figure higher.

  Returns:
    The figure and its axes.
  """
  height = max(2.45, 0.6 + 0.135 * curves_drawn)
  figure = Figure(figsize=(_COLUMN_INCHES, height))
  FigureCanvasAgg(figure)
  axes = figure.add_axes((0.15, 0.17, 0.6, 0.79))
  axes.set_ylabel(ylabel)
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(axis='y')
  axes.set_axisbelow(True)
  return figure, axes


def scale_y(axes: Axes, bottom: float, top: float) -> None:
  """Sets a logarithmic axis with plain numbers where the range asks for one.

  Args:
    axes: The axes.
    bottom: Lower end, above 0.
    top: Upper end.
  """
  if top / bottom > 3:
    axes.set_yscale('log')
    subs = (
      (1.0, 2.0, 5.0) if top / bottom > 8 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    )
    if top / bottom > 3000:
      subs = (1.0,)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs, numticks=20))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
  axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: tick(v)))
  axes.set_ylim(bottom, top)


def scale_rounds(axes: Axes) -> None:
  """Makes the x-axis one of rounds."""
  axes.set_xlabel('Round')
  axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))


def tick(value: float) -> str:
  """Returns a number as it stands at an axis."""
  if value >= 1e6:
    return f'{value:.0e}'.replace('e+0', 'e').replace('e+', 'e')
  if value >= 100:
    return f'{value:,.0f}'
  return f'{value:.3g}'


def finish(
  name: str,
  caption: str,
  figure: Figure,
  axes: Axes,
  labels: Sequence[Label],
) -> Picture:
  """Sets the labels beside the axes and renders the figure.

  Args:
    name: File name without ending.
    caption: What the figure shows.
    figure: A figure from `blank_axes`.
    axes: Its axes, drawn and scaled.
    labels: Labels for the right margin.

  Returns:
    The picture.
  """
  many = len(labels) > 8
  texts = [
    figure.text(
      0, 0, _wrap(label.text, 24 if many else 16), fontsize=6 if many else 7,
      color=label.color, va='center', ha='left', linespacing=1.05,
    )
    for label in labels
  ]  # fmt: skip
  figure.canvas.draw()
  scale = _POINTS / figure.dpi
  width, height = (inches * _POINTS for inches in figure.get_size_inches())
  widest = max((t.get_window_extent().width for t in texts), default=0) * scale
  # The last tick's label sticks out to the right by up to half its width.
  right = width - max(1.03 * widest + _GAP + 2, 14)
  occupied = axes.get_tightbbox()
  assert occupied is not None
  place = axes.get_position()
  left = place.x0 * width - occupied.x0 * scale + 3
  bottom = place.y0 * height - occupied.y0 * scale + 3
  axes.set_position(
    (left / width, bottom / height, (right - left) / width,
     (height - bottom - 8) / height)
  )  # fmt: skip
  figure.canvas.draw()
  wanted, heights = [], []
  for label, text in zip(labels, texts):
    at = (axes.get_xlim()[1], label.value)
    wanted.append(float(axes.transData.transform(at)[1]) * scale)
    heights.append(text.get_window_extent().height * scale + 1.5)
  places = spread(wanted, heights, 2.0, height - 2.0)
  for text, label, y, at_y in zip(texts, labels, places, wanted):
    text.set_position(((right + _GAP) / width, y / height))
    start = right + 1.5
    if label.end is not None:
      start = float(axes.transData.transform(label.end)[0]) * scale + 3
    # A thin line leads from the curve's end to a label that stands off it.
    if start < right - 4 or abs(y - at_y) > 2.5:
      knee = max(start, right + 1.5)
      figure.add_artist(
        lines.Line2D(
          [start / width, knee / width, (right + _GAP - 1.5) / width],
          [at_y / height, at_y / height, y / height],
          color=label.color,
          linewidth=0.5,
          alpha=0.6,
        )
      )
  return render(name, caption, figure)


def render(name: str, caption: str, figure: Figure) -> Picture:
  """Makes a picture of a finished figure.

  Args:
    name: File name without ending.
    caption: What the figure shows.
    figure: The figure.

  Returns:
    The picture.
  """
  png, svg = io.BytesIO(), io.BytesIO()
  figure.savefig(png, format='png', dpi=300, metadata={'Software': None})
  with matplotlib.rc_context({'svg.hashsalt': name}):
    figure.savefig(
      svg, format='svg', transparent=True,
      metadata={'Date': None, 'Creator': None},
    )  # fmt: skip
  return Picture(name, caption, png.getvalue(), svg.getvalue().decode('utf-8'))


def _wrap(text: str, width: int) -> str:
  """Breaks a label after commas only."""
  wrapped = [text.split(', ')[0]]
  for piece in text.split(', ')[1:]:
    if len(wrapped[-1]) + 2 + len(piece) <= width:
      wrapped[-1] += ', ' + piece
    else:
      wrapped[-1] += ','
      wrapped.append(piece)
  return '\n'.join(wrapped)


def spread(
  wanted: Sequence[float],
  heights: Sequence[float],
  low: float,
  high: float,
) -> List[float]:
  """Moves labels apart just as far as they must.

  Args:
    wanted: Where the labels' centres should be, `[N]`.
    heights: The labels' heights, `[N]`.
    low: Lower end of the room.
    high: Upper end of the room; if it is too small labels stand out below.

  Returns:
    The centres, in the order of `wanted`, no two labels overlapping, with
    the least sum of squared moves (pool adjacent violators).
  """
  order = sorted(range(len(wanted)), key=lambda i: wanted[i])
  # Blocks of labels that touch: members, their total height, best lower edge.
  blocks: List[Tuple[List[int], float, float]] = []
  for i in order:
    block = [i], heights[i], wanted[i] - heights[i] / 2
    while blocks and blocks[-1][2] + blocks[-1][1] > block[2]:
      members, total, edge = blocks.pop()
      share = len(members), len(block[0])
      best = (share[0] * edge + share[1] * (block[2] - total)) / (
        share[0] + share[1]
      )
      block = members + block[0], total + block[1], best
    blocks.append(block)
  places = [0.0] * len(wanted)
  edges, floor = [], low
  for _, total, edge in blocks:
    floor = max(edge, floor)
    edges.append(floor)
    floor += total
  ceiling = high
  for position in range(len(blocks) - 1, -1, -1):
    edges[position] = min(edges[position], ceiling - blocks[position][1])
    ceiling = edges[position]
  for (members, _, _), edge in zip(blocks, edges):
    for i in members:
      places[i] = edge + heights[i] / 2
      edge += heights[i]
  return places


def for_page(picture: Picture) -> str:
  """Returns a picture's SVG for a page that may be light or dark.

  Colours become the page's variables (`--c0`, ..., `--ink`, `--quiet`,
  `--grid`); ids get the picture's name in front, so that several pictures may
  stand on one page.
  """
  svg = picture.svg[picture.svg.index('<svg') :]
  named = [(f'--c{i}', light) for i, (light, _) in enumerate(PALETTE)]
  named += [('--ink', INK[0]), ('--quiet', QUIET[0]), ('--grid', GRID[0])]
  for variable, color in named:
    svg = svg.replace(color, f'var({variable})')
  prefix = picture.name + '-'
  svg = re.sub(r'\bid="', f'id="{prefix}', svg)
  svg = re.sub(r'href="#', f'href="#{prefix}', svg)
  svg = re.sub(r'url\(#', f'url(#{prefix}', svg)
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  words = html.escape(picture.caption)
  return svg.replace('<svg ', f'<svg role="img" aria-label="{words}" ', 1)
