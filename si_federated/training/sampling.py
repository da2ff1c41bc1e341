"""The client datasets of a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Union

import numpy as np
import tensorflow as tf


def data_seed(*, seed: int, round_num: int) -> int:
  """Returns the seed for the order of clients' examples in a round."""
  # The last word keeps this stream apart from that of the cohorts.
  state = np.random.SeedSequence([seed, round_num, 1])
  return int(state.generate_state(1)[0])


class Cohort(Sequence):
  """The datasets of a round's clients, built lazily."""

  def __init__(
    self,
    clients: Union[Sequence[int], np.ndarray],
    client_dataset: Callable[[int], tf.data.Dataset],
    client_id: Callable[[int], str],
    client_stack: Callable[[int], list[np.ndarray]] | None = None,
  ):
    """Initializes the cohort.

    Args:
      clients: The clients' indices.
      client_dataset: Returns the batches of the client with an index.
      client_id: Returns the name of the client with an index.
      client_stack: Returns the components of the batches, stacked along a new
        axis; rows that a batch lacks are zeros. Runtimes that need arrays then
        make no dataset, which takes ten times as long.
    """
    self._clients = clients
    self._client_dataset = client_dataset
    self._client_id = client_id
    self._client_stack = client_stack

  @property
  def clients(self) -> list[int]:
    """The clients' indices."""
    return [int(client) for client in self._clients]

  def __len__(self) -> int:
    return len(self._clients)

  def __getitem__(self, position):
    if isinstance(position, slice):
      return [self[i] for i in range(*position.indices(len(self)))]
    return self._client_dataset(int(self._clients[position]))

  def stack(self, position: int) -> list[np.ndarray] | None:
    """Returns a client's stacked batches; None if only a dataset can be had."""
    if self._client_stack is None:
      return None
    return self._client_stack(int(self._clients[position]))

  def client_name(self, position: int) -> str:
    """Returns the name of the client at a position, for messages."""
    return repr(self._client_id(int(self._clients[position])))
