"""The input of every contestant: settings, clients' sentences, weights.

Only NumPy and the standard library: contestants may run under another Python.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Dict, List, Mapping, Sequence

import numpy as np

FULL_BATCHES = 8
KINDS = ('full', 'single', 'uneven')


@dataclasses.dataclass(frozen=True)
class Settings:
  """The shape of a step and a round, by default the Stack Overflow baseline's.

  Attributes:
    folder: The folder for sentences and weights during the run.
    task: The task of the uneven clients.
    num_words: V; there are V + 4 ids.
    embedding_size: E.
    units: H, units of the recurrent layer.
    batch_size: B, sentences in a step.
    sequence_length: T, words of a sentence.
    learning_rate: The rate of plain SGD on clients; the server adds the mean.
    clients_per_round: Number of clients in a round.
    max_elements: Maximum sentences of an uneven client.
    seed: Seeds the choice of clients, the words of full ones and the weights.
  """

  folder: str
  task: str = 'docstrings'
  num_words: int = 10_000
  embedding_size: int = 96
  units: int = 670
  batch_size: int = 16
  sequence_length: int = 20
  learning_rate: float = 0.3
  clients_per_round: int = 12
  max_elements: int = 256
  seed: int = 0

  @property
  def vocab_size(self) -> int:
    """The number of ids, special ones included."""
    return self.num_words + 4

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> Settings:
    """Reads `as_json()`; other keys are ignored."""
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: values[name] for name in names})

  def as_json(self) -> Dict[str, Any]:
    """Returns the fields."""
    return dataclasses.asdict(self)


def full_sentences(settings: Settings, num_sentences: int) -> np.ndarray:
  """Draws sentences without padding, their words by Zipf's law.

  Args:
    settings: The sizes and the seed.
    num_sentences: N.

  Returns:
    `[N, T + 1]` int32: the beginning token and T words.
  """
  generator = np.random.default_rng(settings.seed)
  weights = 1.0 / np.arange(1, settings.num_words + 1)
  ids = generator.choice(
    np.arange(1, settings.num_words + 1, dtype=np.int32),
    size=(num_sentences, settings.sequence_length + 1),
    p=weights / weights.sum(),
  )
  ids[:, 0] = settings.num_words + 2
  return ids


def save_cohort(
  settings: Settings, kind: str, clients: Sequence[np.ndarray]
) -> None:
  """Saves the sentences of a round's clients.

  Args:
    settings: The settings with the folder.
    kind: The kind of clients.
    clients: `[n, T + 1]` ids of each client.
  """
  np.savez(
    os.path.join(settings.folder, f'clients_{kind}.npz'),
    ids=np.concatenate(clients).astype(np.int32),
    ends=np.cumsum([len(client) for client in clients]),
  )


def load_cohort(settings: Settings, kind: str) -> List[np.ndarray]:
  """Loads `save_cohort`'s sentences: `[n, T + 1]` int32 ids of each client."""
  with np.load(os.path.join(settings.folder, f'clients_{kind}.npz')) as file:
    return np.split(file['ids'], file['ends'][:-1])


def num_steps(settings: Settings, clients: Sequence[np.ndarray]) -> int:
  """Returns the total number of the clients' batches."""
  return sum(-(-len(client) // settings.batch_size) for client in clients)


def num_tokens(clients: Sequence[np.ndarray]) -> int:
  """Returns the number of the clients' labels that are not padding."""
  return int(sum(np.count_nonzero(client[:, 1:]) for client in clients))


def weights_file(settings: Settings, model: str) -> str:
  """Returns the file of a model's initial weights."""
  return os.path.join(settings.folder, f'weights_{model}.npz')


def save_weights(path: str, weights: Sequence[np.ndarray]) -> None:
  """Saves weights in Keras's shapes and order.

  For `lstm`: embedding `[V + 4, E]`, kernel `[E, 4H]`, recurrent kernel
  `[H, 4H]`, bias `[4H]` (blocks input, forget, candidate, output), projection
  `[H, E]`, `[E]` and logits `[E, V + 4]`, `[V + 4]`.

  Args:
    path: The file.
    weights: The arrays.
  """
  np.savez(path, **{str(i): weight for i, weight in enumerate(weights)})


def load_weights(path: str) -> List[np.ndarray]:
  """Loads the weights of `save_weights`."""
  with np.load(path) as file:
    return [file[str(i)] for i in range(len(file.files))]


def disagreement(
  weights: Sequence[np.ndarray],
  reference: Sequence[np.ndarray],
  initial: Sequence[np.ndarray],
) -> float:
  """Compares the updates of two contestants after a round.

  Args:
    weights: The weights of one contestant.
    reference: The weights of the other.
    initial: The initial weights of both.

  Returns:
    The Euclidean norm of the difference divided by that of the reference's
    update.
  """

  def norm(left, right):
    return np.sqrt(
      sum(
        np.sum(np.square(a - b, dtype=np.float64)) for a, b in zip(left, right)
      )
    )

  return float(norm(weights, reference) / norm(reference, initial))
