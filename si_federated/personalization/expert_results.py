"""Results of clients' experts: rows, distributions, summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from si_federated.personalization import distributions
from si_federated.personalization.experts import MODELS


def rows(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns a flat row for each client.

  Args:
    results: The results of `personalize_all`.

  Returns:
    Columns such as `client`, `num_test`, `own/mixture/loss`.
  """
  return [
    {
      **{k: v for k, v in one.items() if not isinstance(v, dict)},
      **{
        f'{place}/{name}/{metric}': value
        for place in ('own', 'overall')
        for name, metrics in one[place].items()
        for metric, value in metrics.items()
      },
      **{
        f'epochs/{name}': epochs['trained']
        for name, epochs in one['epochs'].items()
      },
    }
    for one in results
  ]


def describe(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Describes each model's metrics as distributions over clients.

  Args:
    results: The results of `personalize_all` for at least one client.

  Returns:
    `own` and `overall` by group (`all`, and `opted_in` and `opted_out` if both
    exist), model and metric; see `distributions.describe`.
  """
  groups = {'all': list(results)}
  for name, wanted in (('opted_in', True), ('opted_out', False)):
    group = [one for one in results if one['opted_in'] is wanted]
    if group and len(group) < len(results):
      groups[name] = group
  return {
    place: {
      group: {
        model: {
          metric: distributions.describe(
            [one[place][model][metric] for one in members], metric=metric
          )
          for metric in members[0][place][model]
          if not metric.startswith('num_')
        }
        for model in MODELS
      }
      for group, members in groups.items()
    }
    for place in ('own', 'overall')
  }


def summarize(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Summarizes how the mixture does on clients' own test parts.

  Args:
    results: The results of `personalize_all` for at least one client.

  Returns:
    The number of clients; the median perplexity and accuracy of each model; the
    number of clients whose mixture's loss is at most the lower of the global
    and local models', and the median of the difference.
  """
  losses = {
    model: np.array([one['own'][model]['loss'] for one in results])
    for model in MODELS
  }
  margin = losses['mixture'] - np.minimum(losses['global'], losses['local'])
  summary: dict[str, Any] = {
    'num_clients': len(results),
    'num_opted_out': sum(not one['opted_in'] for one in results),
    'num_mixture_at_least_best': int(np.sum(margin <= 0)),
    'median_loss_above_best': float(np.median(margin)),
  }
  for metric in ('perplexity', 'loss', 'accuracy'):
    for model in MODELS:
      values = [one['own'][model].get(metric) for one in results]
      if None not in values:
        summary[f'median_{metric}_{model}'] = float(np.median(values))
  return summary
