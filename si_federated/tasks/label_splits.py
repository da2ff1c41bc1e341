"""Splits of labelled examples into held-out sets and clients."""

from __future__ import annotations

from typing import Callable, Mapping, Sequence

import numpy as np

from si_federated.tasks.seeded_orders import permutation

# Holding out and distributing use separate random streams.
_HOLD_OUT, _SHARE_OUT = 1, 2
# The range in which numpy draws fast. At its lower end, one client gets nearly
# all of a class; at its upper end, all clients get equal shares.
_MIN_ALPHA, _MAX_ALPHA = 1e-4, 1e6


def hold_out(
  labels: np.ndarray,
  fractions: Sequence[float],
  *,
  classes: Sequence[str],
  seed: int,
) -> list[np.ndarray]:
  """Holds out a fraction of every class from training.

  Args:
    labels: The class of each example, `[N]`.
    fractions: The fraction of each class for each held-out set, at least one
      example.
    classes: The names of the classes, for error messages.
    seed: The seed of the choice.

  Returns:
    The sorted numbers of the training examples, then of each held-out set.

  Raises:
    ValueError: If a class has too few examples.
  """
  parts: list[list[np.ndarray]] = [[] for _ in range(len(fractions) + 1)]
  for label, name in enumerate(classes):
    (numbers,) = np.nonzero(labels == label)
    if len(numbers) <= len(fractions):
      raise ValueError(
        f'Class {name!r} has {len(numbers)} examples, but training and '
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
  """Distributes examples at random; sizes of clients differ by at most one.

  Args:
    labels: Classes, `[n]`.
    num_clients: The number of clients.
    seed: The seed of the split.

  Returns:
    The positions in `labels` of each client's examples.
  """
  return np.array_split(_shuffled(labels, seed), num_clients)


def by_label(
  labels: np.ndarray, num_clients: int, *, seed: int
) -> list[np.ndarray]:
  """Sorts by class and cuts into contiguous chunks (arXiv 2102.00875).

  A client has one class or a few. See `iid` for arguments and result.
  """
  order = _shuffled(labels, seed)
  order = order[np.argsort(labels[order], kind='stable')]
  return np.array_split(order, num_clients)


def dirichlet(
  labels: np.ndarray, num_clients: int, *, seed: int, alpha: float = 0.5
) -> list[np.ndarray]:
  """Distributes each class in Dirichlet proportions (arXiv 1905.12022).

  Small values of `alpha` give clients few classes and unequal sizes; large
  values give all clients the same mixture. The largest client gives one example
  to each client that would have none.

  Args:
    labels: See `iid`.
    num_clients: See `iid`.
    seed: See `iid`.
    alpha: The concentration, from 0.0001 to 1,000,000.

  Returns:
    See `iid`.

  Raises:
    ValueError: If `alpha` is out of its range.
  """
  if not _MIN_ALPHA <= alpha <= _MAX_ALPHA:
    raise ValueError(
      f'alpha must be from {_MIN_ALPHA} to {_MAX_ALPHA:.0f}; got {alpha}.'
    )
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
  """Gives each client two majority classes (arXiv 2010.02056).

  A fraction of a client's examples comes from two classes in equal parts, the
  rest from all other classes in equal parts. All clients have the same size,
  the largest that the classes allow. Each class is a majority class of the same
  number of clients, or of one more. Surplus examples are left out.

  Args:
    labels: See `iid`.
    num_clients: See `iid`.
    seed: See `iid`.
    majority: The fraction from the two classes; with C classes, 2 / C means no
      skew.

  Returns:
    See `iid`.

  Raises:
    ValueError: If `majority` is out of range, there are fewer than three
      classes, or a class has too few examples.
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
  # Guards against rounding errors that would lower a whole number.
  counts = np.floor(size * shares + 1e-6).astype(int)
  if not counts.sum(axis=1).all():
    raise ValueError(
      f'Some class has too few examples for {num_clients} clients with '
      'split=majority; give fewer clients or more examples.'
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
