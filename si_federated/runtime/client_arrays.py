"""Clients' data as arrays of a few shapes.

A compiler for accelerators needs shapes that it knows. A client's batches are
stacked, short batches are filled up with rows of zeros, and clients with
similar numbers of batches form groups; missing batches and clients are padding,
which changes no result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_federated as tff

from si_federated.runtime import values


@dataclasses.dataclass(frozen=True)
class Group:
  """Clients whose data have one shape.

  Attributes:
    size: K, the number of clients with padding.
    arrays: For each sequence of a client's datum the components of its
      elements, `[K, S, ...]`, then the numbers of elements, `[K]`; the
      tensors, `[K, ...]`; last which clients are not padding, `[K]`.
    members: The numbers of its clients in the cohort, without padding.
  """

  size: int
  arrays: list[np.ndarray]
  members: list[int]

  @property
  def shapes(self) -> tuple[tuple[int, ...], ...]:
    """The shapes of the arrays."""
    return tuple(array.shape for array in self.arrays)


def rows_vary(sequence_type: tff.SequenceType) -> bool:
  """Returns whether elements may differ in their leading dimension."""
  return any(
    spec.shape.rank and spec.shape[0] is None
    for spec in values.component_specs(sequence_type)
  )


def power_of_two(number: int) -> int:
  """Returns the smallest power of two that is not below a number; 0 for 0."""
  return 1 << (number - 1).bit_length() if number else 0


def groups(
  data: Sequence[Sequence[Any]],
  types: Sequence[tff.SequenceType],
  clients_per_group: int,
  tensors: Sequence[Sequence[np.ndarray]] = (),
) -> Iterator[Group]:
  """Yields the groups of a cohort; their order depends on sizes alone.

  Args:
    data: Of each client the elements of each of its sequences, each a list of
      arrays; see `values.to_arrays`.
    types: The types of the sequences.
    clients_per_group: The largest K, a power of two.
    tensors: More arrays of each client, of the same shapes for all.
  """
  rows = [
    power_of_two(
      max(
        (
          len(part)
          for client in data
          for element in client[index]
          for part in element
          if np.ndim(part)
        ),
        default=1,
      )
    )
    if rows_vary(sequence_type)
    else 0
    for index, sequence_type in enumerate(types)
  ]
  lengths = [
    tuple(power_of_two(len(elements)) for elements in client) for client in data
  ]
  for shape in sorted(set(lengths), reverse=True):
    members = [i for i, length in enumerate(lengths) if length == shape]
    for start in range(0, len(members), clients_per_group):
      chosen = members[start : start + clients_per_group]
      yield _group(chosen, data, types, rows, shape, tensors)


def _group(
  chosen: list[int],
  data: Sequence[Sequence[Any]],
  types: Sequence[tff.SequenceType],
  rows: Sequence[int],
  shape: Sequence[int],
  tensors: Sequence[Sequence[np.ndarray]],
) -> Group:
  size = power_of_two(len(chosen))
  arrays: list[np.ndarray] = []
  for index, sequence_type in enumerate(types):
    for number, spec in enumerate(values.component_specs(sequence_type)):
      dims = spec.shape.as_list()
      if rows[index] and dims:
        dims[0] = rows[index]
      array = np.zeros([size, shape[index], *dims], spec.dtype.as_numpy_dtype)
      for k, client in enumerate(chosen):
        for step, element in enumerate(data[client][index]):
          part = element[number]
          if rows[index] and dims:
            array[k, step, : len(part)] = part
          else:
            array[k, step] = part
      arrays.append(array)
    counts = [len(data[client][index]) for client in chosen]
    arrays.append(np.array(counts + [0] * (size - len(chosen)), np.int32))
  if tensors:
    # Clients of padding get copies of the first one's.
    padded = [*chosen, *[chosen[0]] * (size - len(chosen))]
    arrays += map(np.stack, zip(*(tensors[k] for k in padded)))
  arrays.append(np.arange(size) < len(chosen))
  return Group(size, arrays, chosen)
