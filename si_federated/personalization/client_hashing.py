"""Opt-outs, orders and splits as functions of a seed and a client's name.

They depend neither on the order of clients nor on rounds, and are the same in
every process on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from si_federated.tasks.seeded_orders import (
  hashed_number,
  hashed_permutation,
)


def has_opted_out(client_id: str, *, seed: int, fraction: float) -> bool:
  """Returns whether a client keeps its data out of the global model.

  Args:
    client_id: The client's name.
    seed: The seed of the choice.
    fraction: The share of clients that opt out, from 0 to 1.
  """
  return hashed_number('opt out', seed, client_id) < fraction * 2.0**64


def order_clients(client_ids: Sequence[str], *, seed: int) -> list[int]:
  """Returns the positions of clients in an order drawn from their names.

  Args:
    client_ids: The clients' names.
    seed: The seed of the order.
  """
  return sorted(
    range(len(client_ids)),
    key=lambda i: (hashed_number('order', seed, client_ids[i]), client_ids[i]),
  )


def split_rows(
  num_rows: int, fractions: Sequence[float], *words: object
) -> list[np.ndarray] | None:
  """Splits the rows of a client at random.

  Args:
    num_rows: The number of rows.
    fractions: The share of each part, adding up to 1; each part but the first
      gets at least one row, and the first gets the rest.
    *words: The values that determine the choice.

  Returns:
    The rows of each part, sorted; None if there are fewer rows than parts.
  """
  sizes = [max(1, round(fraction * num_rows)) for fraction in fractions[1:]]
  if num_rows <= sum(sizes):
    return None
  order = hashed_permutation(num_rows, 'rows', *words)
  ends = np.cumsum([num_rows - sum(sizes), *sizes])
  return [np.sort(part) for part in np.split(order, ends[:-1])]
