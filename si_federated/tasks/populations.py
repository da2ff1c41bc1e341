"""Populations of clients over token arrays."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Protocol, Sequence

import numpy as np
import tensorflow as tf

from si_federated.tasks.seeded_orders import (
  check_at_least_one,
  permutation,
  training_order,
)
from si_federated.tasks.token_arrays import MAX_WORDS, TokenArrays


class Population(Protocol):
  """The clients of one split, each with examples of `T + 1` numbers.

  Orders and batches depend on a seed and the client alone.
  """

  def __len__(self) -> int: ...

  def client_id(self, index: int) -> str:
    """Returns the name of a client, 0 <= index < len(self)."""
    ...

  def num_examples(self, index: int) -> int:
    """Returns the number of examples of a client."""
    ...

  def examples(self, index: int) -> np.ndarray:
    """Returns a client's examples in stored order, `[n, T + 1]` int32."""
    ...

  def split(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples `[n, T + 1]` into inputs and labels."""
    ...

  def subset(
    self,
    members: Sequence[int],
    rows: Callable[[int], np.ndarray | None] = lambda _: None,
  ) -> Population:
    """Returns some of the clients, numbered from 0, as a population.

    Args:
      members: The clients that belong to it.
      rows: Returns the examples of a client, by its number here, that belong to
        it; None for all.
    """
    ...

  def select(self, index: int, order: np.ndarray) -> np.ndarray:
    """Returns examples of a client by their numbers, `[m, T + 1]` int32."""
    return self.examples(index)[order]

  def order(
    self,
    index: int,
    *,
    epochs: int,
    max_elements: int | None,
    seed: int | Sequence[int] | None,
  ) -> np.ndarray:
    """Returns the order of a client's examples; see `training_examples`."""
    return training_order(
      self.num_examples(index),
      index=index,
      epochs=epochs,
      max_elements=max_elements,
      seed=seed,
    )

  def training_examples(
    self,
    index: int,
    *,
    epochs: int = 1,
    max_elements: int | None = None,
    seed: int | Sequence[int] | None = None,
  ) -> np.ndarray:
    """Returns the examples of a client in the order of a training pass.

    Shuffled, repeated with a new order in every epoch, then cut to
    `max_elements`, as in TFF's Stack Overflow baseline. Differs from the
    baseline: the shuffle is over the whole client, not a buffer of 1,000.

    Args:
      index: The client.
      epochs: The number of passes over the examples.
      max_elements: At most this many examples over all epochs; None for all.
      seed: Determines the order, with the client; None for stored order.

    Returns:
      `[m, T + 1]` int32.

    Raises:
      ValueError: If a number is out of range.
    """
    return self.select(
      index,
      self.order(index, epochs=epochs, max_elements=max_elements, seed=seed),
    )

  def client_batches(
    self,
    index: int,
    *,
    batch_size: int,
    epochs: int = 1,
    max_elements: int | None = None,
    seed: int | Sequence[int] | None = None,
  ) -> tf.data.Dataset:
    """Returns the batches of one client for one round.

    Args:
      index: The client.
      batch_size: Examples per batch; the last batch may have fewer.
      epochs: See `training_examples`.
      max_elements: See `training_examples`.
      seed: See `training_examples`.

    Returns:
      A dataset of int32 inputs `[b, T]` and labels, `[b, T]` or `[b]`.

    Raises:
      ValueError: If a number is out of range.
    """
    rows = self.training_examples(
      index, epochs=epochs, max_elements=max_elements, seed=seed
    )
    return in_batches(self.split(rows), batch_size)

  def stacked_batches(
    self,
    index: int,
    *,
    batch_size: int,
    epochs: int = 1,
    max_elements: int | None = None,
    seed: int | Sequence[int] | None = None,
  ) -> tuple[int, list[np.ndarray]]:
    """Returns the batches of `client_batches` as arrays, without a dataset.

    Args:
      index: The client.
      batch_size: See `client_batches`.
      epochs: See `training_examples`.
      max_elements: See `training_examples`.
      seed: See `training_examples`.

    Returns:
      The number of examples in all batches, then inputs `[S, b, T]` and labels
      `[S, b, T]` or `[S, b]`, int32. The last batch is padded with zeros.

    Raises:
      ValueError: If a number is out of range.
    """
    check_at_least_one('batch_size', batch_size)
    rows = self.training_examples(
      index, epochs=epochs, max_elements=max_elements, seed=seed
    )
    size = min(batch_size, len(rows))
    steps = -(-len(rows) // size) if size else 0
    stacks = []
    for part in self.split(rows):
      filled = np.zeros([steps * size, *part.shape[1:]], part.dtype)
      filled[: len(part)] = part
      stacks.append(filled.reshape([steps, size, *part.shape[1:]]))
    return len(rows), stacks


@dataclasses.dataclass(frozen=True)
class ClientPopulation(Population):
  """The clients of one split, as sentences of ids of a fixed length.

  Clients are read when needed and not kept afterwards, so that a round costs
  only as much as its cohort.

  Attributes:
    arrays: The sentences as word ranks.
    num_words: V, the number of words with an id.
    sequence_length: T, the number of words to which sentences are cut.
  """

  arrays: TokenArrays
  num_words: int
  sequence_length: int

  def __post_init__(self):
    if not 1 <= self.num_words <= MAX_WORDS:
      raise ValueError(
        f'A vocabulary has 1 to {MAX_WORDS} words; got {self.num_words}.'
      )
    if self.sequence_length < 1:
      raise ValueError(
        f'sequence_length must be 1 or more; got {self.sequence_length}.'
      )

  def __len__(self) -> int:
    return len(self.arrays.client_id_offsets) - 1

  @property
  def num_sentences(self) -> int:
    """Number of sentences of all clients."""
    return len(self.arrays.sentence_offsets) - 1

  def _client(self, index: int) -> int:
    if not 0 <= index < len(self):
      raise IndexError(
        f'There is no client {index}: the population has {len(self)} clients.'
      )
    return int(index)

  def client_id(self, index: int) -> str:
    """Returns the name of a client, 0 <= index < len(self)."""
    start, stop = self.arrays.client_id_offsets[
      self._client(index) : index + 2
    ].tolist()
    return bytes(self.arrays.client_ids[start:stop]).decode()

  def num_examples(self, index: int) -> int:
    """Returns the number of sentences of a client."""
    start, stop = self._sentence_range(index)
    return stop - start

  def _sentence_range(self, index: int) -> tuple[int, int]:
    start, stop = self.arrays.client_offsets[
      self._client(index) : index + 2
    ].tolist()
    return start, stop

  def examples(self, index: int) -> np.ndarray:
    """Returns a client's sentences in stored order.

    Args:
      index: The client, 0 <= index < len(self).

    Returns:
      `[n, T + 1]` int32: the beginning token, at most T words, the end token if
      there are fewer than T words, zeros.
    """
    return self.select(index, np.arange(self.num_examples(index)))

  def sentence_numbers(self, index: int, order: np.ndarray) -> np.ndarray:
    """Returns the numbers of some of a client's sentences in the split.

    Args:
      index: The client.
      order: `[n]` numbers within the client, from 0.

    Returns:
      `[n]` numbers for `ids_of`.
    """
    return self._sentence_range(index)[0] + order

  def ids_of(self, sentences: np.ndarray) -> np.ndarray:
    """Returns `[n, T + 1]` int32 ids of the sentences with these numbers."""
    length = self.sequence_length
    unknown = self.num_words + 1
    offsets = self.arrays.sentence_offsets
    starts = np.asarray(offsets[sentences])
    sizes = np.asarray(offsets[sentences + 1]) - starts
    columns = np.arange(length)
    is_word = columns < sizes[:, None]
    ids = np.zeros([len(sentences), length + 1], np.int32)
    ids[:, 0] = unknown + 1
    body = ids[:, 1:]
    positions = (starts[:, None] + columns)[is_word]
    ranks = np.asarray(self.arrays.tokens[positions]).astype(np.int32)
    body[is_word] = np.where(ranks < self.num_words, ranks + 1, unknown)
    (short,) = np.nonzero(sizes < length)
    body[short, sizes[short]] = unknown + 2
    return ids

  def select(self, index: int, order: np.ndarray) -> np.ndarray:
    """Returns sentences of a client by their numbers, `[m, T + 1]` int32."""
    return self.ids_of(self.sentence_numbers(index, order))

  def split(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and the labels one ahead, `[n, T]`, of rows `[n, T + 1]`."""
    return next_tokens(rows)

  def subset(
    self,
    members: Sequence[int],
    rows: Callable[[int], np.ndarray | None] = lambda _: None,
  ) -> Population:
    """Returns some of the clients; see `Population`."""
    # Imported here because that module imports this one.
    from si_federated.tasks.population_subset import PopulationSubset

    return PopulationSubset(self, np.asarray(members, np.int64), rows)

  def sample_examples(self, max_examples: int, *, seed: int) -> np.ndarray:
    """Returns a random subset of the sentences of all clients.

    Args:
      max_examples: The maximum number of sentences.
      seed: The seed of the choice.

    Returns:
      `[n, T + 1]` int32 in stored order, each sentence at most once.
    """
    check_at_least_one('max_examples', max_examples)
    total = self.num_sentences
    if max_examples >= total:
      return self.ids_of(np.arange(total))
    generator = np.random.PCG64(seed)
    if max_examples * 4 >= total:
      chosen = permutation(generator, total)[:max_examples]
    else:  # Memory must not grow with the population.
      chosen = np.empty([0], np.int64)
      while len(chosen) < max_examples:
        drawn = generator.random_raw(max_examples) % np.uint64(total)
        both = np.concatenate([chosen, drawn.astype(np.int64)])
        _, first = np.unique(both, return_index=True)
        chosen = both[np.sort(first)][:max_examples]
    return self.ids_of(np.sort(chosen))

  def label_counts(self, chunk: int = 200_000) -> np.ndarray:
    """Counts the ids of all labels in one pass over all sentences.

    Args:
      chunk: The number of sentences in memory at once.

    Returns:
      `[V + 4]` int64; padding and the beginning token are 0.
    """
    counts = np.zeros([self.num_words + 4], np.int64)
    for start in range(0, self.num_sentences, chunk):
      stop = min(start + chunk, self.num_sentences)
      labels = self.ids_of(np.arange(start, stop))[:, 1:]
      counts += np.bincount(labels.ravel(), minlength=len(counts))
    counts[0] = 0
    return counts


def next_tokens(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns ids and the labels one ahead, `[n, T]`, of rows `[n, T + 1]`."""
  return rows[:, :-1], rows[:, 1:]


def in_batches(arrays: Any, batch_size: int) -> tf.data.Dataset:
  """Returns a dataset of the batches of arrays `[n, ...]`.

  Args:
    arrays: A structure of arrays.
    batch_size: Rows per batch; the last batch may have fewer.

  Raises:
    ValueError: If the batch size is below 1.
  """
  check_at_least_one('batch_size', batch_size)
  return tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size)
