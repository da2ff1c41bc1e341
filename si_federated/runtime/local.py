"""Runs TFF computations in this process, several clients at once.

No worker process is needed: the TensorFlow graphs of a round (`rounds.py`) run
as functions of this process.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.context_stack import (
  context_base,
  context_stack_impl,
)

from si_federated.runtime import (
  dispatch,
  interrupts,
  memory,
  rounds,
  tensorflow_function,
  values,
)

# Updates kept per thread, so that threads stay busy while the client whose
# update is next in order still trains.
_WINDOW = 4
_CANCEL_SECS = 5.0


def _in_order(
  executor: concurrent.futures.Executor,
  work: Callable[[int], Any],
  count: int,
  window: int,
  cancel: Callable[[], None],
) -> Generator[Any, None, None]:
  """Yields `work(0)`, `work(1)`, ..., and keeps at most `window` of them.

  Results come in order, whichever thread finishes first, so that their sum has
  the same bits in every run. If a call raises, or the caller is interrupted,
  the running calls are cancelled.
  """
  pending: collections.deque[concurrent.futures.Future] = collections.deque()
  try:
    for index in range(count):
      pending.append(executor.submit(work, index))
      if len(pending) >= window:
        _await_first(pending)
        yield pending.popleft().result()
    while pending:
      _await_first(pending)
      yield pending.popleft().result()
  finally:
    cancel()
    for future in pending:
      future.cancel()
    # The timeout is needed because Python code in a dataset can't be cancelled.
    concurrent.futures.wait(pending, _CANCEL_SECS)


def _await_first(pending: Sequence[concurrent.futures.Future]) -> None:
  """Waits for the first future; raises the exception of any that fails."""
  while not pending[0].done():
    interrupts.check()
    running = [future for future in pending if not future.done()]
    done, _ = concurrent.futures.wait(
      running, return_when=concurrent.futures.FIRST_COMPLETED
    )
    for future in done:
      future.result()


class LocalContext(context_base.SyncContext):
  """A TFF execution context that runs computations in this process.

  Rounds (computations of a server state and clients' data) and computations
  without placements are compiled once and run here. Other computations go to
  TFF's own runtime, with a warning that names the reason.
  """

  def __init__(self, num_threads: int | None = None, device: str | None = None):
    """Initializes the context.

    Args:
      num_threads: How many clients to run at once, each in a thread; by default
        the number of this machine's processors.
      device: The TensorFlow device to compute on, such as '/GPU:0'; TensorFlow
        chooses by default. GPUs are untested.

    Raises:
      ValueError: If there is no such device.
    """
    dispatch.check_device(device)
    self._device = device
    self._num_threads = num_threads or len(os.sched_getaffinity(0))
    self._executor = concurrent.futures.ThreadPoolExecutor(
      self._num_threads, thread_name_prefix='client'
    )
    self._dispatcher = dispatch.Dispatcher(self._run_clients, device)

  @property
  def num_threads(self) -> int:
    """How many clients run at once."""
    return self._num_threads

  def invoke(self, comp: tff.Computation, arg: Any) -> Any:
    """Runs a computation; TFF calls it for `comp(arg)`."""
    return self._dispatcher.invoke(comp, arg)

  def _run_clients(
    self,
    compiled: rounds.Round,
    broadcast: values.Tensors,
    clients: Sequence[Any],
  ) -> rounds.Partial | None:
    part = compiled.client_part
    # One manager per client, since a failure cancels all calls of its manager.
    under_way: set[tensorflow_function.CancellationManager] = set()
    stopped = threading.Event()

    def cancel() -> None:
      stopped.set()
      for cancellation in list(under_way):
        cancellation.start_cancel()

    def work(position: int) -> list[values.Tensors]:
      cancellation = tensorflow_function.CancellationManager()
      under_way.add(cancellation)
      try:
        if stopped.is_set():
          cancellation.start_cancel()
        client = values.flatten(clients[position], part.client_type)
        # A device scope applies to one thread only.
        with dispatch.device_scope(self._device):
          return part.work(client, broadcast, cancellation)
      except Exception as error:
        raise rounds.client_error(clients, position, error) from error
      finally:
        under_way.discard(cancellation)

    partial = None
    updates = _in_order(
      self._executor,
      work,
      len(clients),
      window=_WINDOW * self._num_threads,
      cancel=cancel,
    )
    # Closed at once, so that an error in `fold` stops the other clients.
    with contextlib.closing(updates):
      for update in updates:
        partial = part.fold(partial, update)
    return partial


def set_local_context(
  num_threads: int | None = None, device: str | None = None
) -> LocalContext:
  """Makes TFF run its computations in this process.

  Call it before TensorFlow runs its first operation: each operation then uses a
  single thread, which is fastest when several clients run at once, and freed
  memory is kept for the next step (see `memory.keep_freed_memory`). Later calls
  work, but can't change these two settings.

  Args:
    num_threads: How many clients to run at once; by default the number of
      processors.
    device: The TensorFlow device to compute on, such as '/GPU:0'; by default
      TensorFlow chooses, a GPU if it sees one. GPUs are untested.

  Returns:
    The context, now TFF's default.

  Raises:
    ValueError: If there is no such device.
  """
  memory.keep_freed_memory()
  with contextlib.suppress(RuntimeError):
    tf.config.threading.set_intra_op_parallelism_threads(1)
  context = LocalContext(num_threads, device)
  context_stack_impl.context_stack.set_default_context(context)
  return context
