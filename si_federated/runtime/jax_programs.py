"""The clients of a group as one exported JAX program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import tensorflow_federated as tff

from si_federated.runtime import (
  client_arrays,
  jax_conversion,
  jax_operations,
  jax_worker,
  rounds,
  tensorflow_function,
  values,
)

# JAX's names of precisions, which changed in 0.4.31.
PRECISIONS = {'default': None, 'high': 'tensorfloat32', 'highest': 'float32'}


class ClientPrograms:
  """The programs of a round's client part, one for each shape of a group."""

  def __init__(self, part: rounds.ClientPart):
    """Converts the client part.

    Args:
      part: The client part.

    Raises:
      NotImplementedError: If the client part can't be converted.
    """
    work, zero, accumulate = part.computations
    self._result_type = work.type_signature.result
    self._work = jax_conversion.convert(work, "the client's work")
    self._accumulate = jax_conversion.convert(accumulate, 'the aggregation')
    self._check_secure_sums()
    self._num_tensors = self._check_tensors(part.client_type)
    self.sequence_types = self._work.sequence_types
    self.draw = self._work.draw
    self.client_type = part.client_type
    self.reader = client_arrays.Reader(part.client_type)
    self.num_accumulators = sum(
      1 for _ in tensorflow_function.leaf_types(zero.type_signature.result)
    )

  def _check_tensors(self, client_type: tff.Type) -> int:
    """Returns the number of a client's tensors that are not sequences."""
    tensors = [
      leaf
      for leaf in tensorflow_function.leaf_types(client_type)
      if not isinstance(leaf, tff.SequenceType)
    ]
    if any(None in leaf.shape for leaf in tensors):
      raise NotImplementedError(
        "the client's work takes tensors of unknown shape."
      )
    return len(tensors)

  def _check_secure_sums(self) -> None:
    for _, element in tff.structure.to_elements(self._result_type)[1:]:
      for leaf in tensorflow_function.leaf_types(element):
        if np.dtype(leaf.dtype).itemsize > 4:
          raise NotImplementedError(
            'the aggregation has secure sums of 64 bits, and JAX computes in '
            '32.'
          )

  def export(
    self,
    broadcast: Sequence[np.ndarray],
    total: Sequence[np.ndarray],
    group: client_arrays.Group,
    *,
    platform: str,
    matmul_precision: str,
  ) -> bytes:
    """Returns the program for groups of one shape; see `jax_worker.pack`.

    Args:
      broadcast: What the server broadcasts; only shapes and dtypes matter.
      total: The sums; only shapes and dtypes matter.
      group: A group of this shape.
      platform: 'cpu', 'cuda', 'rocm' or 'tpu'.
      matmul_precision: A key of `PRECISIONS`.
    """
    num_components = [
      len(values.component_specs(sequence)) for sequence in self.sequence_types
    ]

    def work(broadcast, arrays):
      sequences = []
      rest = list(arrays)
      for number in num_components:
        components = tuple(rest.pop(0) for _ in range(number))
        sequences.append(jax_operations.Batches(components, rest.pop(0)))
      # The rest are a client's tensors, then the drawn ones.
      number = self._num_tensors
      return self._work.function(
        [*rest[:number], *broadcast, *rest[number:]], sequences
      )

    def add(total, update):
      update, is_client = update
      parts = values.split(update, self._result_type)
      number = self.num_accumulators
      new = self._accumulate.function([*total[:number], *parts[0]], ())
      secure = [tensor for part in parts[1:] for tensor in part]
      new += [old + more for old, more in zip(total[number:], secure)]
      return [
        jnp.where(is_client, after.astype(before.dtype), before)
        for before, after in zip(total, new)
      ], None

    def program(broadcast, total, arrays):
      *data, is_client = arrays
      updates = jax.vmap(work, in_axes=(None, 0))(broadcast, data)
      total, _ = jax.lax.scan(add, list(total), (updates, is_client))
      return tuple(total)

    with jax.default_matmul_precision(PRECISIONS[matmul_precision]):
      exported = jax.export.export(jax.jit(program), platforms=[platform])(
        *(_specs(part) for part in (broadcast, total, group.arrays))
      )
    return jax_worker.pack(exported)


def _specs(arrays: Sequence[np.ndarray]) -> tuple[Any, ...]:
  return tuple(
    jax.ShapeDtypeStruct(
      array.shape, jax.dtypes.canonicalize_dtype(array.dtype)
    )
    for array in arrays
  )
