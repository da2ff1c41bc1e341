"""The figure of mechanisms compared at one epsilon."""

from __future__ import annotations

from typing import Sequence

import matplotlib
from matplotlib import ticker

from si_federated.privacy.epsilon_comparison import Row
from si_federated.reporting import plotting
from si_federated.reporting.plotting import Picture


def _labels(rows: Sequence[Row]) -> list[str]:
  """Returns a label for each row; a second row is named by its sampling."""
  labels, before = [], ''
  for row in rows:
    name = row.mechanism
    labels.append(
      f'… {row.sampling.partition(",")[0]}' if name == before else name
    )
    before = name
  return labels


def draw(rows: Sequence[Row], name: str, epsilon: float) -> Picture:
  """Draws each mechanism's error, with and without amplification.

  Args:
    rows: The rows of the comparison, at least one.
    name: File name without extension.
    epsilon: The epsilon of all rows.

  Returns:
    The picture: a line for each mechanism, errors on a logarithmic axis.
  """
  values = [row.plain.rms_error for row in rows]
  places = range(len(rows))
  with matplotlib.rc_context(rc=plotting.STYLE):  # type: ignore[arg-type]
    figure = plotting.blank_figure(4.5, 0.9 + 0.24 * len(rows))
    axes = figure.subplots()
    plain, sampled = plotting.PALETTE[0][0], plotting.PALETTE[1][0]
    axes.plot(values, places, 'o', color=plain, label='without amplification')
    pairs = [
      (place, row.plain.rms_error, row.sampled.rms_error)
      for place, row in enumerate(rows)
      if row.sampled is not None
    ]
    for place, before, after in pairs:
      axes.plot([before, after], [place] * 2, color=plotting.GRID[0], zorder=1)
    if pairs:
      axes.plot(
        [after for _, _, after in pairs],
        [place for place, _, _ in pairs],
        's',
        color=sampled,
        label='amplified by sampling',
      )
    axes.set_yticks(places, _labels(rows))
    axes.invert_yaxis()
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=[1, 2, 5], numticks=20))
    axes.xaxis.set_major_formatter(lambda value, _: plotting.tick(value))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel(f'Error at epsilon {epsilon:.4g} (clip norms)')
    axes.grid(axis='x')
    figure.legend(loc='outside lower center', ncols=2, fontsize=7)
    return plotting.render(
      name,
      'Root mean square, over rounds, of the standard deviation of the sum of '
      f'all updates so far, at epsilon {epsilon:.4g}, in units of the clip '
      'norm.',
      figure,
    )
