"""A part of a population: some clients, and of each some examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

import numpy as np
import tensorflow as tf

from si_federated.personalization import client_hashing
from si_federated.personalization import examples as examples_lib


class ClientPart:
  """Stands for a population in the rounds; there is no way to the rest.

  Clients are numbered anew from 0, so that whoever has no number here can be
  neither sampled nor read. The methods are those of `ClientPopulation`.
  """

  def __init__(
    self,
    population: Any,
    members: np.ndarray,
    rows: Callable[[int], Optional[np.ndarray]],
    element_spec: Any,
  ):
    """Initializes the part; nothing is read.

    Args:
      population: A `ClientPopulation`, or one like it.
      members: The numbers of those who belong to it, `[n]`.
      rows: Returns which examples of the client with a number there belong to
        it; None for all.
      element_spec: The specs of a batch.
    """
    self._population = population
    self._members = np.asarray(members, np.int64)
    self._rows = rows
    self._element_spec = element_spec

  def __len__(self) -> int:
    return len(self._members)

  @property
  def num_words(self) -> int:
    """As of the population."""
    return self._population.num_words

  @property
  def sequence_length(self) -> int:
    """As of the population."""
    return self._population.sequence_length

  @property
  def num_sentences(self) -> int:
    """Number of examples of all clients."""
    return sum(self.num_examples(index) for index in range(len(self)))

  def _member(self, index: int) -> int:
    if not 0 <= index < len(self):
      raise IndexError(
        f'There is no client {index}: this part has {len(self)} clients.'
      )
    return int(self._members[index])

  def client_id(self, index: int) -> str:
    """Returns the name of a client, 0 <= index < len(self)."""
    return self._population.client_id(self._member(index))

  def num_examples(self, index: int) -> int:
    """Returns the number of examples of a client."""
    member = self._member(index)
    rows = self._rows(member)
    return self._population.num_examples(member) if rows is None else len(rows)

  def examples(self, index: int) -> np.ndarray:
    """Returns a client's examples, `[n, T + 1]`, in stored order."""
    member = self._member(index)
    rows = self._rows(member)
    whole = self._population.examples(member)
    return whole if rows is None else whole[rows]

  def training_examples(
    self,
    index: int,
    *,
    epochs: int = 1,
    max_elements: Optional[int] = None,
    seed: Union[int, Sequence[int], None] = None,
  ) -> np.ndarray:
    """Returns the examples of a client in the order of a training pass.

    Arguments, result and errors are those of the population's.
    """
    if epochs < 1:
      raise ValueError(f'epochs must be 1 or more; got {epochs}.')
    if max_elements is not None and max_elements < 1:
      raise ValueError(
        f'max_elements must be 1 or more, or None; got {max_elements}.'
      )
    own = self.examples(index)
    name = self.client_id(index)
    order = np.concatenate(
      [
        np.arange(len(own))
        if seed is None
        else client_hashing.permutation(len(own), 'round', seed, name, epoch)
        for epoch in range(epochs)
      ]
    )
    return own[order[:max_elements]]

  def client_batches(
    self,
    index: int,
    *,
    batch_size: int,
    epochs: int = 1,
    max_elements: Optional[int] = None,
    seed: Union[int, Sequence[int], None] = None,
  ) -> tf.data.Dataset:
    """Returns the batches of one client for one round.

    Arguments, result and errors are those of the population's.
    """
    if batch_size < 1:
      raise ValueError(f'batch_size must be 1 or more; got {batch_size}.')
    return examples_lib.batches(
      self.training_examples(
        index, epochs=epochs, max_elements=max_elements, seed=seed
      ),
      self._element_spec,
      batch_size,
    )

  def label_counts(self) -> np.ndarray:
    """Counts how often each id is a label, `[V + 4]` int64; padding is 0."""
    counts = np.zeros([self.num_words + 4], np.int64)
    for index in range(len(self)):
      _, labels = examples_lib.inputs_and_labels(
        self.examples(index), self._element_spec
      )
      counts += np.bincount(labels.ravel(), minlength=len(counts))
    counts[0] = 0
    return counts
