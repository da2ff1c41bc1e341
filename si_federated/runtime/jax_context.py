"""Runs the clients of a round as one JAX program, on an accelerator."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.context_stack import (
  context_base,
  context_stack_impl,
)

from si_federated.runtime import (
  client_arrays,
  dispatch,
  errors,
  jax_programs,
  jax_worker,
  rounds,
  tensorflow_function,
  values,
)

_PLATFORMS = {'gpu': 'cuda'}
_CLIENTS_PER_GROUP = {'cpu': 8}
_END_SECS = 5.0


class WorkerError(RuntimeError):
  """The process that runs the clients failed."""


class _OutOfMemoryError(Exception):
  pass


class _Worker:
  """The process that owns the device."""

  def __init__(self, python: str, device: str | None):
    environment = dict(os.environ)
    environment[jax_worker.FLATBUFFERS] = os.path.dirname(flatbuffers.__file__)
    # Its Python may be another one than this one's.
    for name in ('PYTHONPATH', 'PYTHONHOME'):
      environment.pop(name, None)
    if device is not None:
      environment['JAX_PLATFORMS'] = device
    try:
      self._process = subprocess.Popen(
        [python, jax_worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
      )
    except OSError as error:
      raise ValueError(
        f'The Python {python!r} of --runtime=jax does not start '
        f'({error.strerror}): give the path of a Python that has JAX.'
      ) from error
    self._finalizer = weakref.finalize(self, _end, self._process)
    try:
      self.facts, _ = self.ask({'command': 'hello'})
    except WorkerError as error:
      raise ValueError(
        f'JAX does not start in {python}: {error}. Install JAX there, or name '
        'another Python or device.'
      ) from error

  def ask(
    self, message: dict[str, Any], arrays: Sequence[np.ndarray] = ()
  ) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Sends a message and returns the answer.

    Raises:
      WorkerError: If the process has ended, or reports an error.
    """
    try:
      jax_worker.send(self._process.stdin, message, arrays)
      answer, results = jax_worker.receive(self._process.stdout)
    except (EOFError, OSError, ValueError) as error:  # of a closed pipe, too
      status = _end(self._process)
      raise WorkerError(
        f'The JAX process has ended (status {status})'
      ) from error
    except BaseException:
      # Interrupted: the answer would be taken for that of the next message.
      _end(self._process)
      raise
    if 'error' in answer:
      if 'RESOURCE_EXHAUSTED' in answer['error']:
        raise _OutOfMemoryError(answer['error'])
      raise WorkerError(f'{answer["kind"]}: {answer["error"]}')
    return answer, results

  @property
  def pid(self) -> int:
    """The process's number."""
    return self._process.pid


def _end(process: subprocess.Popen) -> int | None:
  """Closes a worker's input, which ends it, and returns its status."""
  with contextlib.suppress(OSError):
    if process.stdin is not None:
      process.stdin.close()
  try:
    return process.wait(_END_SECS)
  except subprocess.TimeoutExpired:
    process.kill()
    return process.wait()


def _refusal(error: Exception) -> errors.UnsupportedError:
  """Returns the error for a computation that can't be converted."""
  reason = str(error).strip().partition('\n')[0]
  return errors.UnsupportedError(
    f'--runtime=jax cannot run this computation: {reason} Use --runtime=local.'
  )


