"""Runs the clients of a TFF computation on actors of a Ray cluster.

Only this module and those named `ray_` import Ray. Computations without clients
run in the driver, the process that calls TFF. It merges the chunks of a cohort
(`chunks.py`) in order.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Any

import ray
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.context_stack import (
  context_base,
  context_stack_impl,
)

from si_federated.runtime import (
  chunks,
  dispatch,
  errors,
  python_functions,
  ray_actors,
  ray_cluster,
  rounds,
  values,
)

WORKERS = ('tensorflow', 'jax')


class RayContext(context_base.SyncContext):
  """A TFF execution context that runs clients on a Ray cluster."""

  def __init__(self, actors: ray_actors.Actors, settings: tuple[Any, ...]):
    """Initializes the context; use `set_ray_context`."""
    self.settings = settings
    self._actors = actors
    self._dispatcher = dispatch.Dispatcher(self._run_clients)
    # References to the serialized client part of each round, sent once.
    self._parts: weakref.WeakKeyDictionary[rounds.Round, Any] = (
      weakref.WeakKeyDictionary()
    )

  @property
  def num_actors(self) -> int:
    """How many clients run at once."""
    return self._actors.count

  def invoke(self, comp: tff.Computation, arg: Any) -> Any:
    """Runs a computation; TFF calls it for `comp(arg)`."""
    return self._dispatcher.invoke(comp, arg)

  def stop(self) -> None:
    """Ends the actors; the context can't be used afterwards."""
    self._actors.stop()

  def _run_clients(
    self,
    compiled: rounds.Round,
    broadcast: values.Tensors,
    clients: Sequence[Any],
  ) -> rounds.Partial | None:
    if compiled.client_part.calls_python:
      raise errors.UnsupportedError(
        "A client's work can't go to the actors of --runtime=ray: "
        f'{python_functions.REFUSAL}'
      )
    if compiled not in self._parts:
      self._parts[compiled] = ray.put(compiled.client_part.serialize())
    part = self._parts[compiled]
    client_type = compiled.client_part.client_type
    weights = ray.put([tensor.numpy() for tensor in broadcast])
    self._actors.check_idle()
    partial = None
    for result in chunks.run(
      clients,
      # Keeps data until their chunk is done, because its actor may die.
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


_context: Any = None


def start(
  num_actors: int | None,
  address: str | None,
  device: str | None,
  worker: str,
  python: str | None,
  clients_per_group: int | None,
  matmul_precision: str,
) -> Any:
  """Implements `runtime.set_ray_context`."""
  global _context
  if num_actors is not None and num_actors < 1:
    raise ValueError(f'num_actors must be at least 1, found {num_actors}.')
  if worker not in WORKERS:
    raise ValueError(f'worker={worker!r} is not one of {", ".join(WORKERS)}.')
  jax_settings = (python, clients_per_group, matmul_precision)
  if worker != 'jax' and jax_settings != (None, None, 'highest'):
    raise ValueError(
      'python, clients_per_group and matmul_precision are options of '
      'worker=jax: give it too, or leave them out.'
    )
  settings = (num_actors, address, device, worker, *jax_settings)
  if (
    _context is None
    or not ray.is_initialized()
    or _context.settings != settings
  ):
    if _context is not None:
      _context.stop()
    _context = None
    actors = _connect(num_actors, address, device, worker, python)
    if worker == 'jax':
      from si_federated.runtime import ray_jax

      _context = ray_jax.RayJaxContext(
        actors, settings, clients_per_group, matmul_precision
      )
    else:
      _context = RayContext(actors, settings)
  context_stack_impl.context_stack.set_default_context(_context)
  return _context


def _connect(
  num_actors: int | None,
  address: str | None,
  device: str | None,
  worker: str,
  python: str | None,
) -> ray_actors.Actors:
  ray_cluster.connect(
    max(num_actors or 0, len(os.sched_getaffinity(0))), address
  )
  found = ray.cluster_resources()
  if device is None:
    kind = 'GPU' if found.get('GPU', 0) >= 1 else 'CPU'
  else:
    name = device.upper()
    kind = 'GPU' if 'GPU' in name or 'CUDA' in name else 'CPU'
  available = int(found.get(kind, 0))
  if (num_actors or 1) > available:
    raise ValueError(
      f'num_actors={num_actors} needs as many {kind}s; the Ray cluster has '
      f'{available}.'
    )
  resources = (
    {'num_cpus': 1} if kind == 'CPU' else {'num_cpus': 0, 'num_gpus': 1}
  )
  count = num_actors or available
  if worker == 'jax':
    return ray_actors.Actors(
      count, ray_actors.GroupWorker, (python, device), resources
    )
  return ray_actors.Actors(count, ray_actors.ClientWorker, (device,), resources)
