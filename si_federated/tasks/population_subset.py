"""Some clients of a population, with some of their examples."""

from __future__ import annotations

import dataclasses
from typing import Callable, Sequence

import numpy as np

from si_federated.tasks.populations import (
  ClientPopulation,
  Population,
  next_tokens,
)
from si_federated.tasks.seeded_orders import (
  check_at_least_one,
  hashed_permutation,
)


@dataclasses.dataclass(frozen=True)
class PopulationSubset(Population):
  """Some clients of a population, for code that must not read the others.

  Clients are numbered from 0, so that clients outside the subset have no number
  and cannot be sampled. The order of examples depends on a client's name,
  because its number depends on the other members.

  Attributes:
    population: The whole population.
    members: `[n]` numbers of its clients that belong to the subset.
    rows: Returns the examples of a client of the whole population that belong
      to the subset; None for all.
  """

  population: ClientPopulation
  members: np.ndarray
  rows: Callable[[int], np.ndarray | None]

  def __len__(self) -> int:
    return len(self.members)

  @property
  def num_words(self) -> int:
    """See `ClientPopulation`."""
    return self.population.num_words

  @property
  def sequence_length(self) -> int:
    """See `ClientPopulation`."""
    return self.population.sequence_length

  @property
  def num_sentences(self) -> int:
    """The number of sentences of all clients."""
    return sum(self.num_examples(index) for index in range(len(self)))

  def _member(self, index: int) -> int:
    if not 0 <= index < len(self):
      raise IndexError(
        f'There is no client {index}: the subset has {len(self)} clients.'
      )
    return int(self.members[index])

  def client_id(self, index: int) -> str:
    """Returns the name of a client, 0 <= index < len(self)."""
    return self.population.client_id(self._member(index))

  def num_examples(self, index: int) -> int:
    """Returns the number of sentences of a client."""
    member = self._member(index)
    rows = self.rows(member)
    return self.population.num_examples(member) if rows is None else len(rows)

  def examples(self, index: int) -> np.ndarray:
    """Returns a client's sentences in stored order, `[n, T + 1]`."""
    member = self._member(index)
    rows = self.rows(member)
    whole = self.population.examples(member)
    return whole if rows is None else whole[rows]

  def split(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and the labels one ahead, `[n, T]`, of rows `[n, T + 1]`."""
    return next_tokens(rows)

  def subset(
    self,
    members: Sequence[int],
    rows: Callable[[int], np.ndarray | None] = lambda _: None,
  ) -> PopulationSubset:
    """Returns some of the clients; see `Population`."""
    numbers = {self._member(index): index for index in members}

    def rows_there(member: int) -> np.ndarray | None:
      mine, kept = self.rows(member), rows(numbers[member])
      return mine if kept is None else kept if mine is None else mine[kept]

    return dataclasses.replace(
      self, members=np.array([*numbers], np.int64), rows=rows_there
    )

  def order(
    self,
    index: int,
    *,
    epochs: int,
    max_elements: int | None,
    seed: int | Sequence[int] | None,
  ) -> np.ndarray:
    """Returns the order of a client's sentences; see `training_examples`."""
    check_at_least_one('epochs', epochs)
    if max_elements is not None:
      check_at_least_one('max_elements', max_elements)
    size, name = self.num_examples(index), self.client_id(index)
    passes = [
      np.arange(size)
      if seed is None
      else hashed_permutation(size, 'round', seed, name, epoch)
      for epoch in range(epochs)
    ]
    return np.concatenate(passes)[:max_elements]

  def label_counts(self) -> np.ndarray:
    """Counts how often each id is a label, `[V + 4]` int64; padding is 0."""
    counts = np.zeros([self.num_words + 4], np.int64)
    for index in range(len(self)):
      _, labels = self.split(self.examples(index))
      counts += np.bincount(labels.ravel(), minlength=len(counts))
    counts[0] = 0
    return counts
