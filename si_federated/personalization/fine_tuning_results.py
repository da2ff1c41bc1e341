"""What fine-tuning did for the clients: rows, distributions, summary."""

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
    results: Of each client.
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
  """Describes metrics before and after, as of `distributions.compare`.

  Args:
    results: Of each client, at least one.
  """
  return distributions.compare(
    [_judged(one.before) for one in results],
    [_judged(one.after) for one in results],
  )


def _judged(metrics: Mapping[str, float]) -> dict[str, float]:
  """Leaves out counts."""
  return {k: v for k, v in metrics.items() if not k.startswith('num_')}


def summarize(described: Mapping[str, Any], num_clients: int) -> dict[str, Any]:
  """Says in a few numbers what fine-tuning did.

  Args:
    described: From `describe`.
    num_clients: The number of clients.

  Returns:
    The number of clients, of how many the loss got worse, and medians.
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
