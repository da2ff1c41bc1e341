"""Splits of labelled examples: what is held out, and who has the rest."""

from __future__ import annotations

from typing import Callable, Mapping, Sequence

import numpy as np

from si_federated.tasks.token_store import permutation

# In whichever order a random stream is used for, it is one of its own.
_HOLD_OUT, _SHARE_OUT = 1, 2


def hold_out(
  labels: np.ndarray,
  fractions: Sequence[float],
  *,
  classes: Sequence[str],
  seed: int,
) -> list[np.ndarray]:
  """Takes a part of every class out of the training data.

  Args:
    labels: `[N]` the class of each example.
    fractions: The part of each class that goes to each held-out set, at least
      one example.
    classes: The names of the classes, for the message.
    seed: Fixes the choice.

  Returns:
    The numbers of the examples left for training, then those of each held-out
    set, sorted.

  Raises:
    ValueError: A class has too few examples.
  """
  parts: list[list[np.ndarray]] = [[] for _ in range(len(fractions) + 1)]
  for label, name in enumerate(classes):
    (numbers,) = np.nonzero(labels == label)
    if len(numbers) <= len(fractions):
      raise ValueError(
        f'Class {name!r} has {len(numbers)} examples, where training and '
        f'{len(fractions)} held-out sets need one each; leave it out or give '
        'it more.'
      )
    generator = np.random.PCG64([seed, _HOLD_OUT, label])
    numbers = numbers[permutation(generator, len(numbers))]
    sizes = [max(1, int(fraction * len(numbers))) for fraction in fractions]
    while sum(sizes) >= len(numbers):
      sizes[int(np.argmax(sizes))] -= 1
    held = np.split(numbers, np.cumsum(sizes))
    for part, chosen in zip(parts, [held[-1], *held[:-1]]):
      part.append(chosen)
  return [np.sort(np.concatenate(part)) for part in parts]


def iid(labels: np.ndarray, num_clients: int, *, seed: int) -> list[np.ndarray]:
  """Shares examples out at random, the same number to each client or one more.

  Args:
    labels: `[n]` classes.
    num_clients: The number of clients.
    seed: Fixes the split.

  Returns:
    Of each client the positions of its examples in `labels`.
  """
  return np.array_split(_shuffled(labels, seed), num_clients)


def by_label(
  labels: np.ndarray, num_clients: int, *, seed: int
) -> list[np.ndarray]:
  """Sorts by class and cuts into contiguous chunks (arXiv 2102.00875).

  A client has one class or few of them. Arguments and result are those of
  `iid`.
  """
  order = _shuffled(labels, seed)
  order = order[np.argsort(labels[order], kind='stable')]
  return np.array_split(order, num_clients)


def dirichlet(
  labels: np.ndarray, num_clients: int, *, seed: int, alpha: float = 0.5
) -> list[np.ndarray]:
  """Shares each class out in Dirichlet proportions (arXiv 1905.12022).

  Small values of `alpha` give clients of few classes and unequal sizes, large
  ones the same mixture to all. A client without any example gets one of the
  largest client's.

  Args:
    labels: As for `iid`, as are `num_clients` and `seed`.
    num_clients: The number of clients.
    seed: Fixes the split.
    alpha: The concentration.

  Returns:
    As of `iid`.

  Raises:
    ValueError: `alpha` is not positive.
  """
  if not 0 < alpha < np.inf:
    raise ValueError(f'alpha must be positive and finite; got {alpha}.')
  order = _shuffled(labels, seed)
  generator = np.random.Generator(np.random.PCG64([seed, _SHARE_OUT, 1]))
  clients: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
  for label in np.unique(labels):
    members = order[labels[order] == label]
    shares = generator.dirichlet(np.full([num_clients], alpha))
    cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(int)
    for client, part in zip(clients, np.split(members, cuts)):
      client.append(part)
  result = [np.concatenate(parts) for parts in clients]
  for index, numbers in enumerate(result):
    if not len(numbers):
      largest = max(range(num_clients), key=lambda i: len(result[i]))
      result[index] = result[largest][-1:]
      result[largest] = result[largest][:-1]
  return result


SPLITS: Mapping[str, Callable[..., list[np.ndarray]]] = {
  'iid': iid,
  'label': by_label,
  'dirichlet': dirichlet,
}


def _shuffled(labels: np.ndarray, seed: int) -> np.ndarray:
  return permutation(np.random.PCG64([seed, _SHARE_OUT]), len(labels))
