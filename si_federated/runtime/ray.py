"""Runs the clients of a TFF computation on actors of a Ray cluster.

Only this module imports Ray. An actor is a process that runs one client at a
time, with the same TensorFlow functions (`rounds.py`) as the local runtime.
What has no clients runs in the driver, the process that called TFF.

An actor folds the updates of a chunk of clients in order, the driver merges the
chunks in order (`chunks.py`).
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import dataclasses
import logging
import os
import signal
import socket
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import ray
import ray._private.services
import ray.exceptions
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.context_stack import (
  context_base,
  context_stack_impl,
)

from si_federated.runtime import (
  child_processes,
  chunks,
  dispatch,
  memory,
  rounds,
  values,
)

# Chunks an actor has in hand: while it computes one, the next is sent.
_QUEUE = 2
_MAX_FAILED_STARTS = 3
_START_TIMEOUT_SECS = 300
_COMPILED = 8

_ENVIRONMENT = {
  # No refusal where /dev/shm is small: objects then go to /tmp.
  'RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE': '1',
  # Half a minute after its start Ray complains, with no switch of its own, that
  # nobody collects its metrics.
  'RAY_BACKEND_LOG_LEVEL': 'fatal',
}
_LOST = (
  ray.exceptions.NodeDiedError,
  ray.exceptions.ObjectLostError,
  ray.exceptions.OutOfMemoryError,
  ray.exceptions.RayActorError,
  ray.exceptions.WorkerCrashedError,
)


class _ClientWorker:
  """What an actor is."""

  def __init__(self, device: str | None):
    # One client at a time, on the one core that the actor has.
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
      parts: A reference to the serialized `ClientPart`. In a list, for Ray
        would fetch it for each chunk.
      broadcasts: A reference to the round's broadcast, likewise.
      chunk: The clients' data, from `values.to_arrays`.

    Returns:
      The arrays of the partial accumulator and those of the secure sums, or
      which client failed.
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
      self._broadcast = (
        key,
        [tf.convert_to_tensor(array) for array in ray.get(reference)],
      )
    return self._broadcast[1]


@dataclasses.dataclass(eq=False)
class _Actor:
  """The driver's view of an actor.

  Attributes:
    handle: Ray's.
    tasks: What it was given and has not returned, by chunk, oldest first.
    started: Whether it ever was ready.
  """

  handle: Any
  started: bool = False
  tasks: dict[int, Any] = dataclasses.field(default_factory=dict)


class _Actors:
  """A number of actors, started at once and replaced when they die."""

  def __init__(self, count: int, device: str | None, resources: dict[str, Any]):
    self.count = count
    self._class = ray.remote(_ClientWorker).options(
      scheduling_strategy='SPREAD', **resources
    )
    self._device = device
    self._running: list[_Actor] = []
    self._starting: dict[Any, _Actor] = {}
    self._failed_starts = 0
    for _ in range(count):
      self._start()

  def _start(self) -> None:
    self._await(_Actor(self._class.remote(self._device)))

  def _await(self, actor: _Actor) -> None:
    self._starting[actor.handle.ready.remote()] = actor

  def check_idle(self) -> None:
    """Finds out which idle actors are alive, so that no chunk goes to others.

    When a node dies, many actors die; a chunk must not be given to one after
    the other of them until it seems to be what kills them.
    """
    for actor in [actor for actor in self._running if not actor.tasks]:
      self._running.remove(actor)
      self._await(actor)

  def _free(self) -> _Actor | None:
    free = [actor for actor in self._running if len(actor.tasks) < _QUEUE]
    return min(free, key=lambda actor: len(actor.tasks)) if free else None

  @property
  def free(self) -> bool:
    """Whether an actor should have more to do."""
    return self._free() is not None

  def run(self, chunk: int, part: Any, broadcast: Any, clients: Any) -> None:
    """Gives a chunk to the actor with the least to do."""
    actor = self._free()
    assert actor is not None
    actor.tasks[chunk] = actor.handle.run.remote([part], [broadcast], clients)

  def wait(self) -> tuple[int, Any] | None:
    """Waits for one thing to be done.

    Returns:
      A chunk and what it returned; none if it was an actor's start.

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
      ray.get(reference)
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
    """Drops what actors still have to do."""
    for actor in self._running:
      for task in actor.tasks.values():
        with contextlib.suppress(Exception):
          ray.cancel(task)
      actor.tasks.clear()

  def stop(self) -> None:
    """Ends the actors."""
    if not ray.is_initialized():
      return  # They have ended; asked to kill them, Ray would start.
    for actor in [*self._running, *self._starting.values()]:
      with contextlib.suppress(Exception):
        ray.kill(actor.handle)
    self._running.clear()
    self._starting.clear()


