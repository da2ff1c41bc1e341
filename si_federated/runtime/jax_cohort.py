"""The clients of a round, their data read into arrays for JAX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_federated as tff

from si_federated.runtime import client_arrays, jax_programs, rounds, values


class Cohort(NamedTuple):
  """The clients of a round: their work and their data.

  Attributes:
    programs: Their work.
    broadcast: The arrays that the server broadcasts.
    zeros: The sums over no clients.
    data: Each client's batches.
    tensors: Each client's other values.
  """

  programs: jax_programs.ClientPrograms
  broadcast: list[np.ndarray]
  zeros: list[np.ndarray]
  data: Sequence[Sequence[client_arrays.Stack]]
  tensors: Sequence[Sequence[np.ndarray]]

  def groups(
    self, largest: Callable[[client_arrays.Kind], int]
  ) -> Iterator[client_arrays.Group]:
    """Yields the clients in groups; see `client_arrays.groups`."""
    return client_arrays.groups(
      self.data, self.programs.sequence_types, largest, self.tensors
    )


def read(
  programs: jax_programs.ClientPrograms,
  part: rounds.ClientPart,
  broadcast: values.Tensors,
  clients: Sequence[Any],
) -> Cohort:
  """Reads the data of a round's clients.

  Args:
    programs: The clients' work.
    part: The same work as TensorFlow functions.
    broadcast: What the server broadcasts.
    clients: Each client's data.

  Raises:
    ClientError: If a client's data can't be read.
  """
  data: list[list[client_arrays.Stack]] = []
  tensors: list[list[np.ndarray]] = []
  for position in range(len(clients)):
    try:
      stacks, others = _read_client(programs, clients, position, broadcast)
    except Exception as error:
      raise rounds.client_error(clients, position, error) from error
    data.append(stacks)
    tensors.append(others)
  empty = part.empty()
  zeros = [
    *empty.accumulator,
    *(tensor for kind in empty.secure_sums for tensor in kind),
  ]
  return Cohort(
    programs,
    broadcast=[np.asarray(tensor) for tensor in broadcast],
    zeros=[np.asarray(tensor) for tensor in zeros],
    data=data,
    tensors=tensors,
  )


def _read_client(
  programs: jax_programs.ClientPrograms,
  clients: Sequence[Any],
  position: int,
  broadcast: values.Tensors,
) -> tuple[list[client_arrays.Stack], list[np.ndarray]]:
  """Returns a client's sequences and other values."""
  client_type = programs.client_type
  if programs.draw is None and isinstance(client_type, tff.SequenceType):
    # Cohorts may already have arrays; see `training.sampling.Cohort`.
    components = getattr(clients, 'stack', lambda _: None)(position)
    if components is not None:
      return [client_arrays.stack_of(components, client_type)], []
  flat = values.flatten(clients[position], client_type)
  stacks, others = programs.reader.read(flat)
  if programs.draw is not None:
    others += [tensor.numpy() for tensor in programs.draw(*flat, *broadcast)]
  return stacks, others
