"""Decides how a TFF computation runs, and caches its compiled form."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.types import type_analysis

from si_federated.runtime import (
  errors,
  interrupts,
  rounds,
  tensorflow_function,
  values,
)


def _is_federated(type_spec: tff.Type) -> bool:
  return type_analysis.contains(
    type_spec, lambda part: isinstance(part, tff.FederatedType)
  )


class Dispatcher:
  """Runs computations, each compiled once.

  Computations without placements, initializations and the server's part of
  rounds run in this process. Other computations go to TFF's own runtime, with a
  warning that names the reason.
  """

  def __init__(
    self,
    run_clients: rounds.RunClients,
    device: str | None = None,
    prepare: Callable[[rounds.Round], None] | None = None,
  ):
    """Initializes the dispatcher.

    Args:
      run_clients: Runs the clients of a round.
      device: The TensorFlow device for this process's operations.
      prepare: Called with each compiled round; raises an `UnsupportedError` if
        `run_clients` can't run its clients. If given, TensorFlow does not
        optimize the graphs, and nothing goes to TFF's runtime.
    """
    self._run_clients = run_clients
    self._prepare = prepare
    self._device = device
    self._compiled: dict[int, tuple[tff.Computation, Callable]] = {}

  def invoke(self, comp: tff.Computation, arg: Any) -> Any:
    """Runs a computation; see `tff.framework.SyncContext.invoke`."""
    # Hashing a computation would serialize it. Its id identifies it, since the
    # entry keeps the computation alive.
    with interrupts.kept():
      if id(comp) not in self._compiled:
        self._compiled[id(comp)] = (comp, self._compile(comp))
      return self._compiled[id(comp)][1](arg)

  def _compile(self, comp: tff.Computation) -> Callable[[Any], Any]:
    try:
      run = self._lower(comp)
    except (NotImplementedError, TypeError, ValueError) as error:
      if self._prepare is not None:
        raise errors.UnsupportedError(
          f"A computation can't be lowered to plain TensorFlow: {error} Use "
          '--runtime=local.'
        ) from error
      warnings.warn(
        "A computation goes to TFF's own runtime because it can't be "
        f'lowered to plain TensorFlow: {error}',
        stacklevel=5,
      )
      from si_federated.runtime import tff_worker

      context = tff_worker.get_context()
      return lambda arg: context.invoke(comp, arg)
    result_type = comp.type_signature.result

    def run_and_unflatten(arg: Any) -> Any:
      with device_scope(self._device):
        tensors = run(arg)
      return values.unflatten(tensors, result_type)

    return run_and_unflatten

  def _lower(self, comp: tff.Computation) -> Callable[[Any], values.Tensors]:
    signature = comp.type_signature
    if not _is_federated(signature):
      function = tensorflow_function.TensorFlowFunction(comp, str(comp))
    elif signature.parameter is None:
      function = tensorflow_function.TensorFlowFunction(
        tff.backends.mapreduce.get_state_initialization_computation(comp),
        'initialize',
      )
    else:
      compiled = rounds.Round(comp, optimized=self._prepare is None)
      if self._prepare is not None:
        self._prepare(compiled)
      return lambda arg: compiled(arg, self._run_clients)
    return lambda arg: function(
      [] if arg is None else values.flatten(arg, signature.parameter)
    )


def device_scope(device: str | None) -> contextlib.AbstractContextManager:
  """Returns a scope in which this thread's operations run on a device.

  Args:
    device: The device; with None TensorFlow chooses.
  """
  return contextlib.nullcontext() if device is None else tf.device(device)


def check_device(device: str | None) -> None:
  """Checks that TensorFlow has a device in this process.

  Args:
    device: Its name, such as '/GPU:0', or None.

  Raises:
    ValueError: If there is no such device.
  """
  if device is None:
    return
  available = [
    f'/{found.device_type}:{found.name.rpartition(":")[2]}'
    for found in tf.config.list_logical_devices()
  ]
  name = str(device).upper().lstrip('/').removeprefix('DEVICE:')
  if f'/{name}' not in available:
    raise ValueError(
      f'device={device!r} does not exist; TensorFlow has '
      f'{", ".join(available)} here.'
    )