class JaxContext(context_base.SyncContext):
  """A TFF execution context whose clients run as one JAX program."""

  def __init__(
    self,
    python: str | None = None,
    device: str | None = None,
    clients_per_group: int | None = None,
    matmul_precision: str = 'highest',
  ):
    """Initializes the context; see `set_jax_context`."""
    if matmul_precision not in jax_programs.PRECISIONS:
      raise ValueError(
        f'matmul_precision={matmul_precision!r} is not one of '
        f'{", ".join(jax_programs.PRECISIONS)}.'
      )
    if clients_per_group is not None and clients_per_group < 1:
      raise ValueError(
        f'clients_per_group must be 1 or more; got {clients_per_group}.'
      )
    path = (
      sys.executable
      if python is None
      else str(pathlib.Path(python).expanduser())
    )
    if python is None and device is None:
      device = 'cpu'
    self._worker = _Worker(path, device)
    platform = self._worker.facts['platform']
    self._platform = _PLATFORMS.get(platform, platform)
    self._clients_per_group = client_arrays.power_of_two(
      clients_per_group or _CLIENTS_PER_GROUP.get(platform, 64)
    )
    self._precision = matmul_precision
    self._programs: dict[int, jax_programs.ClientPrograms] = {}
    self._loaded: set[str] = set()
    self._dispatcher = dispatch.Dispatcher(
      self._run_clients, prepare=self._convert
    )

  @property
  def device(self) -> str:
    """The device's name."""
    return str(self._worker.facts['device'])

  @property
  def worker_pid(self) -> int:
    """The number of the process that owns the device."""
    return self._worker.pid

  def invoke(self, comp: tff.Computation, arg: Any) -> Any:
    """Runs a computation; TFF calls it for `comp(arg)`."""
    return self._dispatcher.invoke(comp, arg)

  def _convert(self, compiled: rounds.Round) -> None:
    try:
      programs = jax_programs.ClientPrograms(compiled.client_part)
    except (NotImplementedError, TypeError, ValueError) as error:
      raise _refusal(error) from error
    self._programs[id(compiled)] = programs

  def _run_clients(
    self,
    compiled: rounds.Round,
    broadcast: values.Tensors,
    clients: Sequence[Any],
  ) -> rounds.Partial | None:
    if not len(clients):
      return None
    programs = self._programs[id(compiled)]
    part = compiled.client_part
    data: list[list[Any]] = []
    tensors: list[list[np.ndarray]] = []
    leaves = list(tensorflow_function.leaf_types(part.client_type))
    for position in range(len(clients)):
      try:
        client = clients[position]
        parts = list(zip(leaves, values.to_arrays(client, part.client_type)))
        data.append(
          [p for leaf, p in parts if isinstance(leaf, tff.SequenceType)]
        )
        tensors.append(
          [p for leaf, p in parts if not isinstance(leaf, tff.SequenceType)]
        )
        if programs.draw is not None:
          flat = values.flatten(client, part.client_type)
          drawn = programs.draw(*flat, *broadcast)
          tensors[-1] += [tensor.numpy() for tensor in drawn]
      except Exception as error:
        raise rounds.client_error(clients, position, error) from error
    empty = part.empty()
    zeros = [
      np.asarray(tensor)
      for tensor in (
        *empty.accumulator,
        *(tensor for kind in empty.secure_sums for tensor in kind),
      )
    ]
    arrays = [np.asarray(tensor) for tensor in broadcast]
    while True:
      try:
        total = self._sum(programs, arrays, zeros, data, tensors)
        break
      except _OutOfMemoryError as error:
        if self._clients_per_group == 1:
          raise errors.UnsupportedError(
            f'One client does not fit the memory of {self.device}: use a '
            'smaller model or smaller batches.'
          ) from error
        self._clients_per_group //= 2
        warnings.warn(
          f'{self.device} is out of memory; now with '
          f'{self._clients_per_group} clients at once.',
          stacklevel=2,
        )
      except WorkerError as error:
        raise errors.UnsupportedError(
          f'{error}; the rounds before this one are saved: start again to go '
          'on.'
        ) from error
    partial = None
    for start in range(0, len(total), len(zeros)):
      sums = [
        tf.convert_to_tensor(array.astype(zero.dtype))
        for array, zero in zip(total[start:], zeros)
      ]
      partial = compiled.merge(partial, part.partial(sums))
    return partial

  def _sum(
    self,
    programs: jax_programs.ClientPrograms,
    broadcast: list[np.ndarray],
    zeros: list[np.ndarray],
    data: Sequence[Sequence[Any]],
    tensors: Sequence[Sequence[np.ndarray]],
  ) -> list[np.ndarray]:
    """Returns the sums over clients of each device, one after the other."""
    num_devices = min(self._worker.facts['num_devices'], len(data))
    self._worker.ask(
      {
        'command': 'begin',
        'num_broadcast': len(broadcast),
        'num_devices': num_devices,
      },
      [*broadcast, *zeros],
    )
    size = min(
      self._clients_per_group,
      client_arrays.power_of_two(-(-len(data) // num_devices)),
    )
    groups = client_arrays.groups(data, programs.sequence_types, size, tensors)
    for number, group in enumerate(groups):
      key = f'{id(programs)} {group.shapes}'
      if key not in self._loaded:
        try:
          program = programs.export(
            broadcast,
            zeros,
            group,
            platform=self._platform,
            matmul_precision=self._precision,
          )
        except (NotImplementedError, TypeError, ValueError) as error:
          raise _refusal(error) from error
        self._worker.ask(
          {'command': 'load', 'key': key}, [np.frombuffer(program, np.uint8)]
        )
        self._loaded.add(key)
      self._worker.ask(
        {'command': 'add', 'key': key, 'device': number % num_devices},
        group.arrays,
      )
    return self._worker.ask({'command': 'end'})[1]


def start(
  python: str | None,
  device: str | None,
  clients_per_group: int | None,
  matmul_precision: str,
) -> JaxContext:
  """Makes TFF run clients by JAX; see `runtime.set_jax_context`."""
  context = JaxContext(python, device, clients_per_group, matmul_precision)
  context_stack_impl.context_stack.set_default_context(context)
  return context
