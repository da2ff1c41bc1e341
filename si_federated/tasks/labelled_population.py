"""Populations of clients whose examples are labelled texts."""

from __future__ import annotations

import dataclasses
from typing import Callable, Sequence

import numpy as np

from si_federated.tasks.populations import Population
from si_federated.tasks.seeded_orders import check_at_least_one, permutation


@dataclasses.dataclass(frozen=True)
class LabelledPopulation(Population):
  """The clients of one split; see `Population`.

  Attributes:
    ids: `[N, T]` ids of every text, padded with 0.
    labels: `[N]` int32 classes.
    clients: The name of each client and the `[n]` numbers of its texts.
  """

  ids: np.ndarray
  labels: np.ndarray
  clients: tuple[tuple[str, np.ndarray], ...]

  def __post_init__(self):
    if len(self.ids) != len(self.labels):
      raise ValueError(
        f'There are {len(self.ids)} texts, but {len(self.labels)} labels; give '
        'each text a label.'
      )

  def __len__(self) -> int:
    return len(self.clients)

  @property
  def sequence_length(self) -> int:
    """T, the number of ids of a text."""
    return self.ids.shape[1]

  def _client(self, index: int) -> tuple[str, np.ndarray]:
    if not 0 <= index < len(self):
      raise IndexError(
        f'There is no client {index}: the population has {len(self)} clients.'
      )
    return self.clients[int(index)]

  def client_id(self, index: int) -> str:
    """Returns the name of a client, 0 <= index < len(self)."""
    return self._client(index)[0]

  def num_examples(self, index: int) -> int:
    """Returns the number of texts of a client."""
    return len(self._client(index)[1])

  def examples(self, index: int) -> np.ndarray:
    """Returns a client's texts in stored order.

    Args:
      index: The client.

    Returns:
      `[n, T + 1]` int32: the ids, then the label.
    """
    return self.rows(self._client(index)[1])

  def rows(self, numbers: np.ndarray) -> np.ndarray:
    """Returns `[n, T + 1]` int32 ids and labels of texts by their numbers."""
    ids = self.ids[numbers].astype(np.int32)
    return np.concatenate([ids, self.labels[numbers, None]], axis=1)

  def select(self, index: int, order: np.ndarray) -> np.ndarray:
    """Returns texts of a client by their numbers, `[m, T + 1]` int32."""
    return self.rows(self._client(index)[1][order])

  def split(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids `[n, T]` and labels `[n]` of rows `[n, T + 1]`."""
    return text_and_label(rows)

  def subset(
    self,
    members: Sequence[int],
    rows: Callable[[int], np.ndarray | None] = lambda _: None,
  ) -> LabelledPopulation:
    """Returns some of the clients; see `Population`."""
    clients = []
    for index in members:
      name, numbers = self._client(index)
      kept = rows(index)
      clients.append((name, numbers if kept is None else numbers[kept]))
    return dataclasses.replace(self, clients=tuple(clients))

  def sample_examples(self, max_examples: int, *, seed: int) -> np.ndarray:
    """Returns a random subset of the texts of all clients.

    Args:
      max_examples: The maximum number of texts.
      seed: The seed of the choice.

    Returns:
      `[n, T + 1]` int32 in stored order.
    """
    check_at_least_one('max_examples', max_examples)
    numbers = np.concatenate([numbers for _, numbers in self.clients])
    if len(numbers) > max_examples:
      generator = np.random.PCG64(seed)
      numbers = numbers[permutation(generator, len(numbers))[:max_examples]]
    return self.rows(np.sort(numbers))


def text_and_label(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns ids `[n, T]` and labels `[n]` of rows `[n, T + 1]`."""
  return rows[:, :-1], rows[:, -1]
