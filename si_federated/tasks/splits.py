"""Assigns clients to training, validation and test by their names."""

from __future__ import annotations

import hashlib
from typing import Iterable, Mapping


def _hash(client_id: str) -> int:
  return int.from_bytes(hashlib.sha256(client_id.encode()).digest()[:8], 'big')


def split_of(client_id: str) -> str:
  """Returns the split of a client: 80 % train, 10 % validation, 10 % test.

  It depends on the name alone, so that a client keeps its split when others
  come or go, on every machine.

  >>> split_of('numpy.linalg')
  'train'
  """
  bucket = _hash(client_id) % 10
  if bucket < 8:
    return 'train'
  return 'validation' if bucket == 8 else 'test'


def split_all(
  client_ids: Iterable[str],
  *,
  held: tuple[str, ...] = ('validation', 'test'),
) -> Mapping[str, str]:
  """Takes a tenth of the clients, one at least, for each held-out split.

  For populations that may be so small that `split_of` would leave a split
  empty. The clients with the smallest hashes are held out.

  Args:
    client_ids: All clients.
    held: Which splits to fill.

  Returns:
    The split of each client that is held out; the others are for training.

  Raises:
    ValueError: There are too few clients for one in each split.
  """
  ordered = sorted(set(client_ids), key=lambda name: (_hash(name), name))
  if len(ordered) <= len(held):
    raise ValueError(
      f'{len(ordered)} clients cannot be split into training and '
      f'{" and ".join(held)}; give data of {len(held) + 1} clients or more.'
    )
  size = max(1, len(ordered) // 10)
  return {
    name: split
    for index, split in enumerate(held)
    for name in ordered[index * size : (index + 1) * size]
  }
