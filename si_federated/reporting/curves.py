"""Curves to draw: one for each set of repeated runs."""

from __future__ import annotations

import dataclasses
from typing import List, Tuple

import numpy as np
import pandas as pd

from si_federated.reporting import run_groups, runs
from si_federated.reporting.runs import Run

_COSTS = {'bytes': runs.BYTES_UP_TOTAL, 'epsilon': runs.EPSILON}


@dataclasses.dataclass(frozen=True)
class Curve:
  """Mean and range of one measurement over the runs of a group.

  Attributes:
    label: The group's label.
    x: Rounds, or seconds, `[N]`.
    mean: Mean over the runs at rounds that all of them have measured, `[N]`.
    low: Smallest value over the runs, `[N]`.
    high: Largest value over the runs, `[N]`.
    tails: x and y of single runs beyond the last common round.
    diverged: Number of runs that diverged.
    end: The last point measured, or None for a curve without points.
  """

  label: str
  x: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray
  tails: Tuple[Tuple[np.ndarray, np.ndarray], ...]
  diverged: int
  end: Tuple[float, float] | None

  @property
  def start(self) -> float:
    """The highest first value, of the mean or of a single run."""
    first = [y[0] for y in self._ys(self.mean)]
    return float(max(first))

  @property
  def lowest(self) -> float:
    """The lowest value drawn."""
    return float(min(np.min(y) for y in self._ys(self.low)))

  @property
  def highest(self) -> float:
    """The highest value drawn."""
    return float(max(np.max(y) for y in self._ys(self.high)))

  def _ys(self, common: np.ndarray) -> List[np.ndarray]:
    return [y for y in (common, *(tail[1] for tail in self.tails)) if len(y)]


def curve(
  group: run_groups.Group,
  column: str,
  *,
  against: str = 'round',
  window: int = 1,
  until_divergence: bool = False,
) -> Curve:
  """Builds a curve from a column of the runs' metrics.

  Args:
    group: The runs.
    column: Column of `metrics.csv`.
    against: The x-axis: `'round'`, `'time'` (seconds of training), `'bytes'`
      (uploaded by all clients so far) or `'epsilon'` (spent so far), averaged
      over the runs at each round.
    window: Rounds of the trailing mean that smooths values.
    until_divergence: Whether to leave out values measured after a run
      diverged.

  Returns:
    The curve. Non-finite values are left out.
  """
  values, places = [], []
  for run in group.runs:
    one = run.finite(column)
    if until_divergence and run.divergence:
      one = one[one.index < run.divergence.round_num]
    if window > 1:
      one = one.rolling(window, min_periods=1).mean()
    place = _places(run, one, against)
    values.append(one.loc[place.index])
    places.append(place)
  table = pd.concat(values, axis=1, join='inner').sort_index()
  common = pd.concat(places, axis=1, join='inner').sort_index().mean(axis=1)
  tails: List[Tuple[np.ndarray, np.ndarray]] = []
  ends = []
  last = table.index[-1] if len(table) else -np.inf
  for one, place in zip(values, places):
    if len(one):
      ends.append((float(place.iloc[-1]), float(one.iloc[-1])))
    if len(one[one.index > last]):
      rest = one[one.index >= last]
      tails.append((place.loc[rest.index].to_numpy(), rest.to_numpy()))
  end = max(ends) if ends else None
  if len(table) and not tails:
    end = float(common.iloc[-1]), float(table.mean(axis=1).iloc[-1])
  return Curve(
    label=group.label,
    x=common.to_numpy(dtype=float),
    mean=table.mean(axis=1).to_numpy(dtype=float),
    low=table.min(axis=1).to_numpy(dtype=float),
    high=table.max(axis=1).to_numpy(dtype=float),
    tails=tuple(tails),
    diverged=sum(run.divergence is not None for run in group.runs),
    end=end,
  )


def _places(run: Run, values: pd.Series, against: str) -> pd.Series:
  """Returns the x of each value: its round, or the cost up to that round."""
  if against == 'round':
    return pd.Series(values.index, index=values.index, dtype=float)
  costs = run.wall_secs() if against == 'time' else run.finite(_COSTS[against])
  if not len(costs):
    return pd.Series(dtype=float)
  # The evaluation before the first round costs nothing.
  if costs.index[0] > 0:
    costs = pd.concat([pd.Series([0.0], index=[0]), costs])
  kept = values.index[values.index <= costs.index[-1]]
  return pd.Series(np.interp(kept, costs.index, costs), index=kept)
