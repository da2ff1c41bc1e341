"""Results of fine-tuning: rows, distributions, summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from si_federated.personalization import distributions
from si_federated.personalization.fine_tuning import ClientResult


def rows(
  results: Sequence[ClientResult], client_id: Callable[[int], str]
) -> list[dict[str, Any]]:
  """Returns a flat row for each client.

  Args:
    results: The results of each client.
    client_id: Returns the name of a client.

  Returns:
    Columns such as `client`, `num_test`, `before/loss`, `after/loss`.
  """
  return [
    {
      'client': client_id(one.client),
      'num_train': one.num_train,
      'num_test': one.num_test,
      **{f'before/{key}': value for key, value in one.before.items()},
      **{f'after/{key}': value for key, value in one.after.items()},
    }
    for one in results
  ]


def describe(results: Sequence[ClientResult]) -> dict[str, Any]:
  """Describes metrics before and after; see `distributions.compare`.

  Args:
    results: The results of at least one client.
  """
  return distributions.compare(
    [_without_counts(one.before) for one in results],
    [_without_counts(one.after) for one in results],
  )


def _without_counts(metrics: Mapping[str, float]) -> dict[str, float]:
  """Returns the metrics without counts."""
  return {k: v for k, v in metrics.items() if not k.startswith('num_')}


def summarize(described: Mapping[str, Any], num_clients: int) -> dict[str, Any]:
  """Summarizes the effect of fine-tuning.

  Args:
    described: The result of `describe`.
    num_clients: The number of clients.

  Returns:
    The number of clients, the number whose loss got worse, and medians.
  """
  return {
    'num_clients': num_clients,
    'num_worse': described['loss']['num_worse'],
    **{
      f'median_{name}_{when}': described[name][when]['quantiles']['50']
      for name in ('perplexity', 'loss', 'accuracy')
      if name in described
      for when in ('before', 'after')
    },
  }
