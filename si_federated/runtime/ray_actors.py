"""Ray actors that run the clients of a round, and the driver's view of them.

An actor is a process that runs one client at a time, with the same TensorFlow
functions (`rounds.py`) as the local runtime, and folds the updates of a chunk
of clients in order.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.exceptions
import tensorflow as tf

from si_federated.runtime import (
  chunks,
  dispatch,
  jax_process,
  memory,
  rounds,
  values,
)

# Chunks per actor: the next one is sent while it computes the first.
_QUEUE = 2
_MAX_FAILED_STARTS = 3
_START_TIMEOUT_SECS = 300
# Compiled client parts that an actor keeps.
_COMPILED = 8

_LOST = (
  ray.exceptions.NodeDiedError,
  ray.exceptions.ObjectLostError,
  ray.exceptions.OutOfMemoryError,
  ray.exceptions.RayActorError,
  ray.exceptions.WorkerCrashedError,
)


class ClientWorker:
  """The code of an actor that runs clients in TensorFlow."""

  def __init__(self, device: str | None):
    # One client at a time, on the actor's one core.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    memory.keep_freed_memory()
    dispatch.check_device(device)
    self._device = device
    self._parts: collections.OrderedDict[str, rounds.ClientPart] = (
      collections.OrderedDict()
    )
    self._broadcast: tuple[str, values.Tensors] = ('', [])

  def ready(self) -> None:
    """Returns when the actor has started."""

  def run(self, parts: list[Any], broadcasts: list[Any], chunk: list[Any]):
    """Runs the clients of a chunk.

    Args:
      parts: A list of one reference, to the serialized `ClientPart`. Outside of
        a list, Ray would fetch it for each chunk.
      broadcasts: A list of a reference to the round's broadcast.
      chunk: The clients' data, from `values.to_arrays`.

    Returns:
      The arrays of the partial accumulator and of the secure sums, or a
      `chunks.Failed`.
    """
    part = self._part(parts[0])
    broadcast = self._tensors(broadcasts[0])
    partial = None
    for position, arrays in enumerate(chunk):
      try:
        client = values.from_arrays(arrays, part.client_type)
        with dispatch.device_scope(self._device):
          update = part.work(client, broadcast)
      except Exception as error:
        return chunks.Failed(position, str(error))
      partial = part.fold(partial, update)
    assert partial is not None
    return [
      [tensor.numpy() for tensor in tensors]
      for tensors in (partial.accumulator, *partial.secure_sums)
    ]

  def _part(self, reference: Any) -> rounds.ClientPart:
    key = reference.hex()
    if key not in self._parts:
      self._parts[key] = rounds.ClientPart.deserialize(ray.get(reference))
      if len(self._parts) > _COMPILED:
        self._parts.popitem(last=False)
    return self._parts[key]

  def _tensors(self, reference: Any) -> values.Tensors:
    key = reference.hex()
    if self._broadcast[0] != key:
      arrays = ray.get(reference)
      self._broadcast = key, [tf.convert_to_tensor(array) for array in arrays]
    return self._broadcast[1]


class OutOfMemory(NamedTuple):
  """The result of a chunk that does not fit the device's memory.

  Attributes:
    problem: The error message.
  """

  problem: str


class GroupWorker:
  """The code of an actor that owns a device, on which JAX runs clients."""

  def __init__(self, python: str | None, device: str | None):
    self._process = jax_process.Process(python, device)
    self._loaded: set[str] = set()

  def ready(self) -> dict[str, Any]:
    """Returns facts about the device."""
    return self._process.facts

  def process_id(self) -> int:
    """Returns the number of the process that owns the device."""
    return self._process.pid

  def run(
    self,
    programs: list[dict[str, Any]],
    broadcasts: list[Any],
    chunk: list[tuple[str, list[Any]]],
  ):
    """Runs groups of clients.

    Args:
      programs: References to exported programs by key, within a list so that
        Ray does not fetch them for each chunk.
      broadcasts: References to the round's broadcast and to the sums over no
        clients, also within a list.
      chunk: For each group, the key of its program and its arrays.

    Returns:
      The sums over the clients, or an `OutOfMemory`.
    """
    broadcast, zeros = ray.get(broadcasts[0])
    ask = self._process.ask
    try:
      for key, _ in chunk:
        if key not in self._loaded:
          program = np.frombuffer(ray.get(programs[0][key]), np.uint8)
          ask({'command': 'load', 'key': key}, [program])
          self._loaded.add(key)
      ask(
        {
          'command': 'begin',
          'num_broadcast': len(broadcast),
          'num_devices': 1,
        },
        [*broadcast, *zeros],
      )
      for key, arrays in chunk:
        ask({'command': 'add', 'key': key, 'device': 0}, arrays)
      return ask({'command': 'end'})[1]
    except jax_process.OutOfMemoryError as error:
      return OutOfMemory(str(error))
    except jax_process.WorkerError:
      if self._process.has_ended:
        # Another actor takes over, as it does after a kill.
        os._exit(1)
      raise


@dataclasses.dataclass(eq=False)
class _Actor:
  """The driver's view of an actor.

  Attributes:
    handle: Ray's handle.
    started: Whether it was ever ready.
    tasks: Its unfinished tasks by chunk, oldest first.
  """

  handle: Any
  started: bool = False
  tasks: dict[int, Any] = dataclasses.field(default_factory=dict)


class Actors:
  """A pool of actors, started at once and replaced when they die.

  Attributes:
    count: The number of actors.
  """

  def __init__(
    self,
    count: int,
    worker_class: type,
    arguments: Sequence[Any],
    resources: dict[str, Any],
  ):
    """Starts the actors.

    Args:
      count: Their number.
      worker_class: Their code: `ClientWorker` or `GroupWorker`.
      arguments: Those of its constructor.
      resources: The resources that each needs, as options of Ray.
    """
    self.count = count
    self._class: Any = ray.remote(worker_class).options(
      scheduling_strategy='SPREAD', **resources
    )
    self._arguments = arguments
    # The facts that the last actor to start returned.
    self._facts: Any = None
    self._running: list[_Actor] = []
    self._starting: dict[Any, _Actor] = {}
    self._failed_starts = 0
    for _ in range(count):
      self._start()

  def _start(self) -> None:
    self._await(_Actor(self._class.remote(*self._arguments)))

  def _await(self, actor: _Actor) -> None:
    self._starting[actor.handle.ready.remote()] = actor

  def facts(self) -> Any:
    """Waits until an actor has started, and returns its facts."""
    while not self._running:
      self.wait()
    return self._facts

  def check_idle(self) -> None:
    """Checks that idle actors are alive before they are given a chunk.

    When a node dies, many actors die. A chunk that went from one dead actor to
    the next would look like the cause of their deaths.
    """
    for actor in [actor for actor in self._running if not actor.tasks]:
      self._running.remove(actor)
      self._await(actor)

  def _free(self) -> _Actor | None:
    free = [actor for actor in self._running if len(actor.tasks) < _QUEUE]
    return min(free, key=lambda actor: len(actor.tasks)) if free else None

  @property
  def free(self) -> bool:
    """Whether an actor can take another chunk."""
    return self._free() is not None

  def run(self, chunk: int, part: Any, broadcast: Any, clients: Any) -> None:
    """Gives a chunk to the least busy actor."""
    actor = self._free()
    assert actor is not None
    actor.tasks[chunk] = actor.handle.run.remote([part], [broadcast], clients)

  def wait(self) -> tuple[int, Any] | None:
    """Waits for one event.

    Returns:
      A chunk and its result; None if an actor has started.

    Raises:
      chunks.LostError: If an actor died.
      RuntimeError: If actors do not start.
    """
    tasks = {
      task: (actor, chunk)
      for actor in self._running
      for chunk, task in actor.tasks.items()
    }
    done, _ = ray.wait(
      [*self._starting, *tasks],
      timeout=None if self._running else _START_TIMEOUT_SECS,
    )
    if not done:
      raise RuntimeError(
        f'No Ray actor started in {_START_TIMEOUT_SECS} s; see with '
        '`ray status` whether the cluster has free processors.'
      )
    if done[0] in self._starting:
      self._started(done[0])
      return None
    actor, chunk = tasks[done[0]]
    try:
      result = ray.get(done[0])
    except _LOST as error:
      self._running.remove(actor)
      with contextlib.suppress(Exception):
        ray.kill(actor.handle)
      self._start()
      self.check_idle()
      raise chunks.LostError(list(actor.tasks), error) from error
    del actor.tasks[chunk]
    return chunk, result

  def _started(self, reference: Any) -> None:
    actor = self._starting.pop(reference)
    try:
      self._facts = ray.get(reference)
    except ray.exceptions.RayError as error:
      self._failed_starts += not actor.started
      if self._failed_starts >= _MAX_FAILED_STARTS:
        raise RuntimeError(
          'Ray actors do not start (every node needs si_federated and its '
          f'dependencies installed): {error}'
        ) from error
      self._start()
    else:
      self._failed_starts = 0
      actor.started = True
      self._running.append(actor)

  def forget(self) -> None:
    """Cancels all unfinished tasks."""
    for actor in self._running:
      for task in actor.tasks.values():
        with contextlib.suppress(Exception):
          ray.cancel(task)
      actor.tasks.clear()

  def stop(self) -> None:
    """Ends the actors."""
    # After Ray's shutdown the actors are gone, and `ray.kill` would restart it.
    if ray.is_initialized():
      for actor in [*self._running, *self._starting.values()]:
        with contextlib.suppress(Exception):
          ray.kill(actor.handle)
      self._running.clear()
      self._starting.clear()
