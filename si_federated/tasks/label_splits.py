"""Splits of labelled examples: what is held out, and who has the rest."""

from __future__ import annotations

from typing import Callable, Mapping, Sequence

import numpy as np

from si_federated.tasks.populations import permutation

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


def by_majority(
  labels: np.ndarray, num_clients: int, *, seed: int, majority: float = 0.8
) -> list[np.ndarray]:
  """Gives each client two classes of which it has most (arXiv 2010.02056).

  A part of a client's examples comes from two classes, half and half, the rest
  from all others alike; clients are of one size, the largest that the classes
  allow. Each class is among the two of as many clients as any other, or one
  more. Examples that are then too many of their class are left out.

  Args:
    labels: As for `iid`, as are `num_clients` and `seed`.
    num_clients: The number of clients.
    seed: Fixes the split.
    majority: The part from the two classes; 2 / C of C classes is no skew.

  Returns:
    As of `iid`.

  Raises:
    ValueError: `majority` is out of range, there are fewer than three classes,
      or too few examples of one.
  """
  if not 0 < majority <= 1:
    raise ValueError(f'majority must be above 0 and at most 1; got {majority}.')
  classes = np.unique(labels)
  if len(classes) < 3:
    raise ValueError(
      f'split=majority needs three classes or more; there are {len(classes)}.'
    )
  order = _shuffled(labels, seed)
  places = permutation(
    np.random.PCG64([seed, _SHARE_OUT, 2]), len(classes)
  ).tolist()
  shares = np.full(
    [num_clients, len(classes)], (1 - majority) / (len(classes) - 2)
  )
  for client in range(num_clients):
    for place in (2 * client, 2 * client + 1):
      shares[client, places[place % len(places)]] = majority / 2
  pools = [order[labels[order] == label] for label in classes]
  wanted = shares.sum(axis=0)
  size = min(
    len(pool) // share for pool, share in zip(pools, wanted) if share > 0
  )
  # Not below a whole number for the sake of its last bit.
  counts = np.floor(size * shares + 1e-6).astype(int)
  if not counts.sum(axis=1).all():
    raise ValueError(
      f'There are too few examples of some class for {num_clients} clients '
      'with split=majority; give fewer clients or more examples.'
    )
  parts = [
    np.split(pool, np.cumsum(taken))[:-1]
    for pool, taken in zip(pools, counts.T)
  ]
  return [np.concatenate(own) for own in zip(*parts)]


SPLITS: Mapping[str, Callable[..., list[np.ndarray]]] = {
  'iid': iid,
  'label': by_label,
  'dirichlet': dirichlet,
  'majority': by_majority,
}


def _shuffled(labels: np.ndarray, seed: int) -> np.ndarray:
  return permutation(np.random.PCG64([seed, _SHARE_OUT]), len(labels))
