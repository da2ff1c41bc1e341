"""Cuts a cohort into chunks of consecutive clients, and runs them on actors.

Chunks depend only on the size of the cohort, and their results are yielded in
order. So their sum has the same bits for any speed, number or death of actors.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from si_federated.runtime import errors, interrupts, rounds

# Cohorts of up to `_MIN_CHUNKS` clients have one client per chunk. The maximum
# limits messages: a chunk's data, and its partial accumulator, are one each.
_MIN_CHUNKS = 32
_MAX_CLIENTS = 8
# Chunks per actor that are drawn but not yet yielded.
_WINDOW = 3
_MAX_DEATHS = 3


class Failed(NamedTuple):
  """The result of a chunk whose client failed.

  Attributes:
    position: The client's position in its chunk.
    problem: The error message.
  """

  position: int
  problem: str


class LostError(Exception):
  """An actor died while it ran the first of its chunks."""

  def __init__(self, chunks: list[int], problem: Exception):
    super().__init__((str(problem).strip() or repr(problem)).splitlines()[0])
    self.chunks = chunks


class Actors(Protocol):
  """A pool of actors that run chunks.

  Attributes:
    count: The number of actors.
  """

  count: int

  @property
  def free(self) -> bool:
    """Whether an actor can take another chunk."""

  def wait(self) -> tuple[int, Any] | None:
    """Returns a finished chunk and its result; may raise `LostError`."""

  def forget(self) -> None:
    """Cancels all unfinished chunks."""


def cut(num_clients: int) -> list[range]:
  """Returns the clients' positions in each chunk of a cohort."""
  count = min(num_clients, max(_MIN_CHUNKS, -(-num_clients // _MAX_CLIENTS)))
  return [
    range(num_clients * i // count, num_clients * (i + 1) // count)
    for i in range(count)
  ]


def run(
  clients: Sequence[Any],
  *,
  draw: Callable[[Any], Any],
  keep: Callable[[list[Any]], Any],
  submit: Callable[[int, Any], None],
  actors: Actors,
  unit: str = 'clients',
) -> Iterator[Any]:
  """Runs a cohort.

  Args:
    clients: The clients; each is read once, shortly before it is needed.
    draw: Reads a client's data.
    keep: Stores the data of a chunk and returns a reference for `submit`, which
      is dropped when the chunk is done.
    submit: Gives a chunk to a free actor; called again if the actor dies.
    actors: The actors.
    unit: What `clients` are, in error messages.

  Yields:
    The result of each chunk, in order.

  Raises:
    errors.ClientError: If a client failed, or too many actors died while they
      ran the same chunk.
  """
  cohort = cut(len(clients))
  drawn: dict[int, Any] = {}
  waiting: list[int] = []
  results: dict[int, Any] = {}
  deaths: collections.Counter[int] = collections.Counter()

  def draw_chunk(positions: range) -> Any:
    data = []
    for position in positions:
      interrupts.check()
      try:
        data.append(draw(clients[position]))
      except Exception as error:
        raise rounds.client_error(clients, position, error) from error
    return keep(data)

  try:
    for index, positions in enumerate(cohort):
      last = min(len(cohort), index + _WINDOW * actors.count)
      while index not in results:
        interrupts.check()
        while (waiting or len(drawn) < last) and actors.free:
          if not waiting:
            waiting.append(len(drawn))
            drawn[len(drawn)] = draw_chunk(cohort[len(drawn)])
          chunk = waiting.pop(0)
          submit(chunk, drawn[chunk])
        try:
          done = actors.wait()
        except LostError as error:
          waiting = sorted([*waiting, *error.chunks])
          _count_death(deaths, error, cohort, unit)
          continue
        if done is not None:
          chunk, results[chunk] = done
          drawn[chunk] = None
      result = results.pop(index)
      if isinstance(result, Failed):
        raise rounds.client_error(
          clients, positions[result.position], result.problem
        )
      yield result
  finally:
    actors.forget()


def _count_death(
  deaths: collections.Counter[int],
  error: LostError,
  cohort: list[range],
  unit: str,
) -> None:
  chunk = error.chunks[0]
  deaths[chunk] += 1
  if deaths[chunk] >= _MAX_DEATHS:
    raise errors.ClientError(
      f'{_MAX_DEATHS} actors died of the {unit} at positions '
      f'{cohort[chunk][0]} to {cohort[chunk][-1]} of the cohort, which may '
      f'need too much memory; the last: {error}'
    ) from error
