"""TFF's own runtime, with a worker process that ends with this one.

TFF's local context starts a worker that outlives Python, so that a reader of
the run's piped output waits forever. Here the worker does not inherit our
output, is stopped at exit, and is killed by the kernel if its parent dies.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import grpc
import portpicker
import tensorflow_federated as tff
from tensorflow_federated.python.core.backends.native import (
  compiler as native_compiler,
)
from tensorflow_federated.python.core.backends.test import (
  compiler as test_compiler,
)
from tensorflow_federated.python.core.environments.tensorflow_frontend import (
  tensorflow_computation,
)
from tensorflow_federated.python.core.impl.context_stack import (
  context_stack_impl,
)
from tensorflow_federated.python.core.impl.execution_contexts import (
  sync_execution_context,
)
from tensorflow_federated.python.core.impl.executor_stacks import (
  python_executor_stacks,
)
from tensorflow_federated.python.core.impl.executors import (
  remote_executor,
  remote_executor_grpc_stub,
)

_MAX_MESSAGE_BYTES = 2 * 1000 * 1000 * 1000
_START_TIMEOUT_SECS = 60.0
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _start_for_life(command: Sequence[str]) -> subprocess.Popen:
  """Starts a process that lives no longer than this one.

  The kernel considers the thread that forks to be the parent. The caller's
  thread may end earlier, so the process is started by a thread that never ends.
  """
  started: concurrent.futures.Future = concurrent.futures.Future()

  def start():
    try:
      process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=_die_with_parent,
      )
    except Exception as error:
      started.set_exception(error)
    else:
      started.set_result(process)
      threading.Event().wait()

  threading.Thread(target=start, name='worker_parent', daemon=True).start()
  return started.result()


class _Worker:
  """A TFF worker process that lives no longer than this process."""

  def __init__(self):
    binary = os.path.join(
      os.path.dirname(tff.__file__), 'data', 'worker_binary'
    )
    port = portpicker.pick_unused_port()
    self._process = _start_for_life(
      [binary, f'--port={port}', '--max_concurrent_computation_calls=-1']
    )
    atexit.register(self.stop)
    channel = grpc.insecure_channel(
      f'localhost:{port}',
      [
        ('grpc.max_message_length', _MAX_MESSAGE_BYTES),
        ('grpc.max_receive_message_length', _MAX_MESSAGE_BYTES),
        ('grpc.max_send_message_length', _MAX_MESSAGE_BYTES),
      ],
    )
    self.stub = remote_executor_grpc_stub.RemoteExecutorGrpcStub(channel)
    deadline = time.monotonic() + _START_TIMEOUT_SECS
    while not self.stub.is_ready:
      if self._process.poll() is not None or time.monotonic() > deadline:
        self.stop()
        raise RuntimeError(
          "TFF's worker process did not start; use the local runtime instead."
        )
      time.sleep(0.05)

  def stop(self) -> None:
    if self._process.poll() is None:
      self._process.terminate()
      try:
        self._process.wait(timeout=2)
      except subprocess.TimeoutExpired:
        self._process.kill()
        self._process.wait()


def _compile(computation: Any) -> Any:
  # The worker has no secure sums; TFF's test backend simulates them, too.
  return native_compiler.desugar_and_transform_to_native(
    test_compiler.replace_secure_intrinsics_with_bodies(computation)
  )


def _to_lists(arg: Any) -> Any:
  """Turns a cohort into a list, the only sequence of clients TFF accepts."""
  if isinstance(arg, tff.structure.Struct):
    return tff.structure.Struct(
      (name, _to_lists(value)) for name, value in tff.structure.to_elements(arg)
    )
  if isinstance(arg, Sequence) and not isinstance(arg, (str, bytes, tuple)):
    return list(arg)
  return arg


class _NativeContext(sync_execution_context.SyncExecutionContext):
  """TFF's synchronous context, for any sequence of clients."""

  def invoke(self, comp: Any, arg: Any) -> Any:
    return super().invoke(comp, _to_lists(arg))


@functools.lru_cache(maxsize=1)
def get_context() -> tff.framework.SyncContext:
  """Returns the context of TFF's own runtime; starts its worker once."""
  worker = _Worker()

  def build_executor(cardinalities):
    executor = remote_executor.RemoteExecutor(worker.stub)
    executor.set_cardinalities({tff.CLIENTS: 0, **cardinalities})
    return executor

  return _NativeContext(
    executor_fn=python_executor_stacks.ResourceManagingExecutorFactory(
      executor_stack_fn=build_executor
    ),
    compiler_fn=_compile,
    transform_args=tensorflow_computation.transform_args,
    transform_result=tensorflow_computation.transform_result,
  )


def set_tff_context() -> tff.framework.SyncContext:
  """Makes TFF run its computations in its own worker process.

  This is the reference implementation, slower than the local runtime.

  Returns:
    The context, now TFF's default.

  Raises:
    RuntimeError: If the worker does not start.
  """
  context = get_context()
  context_stack_impl.context_stack.set_default_context(context)
  return context
