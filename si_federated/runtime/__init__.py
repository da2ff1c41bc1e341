"""Execution contexts: where TFF computations run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from si_federated.runtime.errors import ClientError, UnsupportedError
from si_federated.runtime.local import LocalContext, set_local_context
from si_federated.runtime.tff_worker import set_tff_context


def set_ray_context(
  num_actors: int | None = None,
  address: str | None = None,
  device: str | None = None,
  worker: str = 'tensorflow',
  python: str | None = None,
  clients_per_group: int | None = None,
  matmul_precision: str = 'highest',
) -> Any:
  """Makes TFF run the clients of its computations on a Ray cluster.

  Each actor has one core (or one GPU) and runs one client at a time. If an
  actor dies in a round, others do its work, and the result has the same bits.

  Args:
    num_actors: How many clients to run at once; by default the number of the
      cluster's GPUs, or of its cores if it has no GPU.
    address: The cluster: 'auto' on one of its nodes, or HOST:PORT of its head.
      Every node needs this package installed. By default Ray is started on
      this machine, and ends with this process.
    device: The TensorFlow device of an actor, '/CPU:0' to leave GPUs unused; by
      default TensorFlow chooses. With `worker='jax'`, JAX's name of the
      platform, cpu or cuda. GPUs are untested.
    worker: The library that runs an actor's clients: 'tensorflow', one at a
      time, or 'jax', many at once, as `set_jax_context` does; for 'jax', build
      learning processes within `layers.static_shapes()`.
    python: With `worker='jax'`, see `set_jax_context`; the same path on all
      nodes.
    clients_per_group: With `worker='jax'`, see `set_jax_context`, but 64 by
      default on accelerators. Actors run whole groups, which don't depend on
      the number of actors.
    matmul_precision: With `worker='jax'`, see `set_jax_context`.

  Returns:
    The context, now TFF's default.

  Raises:
    ModuleNotFoundError: If Ray is not installed, or tf2jax for
      `worker='jax'`.
    ValueError: If the cluster does not answer or is too small, or an option is
      out of range.
  """
  try:
    from si_federated.runtime import ray
  except ModuleNotFoundError as error:
    if error.name != 'ray':
      raise
    raise ModuleNotFoundError(
      "The Ray runtime needs Ray: pip install 'si_federated[ray]'.",
      name=error.name,
    ) from error
  with _naming_the_jax_extra() if worker == 'jax' else contextlib.nullcontext():
    return ray.start(
      num_actors,
      address,
      device,
      worker,
      python,
      clients_per_group,
      matmul_precision,
    )


def set_jax_context(
  python: str | None = None,
  device: str | None = None,
  clients_per_group: int | None = None,
  matmul_precision: str = 'highest',
  record: str | None = None,
  memory_gib: float | None = None,
) -> Any:
  """Makes TFF run the clients of its computations by JAX, many at once.

  The clients of a cohort are one program, vectorized over clients, in a process
  of its own. Build learning processes within `layers.static_shapes()`.

  Args:
    python: A Python whose JAX knows the device, such as `.venv-jax/bin/python`
      after `make accelerator`; by default this one, on the CPU.
    device: JAX's name of the platform: cpu, cuda or tpu; by default JAX
      chooses.
    clients_per_group: How many clients to run at once, rounded up to a power of
      two; fewer if the device runs out of memory. By default as many as fit
      the memory, by what the compiled programs take; at most 8 on the CPU.
    matmul_precision: 'highest' computes matrix products in float32; 'default'
      is faster, in TF32 on NVIDIA's GPUs, and agrees with other runtimes to
      three digits only.
    record: A new folder for a recording: the first round of each computation,
      which `python FOLDER/replay.py` runs again where there is JAX alone.
    memory_gib: The memory that a program may take, in GiB; by default nine
      tenths of what JAX has of an accelerator's, or half of the machine's.

  Returns:
    The context, now TFF's default.

  Raises:
    ModuleNotFoundError: If tf2jax is not installed.
    ValueError: If JAX does not start, or an option is out of range.
  """
  with _naming_the_jax_extra():
    from si_federated.runtime import jax_context
  return jax_context.start(
    python, device, clients_per_group, matmul_precision, record, memory_gib
  )


@contextlib.contextmanager
def _naming_the_jax_extra() -> Iterator[None]:
  try:
    yield
  except ModuleNotFoundError as error:
    if error.name not in ('jax', 'tf2jax'):
      raise
    raise ModuleNotFoundError(
      "The JAX runtime needs tf2jax: pip install 'si_federated[jax]'.",
      name=error.name,
    ) from error


def needs_static_shapes(name: str, options: Mapping[str, Any]) -> bool:
  """Returns whether clients' work must be traced within `static_shapes()`.

  Args:
    name: A runtime, of `RUNTIMES`.
    options: Its options.
  """
  return name == 'jax' or options.get('worker') == 'jax'


RUNTIMES: dict[str, Callable[..., Any]] = {
  'jax': set_jax_context,
  'local': set_local_context,
  'ray': set_ray_context,
  'tff': set_tff_context,
}

__all__ = [
  'RUNTIMES',
  'ClientError',
  'LocalContext',
  'UnsupportedError',
  'needs_static_shapes',
  'set_jax_context',
  'set_local_context',
  'set_ray_context',
  'set_tff_context',
]
