"""Assigns clients to training, validation and test by a hash of their names."""

from __future__ import annotations

import hashlib
from typing import Iterable, Mapping


def _hash(client_id: str) -> int:
  return int.from_bytes(hashlib.sha256(client_id.encode()).digest()[:8], 'big')


def split_of(client_id: str) -> str:
  """Returns the split of a client: 80 % train, 10 % validation, 10 % test.

  The split depends only on the name, so it is the same on every machine and
  does not change when other clients are added or removed.

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
  """Holds out a tenth of the clients, at least one, for each split in `held`.

  Use this for small populations, where `split_of` can leave a split empty. The
  clients with the smallest hashes are held out.

  Args:
    client_ids: All clients.
    held: The splits to fill.

  Returns:
    The split of each held-out client; all other clients are for training.

  Raises:
    ValueError: There are too few clients to fill every split.
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
