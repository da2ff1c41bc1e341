"""Execution contexts: where TFF computations run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from si_federated.runtime.local import LocalContext, set_local_context
from si_federated.runtime.rounds import ClientError
from si_federated.runtime.tff_worker import set_tff_context


def set_ray_context(
  num_actors: int | None = None,
  address: str | None = None,
  device: str | None = None,
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
      default TensorFlow chooses. GPUs are untested.

  Returns:
    The context, now TFF's default.

  Raises:
    ModuleNotFoundError: If Ray is not installed.
    ValueError: If the cluster does not answer or is too small.
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
  return ray.start(num_actors, address, device)


RUNTIMES: dict[str, Callable[..., Any]] = {
  'local': set_local_context,
  'ray': set_ray_context,
  'tff': set_tff_context,
}

__all__ = [
  'RUNTIMES',
  'ClientError',
  'LocalContext',
  'set_local_context',
  'set_ray_context',
  'set_tff_context',
]
