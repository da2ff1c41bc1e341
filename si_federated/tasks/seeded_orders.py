"""Orders of clients and examples, as functions of seeds and names.

They are the same in every process, on every machine and with every NumPy.
"""

from __future__ import annotations

import hashlib
from typing import Sequence

import numpy as np


def permutation(generator: np.random.PCG64, size: int) -> np.ndarray:
  """Returns a random order of `size` items, the same with every NumPy."""
  # Sorted raw output, because NumPy guarantees the stream of a bit generator
  # but not that of `Generator.permutation`.
  return np.argsort(generator.random_raw(size), kind='stable')


def hashed_number(*words: object) -> int:
  """Returns a number below 2^64, a hash of the words."""
  text = '\0'.join(map(str, words))
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')


def hashed_permutation(size: int, *words: object) -> np.ndarray:
  """Returns an order of `size` items as a function of the words alone.

  Args:
    size: The number of items.
    *words: The values that determine it, such as a seed and a client's name.
  """
  return permutation(np.random.PCG64(hashed_number(*words)), size)


def training_order(
  size: int,
  *,
  index: int,
  epochs: int = 1,
  max_elements: int | None = None,
  seed: int | Sequence[int] | None = None,
) -> np.ndarray:
  """Returns the order of a client's examples in a training pass, `[m]`.

  Args:
    size: The number of examples.
    index: The client.
    epochs: The number of passes over the examples.
    max_elements: At most this many over all epochs; None for all.
    seed: Determines the order, with the client's index; None for stored order.

  Raises:
    ValueError: If a number is out of range.
  """
  check_at_least_one('epochs', epochs)
  if max_elements is not None:
    check_at_least_one('max_elements', max_elements)
  total = epochs * size
  if max_elements is not None:
    total = min(total, max_elements)
  if seed is None:
    return np.arange(total) % max(size, 1)
  words = [seed] if isinstance(seed, (int, np.integer)) else list(seed)
  generator = np.random.PCG64([*words, index])
  passes = [permutation(generator, size) for _ in range(-(-total // size))]
  return np.concatenate(passes)[:total]


def check_at_least_one(name: str, value: int) -> None:
  """Raises a ValueError if a number of examples is below 1."""
  if value < 1:
    raise ValueError(f'{name} must be 1 or more; got {value}.')