class RayContext(context_base.SyncContext):
  """A TFF execution context that runs clients on a Ray cluster."""

  def __init__(self, actors: _Actors, settings: tuple[Any, ...]):
    """Initializes the context; use `set_ray_context`."""
    self.settings = settings
    self._actors = actors
    self._dispatcher = dispatch.Dispatcher(self._run_clients)
    # The serialized client part of each round, sent once.
    self._parts: weakref.WeakKeyDictionary[rounds.Round, Any] = (
      weakref.WeakKeyDictionary()
    )

  @property
  def num_actors(self) -> int:
    """How many clients run at once."""
    return self._actors.count

  def invoke(self, comp: tff.Computation, arg: Any) -> Any:
    """Runs a computation; called by TFF where `comp(arg)` is written."""
    return self._dispatcher.invoke(comp, arg)

  def stop(self) -> None:
    """Ends the actors; the context can't be used after it."""
    self._actors.stop()

  def _run_clients(
    self,
    compiled: rounds.Round,
    broadcast: values.Tensors,
    clients: Sequence[Any],
  ) -> rounds.Partial | None:
    if compiled not in self._parts:
      self._parts[compiled] = ray.put(compiled.client_part.serialize())
    part = self._parts[compiled]
    client_type = compiled.client_part.client_type
    weights = ray.put([tensor.numpy() for tensor in broadcast])
    self._actors.check_idle()
    partial = None
    for result in chunks.run(
      clients,
      # The actor that runs a chunk may die: its data are kept until it is done.
      draw=lambda client: values.to_arrays(client, client_type),
      keep=ray.put,
      submit=lambda chunk, data: self._actors.run(chunk, part, weights, data),
      actors=self._actors,
    ):
      accumulator, *secure_sums = (
        [tf.convert_to_tensor(array) for array in arrays] for arrays in result
      )
      partial = compiled.merge(
        partial, rounds.Partial(accumulator, secure_sums)
      )
    return partial


_context: RayContext | None = None
_address: str | None = None
_processes = child_processes.StartedProcesses()


def _connect(num_cpus: int, address: str | None) -> None:
  """Starts Ray on this machine, or joins a cluster."""
  global _address
  # No reports to Ray's makers.
  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
  if ray.is_initialized():
    if _address is None:
      if address not in (None, 'auto'):
        raise ValueError(
          f'address={address!r}: this process is connected to a Ray cluster '
          'already; call ray.shutdown() first.'
        )
      return
    if _address == (address or 'local') and (
      address is not None or ray.cluster_resources().get('CPU', 0) >= num_cpus
    ):
      return
    _shut_down()
  with warnings.catch_warnings(), _keep_sigterm():
    warnings.simplefilter('ignore')
    if address is None:
      _start_ray(num_cpus)
    else:
      ray.init(
        _reachable(address), log_to_driver=False, logging_level=logging.ERROR
      )
  _address = address or 'local'
  # Before Ray's own, which was registered when it was imported.
  atexit.unregister(_shut_down)
  atexit.register(_shut_down)


def _start_ray(num_cpus: int) -> None:
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  with child_processes.silence(), _processes.mark():
    ray.init(
      'local',
      num_cpus=num_cpus,
      num_gpus=len(tf.config.list_physical_devices('GPU')),
      include_dashboard=False,
      log_to_driver=False,
      logging_level=logging.ERROR,
    )


def _reachable(address: str) -> str:
  """Returns HOST:PORT of a cluster; where none is, Ray ends the process."""
  if address.startswith('ray://'):
    raise ValueError(
      f'address={address!r} is of Ray Client; give the HOST:PORT of the '
      "cluster's head, or auto on one of its nodes."
    )
  try:
    found = ray._private.services.canonicalize_bootstrap_address(address)
    host, _, port = str(found).rpartition(':')
    socket.create_connection((host.strip('[]'), int(port)), timeout=10).close()
  except (OSError, ValueError) as error:
    raise ValueError(
      f'No Ray cluster answers at address={address!r}; start one with '
      '`ray start --head`.'
    ) from error
  return str(found)


@contextlib.contextmanager
def _keep_sigterm() -> Iterator[None]:
  """Lets SIGTERM be what it was, or an exit that ends Ray's processes.

  Ray's own handler aborts the process.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.getsignal(signal.SIGTERM)
  try:
    yield
  finally:
    signal.signal(
      signal.SIGTERM,
      before
      if callable(before) or before is signal.SIG_IGN
      else lambda signum, _: sys.exit(128 + signum),
    )


def _shut_down() -> None:
  """Leaves the cluster, and ends it if it was started here."""
  global _address
  _address = None
  # Ray does not wait for the last of its processes.
  ray.shutdown()
  _processes.end()


def start(
  num_actors: int | None, address: str | None, device: str | None
) -> RayContext:
  """Does the work of `runtime.set_ray_context`, which see."""
  global _context
  if num_actors is not None and num_actors < 1:
    raise ValueError(f'num_actors must be at least 1, found {num_actors}.')
  settings = (num_actors, address, device)
  if _context is not None and ray.is_initialized():
    if _context.settings == settings:
      context_stack_impl.context_stack.set_default_context(_context)
      return _context
    _context.stop()
  _context = None
  _connect(max(num_actors or 0, len(os.sched_getaffinity(0))), address)
  found = ray.cluster_resources()
  if device is None:
    kind = 'GPU' if found.get('GPU', 0) >= 1 else 'CPU'
  else:
    kind = 'GPU' if 'GPU' in device.upper() else 'CPU'
  available = int(found.get(kind, 0))
  if (num_actors or 1) > available:
    raise ValueError(
      f'num_actors={num_actors} needs as many {kind}s; the Ray cluster has '
      f'{available}.'
    )
  _context = RayContext(
    _Actors(
      num_actors or available,
      device,
      {'num_cpus': 1} if kind == 'CPU' else {'num_cpus': 0, 'num_gpus': 1},
    ),
    settings,
  )
  context_stack_impl.context_stack.set_default_context(_context)
  return _context
