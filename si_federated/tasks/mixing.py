"""Makes clients more similar by exchanging some of their sentences.

Karimireddy et al. 2020 (SCAFFOLD, arXiv 1910.06378) control heterogeneity by
giving clients s % of independent and identically distributed data. Here clients
keep their sizes, and every sentence belongs to one client.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

import numpy as np

from si_federated.tasks.populations import ClientPopulation
from si_federated.tasks.task import Task

_ROUNDS = 6


def _hash(values: Any, key: int) -> np.ndarray:
  """Returns 64 pseudorandom bits for each value (finalizer of SplitMix64)."""
  x = np.asarray(values).astype(np.uint64)
  x = x + np.uint64(key % 2**64) * np.uint64(0x9E3779B97F4A7C15)
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
    x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
  return x ^ (x >> np.uint64(31))


def permute(values: np.ndarray, size: int, seed: int) -> np.ndarray:
  """Permutes 0 to size - 1 without a table, at chosen values.

  A Feistel network on the next power of four, iterated until the result is
  below `size`.

  Args:
    values: `[n]` int64, from 0 to size - 1.
    size: The size of the permutation.
    seed: Chooses the permutation.

  Returns:
    The image of each value, `[n]` int64.
  """
  half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
  mask = (np.uint64(1) << half) - np.uint64(1)
  result = np.array(values, dtype=np.uint64)
  outside = np.ones(result.shape, bool)
  with np.errstate(over='ignore'):
    while outside.any():
      x = result[outside]
      left, right = x >> half, x & mask
      for turn in range(_ROUNDS):
        key = int(_hash(np.uint64(turn), seed + 1))
        left, right = right, left ^ (_hash(right, key) & mask)
      result[outside] = (left << half) | right
      outside[outside] = result[outside] >= np.uint64(size)
  return result.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class MixedPopulation(ClientPopulation):
  """Clients that exchange some of their sentences with all others.

  The exchange depends only on the seed, so that a client has the same sentences
  in every round. The sentences that a client gives away are spread evenly over
  its text. Memory grows with the number of clients, not of sentences.

  Attributes:
    similarity: The fraction of each client's sentences that is exchanged, from
      0 to 1; numbers of sentences are rounded at random.
    seed: The seed of the exchange.
    slots: `[clients + 1]` numbers of sentences that all previous clients give
      away; derived.
  """

  similarity: float = 0.0
  seed: int = 0
  slots: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.similarity <= 1:
      raise ValueError(
        f'similarity must be from 0 to 1; got {self.similarity}.'
      )
    sizes = np.diff(np.asarray(self.arrays.client_offsets))
    with np.errstate(over='ignore'):
      draws = _hash(np.arange(len(sizes)), 2 * self.seed + 1)
    uniform = (draws >> np.uint64(11)).astype(np.float64) / 2**53
    counts = np.minimum(
      np.floor(self.similarity * sizes + uniform).astype(np.int64), sizes
    )
    # The number of the first slot of each client.
    slots = np.concatenate([[0], np.cumsum(counts)])
    object.__setattr__(self, 'slots', slots)

  def _shift(self, clients: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns where the sentences given away begin, from 0 to size - 1."""
    with np.errstate(over='ignore'):
      draws = _hash(clients, 2 * self.seed + 2)
    return (draws % np.maximum(sizes, 1).astype(np.uint64)).astype(np.int64)

  def sentence_numbers(self, index: int, order: np.ndarray) -> np.ndarray:
    """Returns the numbers of a client's sentences; see the base class."""
    own = super().sentence_numbers(index, order)
    slots = self.slots
    count = int(slots[index + 1] - slots[index])
    size = self.num_examples(index)
    if not count:
      return own
    order = np.asarray(order, np.int64)
    shift = int(self._shift(np.array([index]), np.array([size]))[0])
    # The j-th sentence given away is number (j * size + shift) // count.
    j = -((shift - order * count) // size)
    goes = (j >= 0) & (j < count) & ((j * size + shift) // count == order)
    others = permute(slots[index] + j[goes], int(slots[-1]), self.seed)
    clients = np.searchsorted(slots, others, side='right') - 1
    offsets = self.arrays.client_offsets
    starts = np.asarray(offsets[clients])
    sizes = np.asarray(offsets[clients + 1]) - starts
    counts = slots[clients + 1] - slots[clients]
    places = (
      (others - slots[clients]) * sizes + self._shift(clients, sizes)
    ) // counts
    result = own.copy()
    result[goes] = starts + places
    return result


def mix(task: Task, similarity: Optional[float], seed: int) -> Task:
  """Returns a task with more similar training clients.

  Args:
    task: The task; validation and test clients do not change.
    similarity: See `MixedPopulation`; None or 0 returns the task itself.
    seed: The seed of the exchange.

  Raises:
    ValueError: If the task's clients are of another kind.
  """
  if not similarity:
    return task
  train = task.train
  if type(train) is not ClientPopulation:
    raise ValueError(
      f'The clients of task {task.name} cannot be mixed; leave '
      '--client_similarity out.'
    )
  mixed = MixedPopulation(
    train.arrays, train.num_words, train.sequence_length, similarity, seed
  )
  return dataclasses.replace(task, train=mixed)
