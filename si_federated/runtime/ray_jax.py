"""Runs groups of clients by JAX on actors of a Ray cluster, each with a device.

The driver reads the data, converts and exports the programs, and merges the
sums of groups in order. So the result has the same bits for any number, speed
or death of actors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ray

from si_federated.runtime import (
  chunks,
  jax_cohort,
  jax_context,
  jax_process,
  ray_actors,
)


class RayJaxContext(jax_context.JaxContext):
  """A TFF execution context whose clients run on devices of a Ray cluster."""

  # The driver compiles nothing, so it does not know which groups fit.
  _LARGEST_GROUP = 64

  def __init__(
    self,
    actors: ray_actors.Actors,
    settings: tuple[Any, ...],
    clients_per_group: int | None,
    matmul_precision: str,
  ):
    """Initializes the context; use `set_ray_context`."""
    self.settings = settings
    self._actors = actors
    # References to exported programs by key.
    self._programs_sent: dict[str, Any] = {}
    super().__init__(
      clients_per_group=clients_per_group, matmul_precision=matmul_precision
    )

  def _start(self) -> dict[str, Any]:
    return self._actors.facts()

  @property
  def num_actors(self) -> int:
    """How many groups run at once."""
    return self._actors.count

  def stop(self) -> None:
    """Ends the actors; the context can't be used afterwards."""
    self._actors.stop()

  def _sum(self, cohort: jax_cohort.Cohort) -> list[np.ndarray]:
    groups = list(self._groups(cohort))
    for key, group in groups:
      if key not in self._programs_sent:
        self._programs_sent[key] = ray.put(
          self._export(cohort, group, self._platform)
        )
    used = {key: self._programs_sent[key] for key, _ in groups}
    values = ray.put((cohort.broadcast, cohort.zeros))
    self._actors.check_idle()
    total: list[np.ndarray] = []
    for result in chunks.run(
      groups,
      draw=lambda item: (item[0], item[1].arrays),
      keep=ray.put,
      submit=lambda chunk, kept: self._actors.run(chunk, used, values, kept),
      actors=self._actors,
      unit='groups of clients',
    ):
      if isinstance(result, ray_actors.OutOfMemory):
        raise jax_process.OutOfMemoryError(result.problem)
      total += result
    return total
