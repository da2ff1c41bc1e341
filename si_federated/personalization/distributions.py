"""Distributions of metrics over clients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = (10, 25, 50, 75, 90)
# Lower is better for these metrics, higher for all others.
_COSTS = ('loss', 'perplexity')


def less_is_better(metric: str) -> bool:
  """Returns whether lower values of a metric are better."""
  return metric in _COSTS


def describe(
  values: Sequence[float] | np.ndarray, *, metric: str
) -> dict[str, Any]:
  """Describes how a metric is distributed over clients.

  Args:
    values: The value of each client, at least one.
    metric: The name, which determines whether lower is better.

  Returns:
    `mean`; `quantiles` by percent, linearly interpolated; and `worst_tenth`,
    the mean over the tenth of clients (at least one) with the worst values.
    Values that are not finite are left out and counted in
    `num_not_finite`, if any.

  Raises:
    ValueError: If there are no values.
  """
  if not len(values):
    raise ValueError('There are no clients to describe.')
  everything = np.asarray(values, np.float64)
  known = everything[np.isfinite(everything)]
  result: dict[str, Any] = {
    'mean': math.nan,
    'quantiles': {str(percent): math.nan for percent in QUANTILES},
    'worst_tenth': math.nan,
  }
  if len(known) < len(everything):
    result['num_not_finite'] = int(len(everything) - len(known))
  if not len(known):
    return result
  from_worst = np.sort(known)
  if less_is_better(metric):
    from_worst = from_worst[::-1]
  result['mean'] = float(known.mean())
  result['quantiles'] = {
    str(percent): float(np.percentile(known, percent)) for percent in QUANTILES
  }
  result['worst_tenth'] = float(from_worst[: math.ceil(len(known) / 10)].mean())
  return result


def compare(
  before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
  """Describes each metric before and after, and how it changed.

  Args:
    before: The metrics of each client.
    after: The same clients' metrics later.

  Returns:
    For each metric `before`, `after` and `change` (after minus before), as
    `describe` returns them; the worst tenth of `change` is the mean over the
    clients that lost most. `num_worse` is the number of clients whose metric
    got worse.
  """
  result = {}
  for metric in before[0]:
    old = np.array([metrics[metric] for metrics in before], np.float64)
    new = np.array([metrics[metric] for metrics in after], np.float64)
    with np.errstate(invalid='ignore'):
      change = new - old
    worse = change > 0 if less_is_better(metric) else change < 0
    # A value that is no longer finite counts as worse.
    worse |= np.isfinite(old) & ~np.isfinite(new)
    result[metric] = {
      'before': describe(old, metric=metric),
      'after': describe(new, metric=metric),
      'change': describe(change, metric=metric),
      'num_worse': int(np.sum(worse)),
    }
  return result
