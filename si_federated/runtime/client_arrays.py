"""Clients' data as arrays of a few shapes.

Compilers for accelerators need static shapes. So a client's batches are
stacked, short batches are padded with rows of zeros, and clients with similar
numbers of batches form groups, padded with batches and clients. Padding does
not change results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.runtime import tensorflow_function, values


@dataclasses.dataclass(frozen=True)
class Stack:
  """The elements of a client's dataset, stacked.

  Attributes:
    size: S, the number of elements.
    components: The components of the elements, `[S, ...]`; rows that an
      element lacks are zeros.
  """

  size: int
  components: list[np.ndarray]


def stack_of(
  components: Sequence[np.ndarray], sequence_type: tff.SequenceType
) -> Stack:
  """Returns a stack of given arrays, after checks.

  Args:
    components: See `Stack`.
    sequence_type: The type of the client's data.

  Raises:
    TypeError: If the arrays have another type.
  """
  specs = values.component_specs(sequence_type)
  if len(components) != len(specs) or not all(
    spec.dtype == part.dtype and spec.shape.is_compatible_with(part.shape[1:])
    for spec, part in zip(specs, components)
  ):
    found = ', '.join(f'{part.dtype}{part.shape}' for part in components)
    raise TypeError(
      f'stacked elements of type {sequence_type.element} are expected, not '
      f'arrays {found}.'
    )
  return Stack(len(components[0]), list(components))


class Reader:
  """Reads clients' data into arrays.

  One TensorFlow function reads all batches of a client: fetching them one by
  one takes ten times as long, and longer than an accelerator trains on them.
  """

  def __init__(self, client_type: tff.Type):
    """Initializes the reader.

    Args:
      client_type: The type of a client's data.
    """
    self._leaves = list(tensorflow_function.leaf_types(client_type))
    self._functions = [
      _stacking(leaf) if isinstance(leaf, tff.SequenceType) else None
      for leaf in self._leaves
    ]

  def read(
    self, tensors: Sequence[tf.Tensor]
  ) -> tuple[list[Stack], list[np.ndarray]]:
    """Reads a client.

    Args:
      tensors: The client's data, flat; see `values.flatten`.

    Returns:
      The client's sequences and other values.

    Raises:
      ValueError: If a dataset is infinite.
    """
    stacks: list[Stack] = []
    arrays: list[np.ndarray] = []
    for tensor, leaf, function in zip(tensors, self._leaves, self._functions):
      if function is None:
        arrays.append(tensor.numpy())
        continue
      dataset = values.dataset_of(tensor, leaf)
      size = values.cardinality(dataset)
      if size == tf.data.UNKNOWN_CARDINALITY:
        size = int(dataset.reduce(np.int64(0), lambda count, _: count + 1))
      components = [part.numpy() for part in function(tensor, size)]
      stacks.append(Stack(size, components))
    return stacks, arrays


def _stacking(sequence_type: tff.SequenceType) -> Any:
  """Returns a function from a dataset's variant and size to its components."""
  specs = values.component_specs(sequence_type)

  @tf.function(
    autograph=False,
    input_signature=[
      tf.TensorSpec([], tf.variant),
      tf.TensorSpec([], tf.int64),
    ],
  )
  def stacked(variant, size):
    dataset = values.dataset_of(variant, sequence_type)
    # Added in front, because a batch has at least one element.
    empty = tf.data.Dataset.from_tensors(
      tuple(
        tf.zeros([dim or 0 for dim in spec.shape], spec.dtype) for spec in specs
      )
    )
    flat = dataset.map(lambda *parts: tuple(tf.nest.flatten(parts)))
    batch = empty.concatenate(flat).padded_batch(size + 1)
    return [part[1:] for part in batch.get_single_element()]

  return stacked


# For each sequence of a group's clients, the numbers of steps and of rows.
Kind = tuple[tuple[int, ...], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Group:
  """Clients whose data have one shape.

  Attributes:
    kind: Determines the shapes, together with the number of clients.
    size: K, the number of clients, including padding.
    arrays: First, for each sequence of a client's datum, the components of its
      elements, `[K, S, ...]`, and the numbers of elements, `[K]`; then the
      tensors, `[K, ...]`; last, which clients are not padding, `[K]`.
    members: The positions of its clients in the cohort, without padding.
  """

  kind: Kind
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
  data: Sequence[Sequence[Stack]],
  types: Sequence[tff.SequenceType],
  largest: Callable[[Kind], int],
  tensors: Sequence[Sequence[np.ndarray]] = (),
) -> Iterator[Group]:
  """Yields the groups of a cohort, in an order that depends only on sizes.

  Args:
    data: Each client's sequences; see `Reader`.
    types: The types of the sequences.
    largest: Returns the largest K for groups of a kind, a power of two.
    tensors: Further arrays of each client, with the same shapes for all.
  """
  rows = tuple(
    power_of_two(
      max(
        (
          part.shape[1]
          for client in data
          for part in client[index].components
          if client[index].size and part.ndim > 1
        ),
        default=1,
      )
    )
    if rows_vary(sequence_type)
    else 0
    for index, sequence_type in enumerate(types)
  )
  lengths = [
    tuple(power_of_two(stack.size) for stack in client) for client in data
  ]
  for shape in sorted(set(lengths), reverse=True):
    members = [i for i, length in enumerate(lengths) if length == shape]
    kind = shape, rows
    size = largest(kind)
    for start in range(0, len(members), size):
      yield _group(members[start : start + size], data, types, kind, tensors)


def _group(
  chosen: list[int],
  data: Sequence[Sequence[Stack]],
  types: Sequence[tff.SequenceType],
  kind: Kind,
  tensors: Sequence[Sequence[np.ndarray]],
) -> Group:
  shape, rows = kind
  size = power_of_two(len(chosen))
  arrays: list[np.ndarray] = []
  for index, sequence_type in enumerate(types):
    for number, spec in enumerate(values.component_specs(sequence_type)):
      dims = spec.shape.as_list()
      if rows[index] and dims:
        dims[0] = rows[index]
      array = np.zeros([size, shape[index], *dims], spec.dtype.as_numpy_dtype)
      for k, client in enumerate(chosen):
        part = data[client][index].components[number]
        if rows[index] and dims:
          array[k, : len(part), : part.shape[1]] = part
        else:
          array[k, : len(part)] = part
      arrays.append(array)
    counts = [data[client][index].size for client in chosen]
    arrays.append(np.array(counts + [0] * (size - len(chosen)), np.int32))
  if tensors:
    # Padding clients get copies of the first client's tensors.
    padded = [*chosen, *[chosen[0]] * (size - len(chosen))]
    arrays += map(np.stack, zip(*(tensors[k] for k in padded)))
  arrays.append(np.arange(size) < len(chosen))
  return Group(kind, size, arrays, chosen)
