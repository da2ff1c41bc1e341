"""Who has opted out, and how a client's examples are shared out.

Pure functions of a seed and a client's name: nothing about the order of clients
or of rounds enters, and every process on every machine finds the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def _number(*words: object) -> int:
  text = '\0'.join(map(str, words))
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')


def has_opted_out(client_id: str, *, seed: int, fraction: float) -> bool:
  """Tells whether a client keeps its data out of the global model.

  Args:
    client_id: The client's name.
    seed: Makes another choice.
    fraction: The share of clients that opt out, from 0 to 1.
  """
  return _number('opt out', seed, client_id) < fraction * 2.0**64


def order_clients(client_ids: Sequence[str], *, seed: int) -> list[int]:
  """Returns the positions of clients in an order drawn from their names.

  Args:
    client_ids: The clients' names.
    seed: Makes another order.
  """
  return sorted(
    range(len(client_ids)),
    key=lambda i: (_number('order', seed, client_ids[i]), client_ids[i]),
  )


def permutation(size: int, *words: object) -> np.ndarray:
  """Returns an order of `size` things, a function of the words alone.

  Args:
    size: How many.
    *words: Whatever the order depends on, such as a seed and a client's name.
  """
  # Sorted raw output: NumPy keeps its stream from version to version.
  raw = np.random.PCG64(_number(*words)).random_raw(size)
  return np.argsort(raw, kind='stable')


def split_rows(
  num_rows: int, fractions: Sequence[float], *words: object
) -> list[np.ndarray] | None:
  """Shares out the rows of a client at random.

  Args:
    num_rows: How many the client has.
    fractions: The share of each part, adding up to 1; the first part takes what
      rounding leaves, each of the others at least one row.
    *words: Whatever the choice depends on.

  Returns:
    The rows of each part, sorted; None if there are too few to give one to
    each.
  """
  sizes = [max(1, round(fraction * num_rows)) for fraction in fractions[1:]]
  if num_rows <= sum(sizes):
    return None
  order = permutation(num_rows, 'rows', *words)
  ends = np.cumsum([num_rows - sum(sizes), *sizes])
  return [np.sort(part) for part in np.split(order, ends[:-1])]
