"""A client's TensorFlow graph as a JAX function."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
import tf2jax
from tf2jax._src import ops

from si_federated.runtime import (
  client_arrays,
  jax_operations,
  tensorflow_function,
)

# The name of the operation by which a graph says that it leaves out rows of
# zeros; see `layers.static_shapes`.
COUNTED_ROWS = 'counted_rows'

RANDOM_OPERATIONS = frozenset(
  {
    'Multinomial',
    'RandomShuffle',
    'RandomStandardNormal',
    'RandomUniform',
    'RandomUniformInt',
    'StatelessMultinomial',
    'StatelessRandomNormalV2',
    'StatelessRandomUniformFullIntV2',
    'StatelessRandomUniformIntV2',
    'StatelessRandomUniformV2',
    'TruncatedNormal',
  }
)

_CONFIG = {
  'convert_custom_gradient': False,  # gradients are in the graph already
  'strict_shape_check': False,
}


@dataclasses.dataclass(frozen=True)
class JaxFunction:
  """A local TFF computation in JAX.

  Attributes:
    function: From the tensors of the parameter but its sequences, flat, and the
      sequences as `jax_operations.Batches`, to the tensors of the result, flat.
    sequence_types: The types of the sequences.
  """

  function: Callable[
    [Sequence[Any], Sequence[jax_operations.Batches]], list[Any]
  ]
  sequence_types: list[tff.SequenceType]


def convert(computation: tff.Computation, name: str) -> JaxFunction:
  """Converts a TFF computation whose body is plain TensorFlow.

  Args:
    computation: The computation, such as a part of a `MapReduceForm`. Datasets
      are only reduced.
    name: Its name in error messages.

  Returns:
    The function.

  Raises:
    NotImplementedError: If it can't be converted.
  """
  graph = tensorflow_function.Graph(computation, name)
  leaves = list(
    tensorflow_function.leaf_types(computation.type_signature.parameter)
  )
  is_sequence = [isinstance(leaf, tff.SequenceType) for leaf in leaves]
  specs = [
    tf.TensorSpec(leaf.shape, leaf.dtype)
    for leaf, kind in zip(leaves, is_sequence)
    if not kind
  ]

  @tf.function(autograph=False, input_signature=specs)
  def call(*tensors):
    given = iter(tensors)
    return graph.build(
      [
        # A number in place of a dataset; see `_ReduceDataset`.
        tf.raw_ops.RangeDataset(
          start=np.int64(sum(is_sequence[:i])),
          stop=np.int64(0),
          step=np.int64(1),
          output_types=[tf.int64],
          output_shapes=[[]],
        )
        if kind
        else next(given)
        for i, kind in enumerate(is_sequence)
      ]
    )

  graph_def = call.get_concrete_function().graph.as_graph_def()
  sequence_types = [leaf for leaf, kind in zip(leaves, is_sequence) if kind]
  _check(graph_def, sequence_types, name)
  for key, value in _CONFIG.items():
    tf2jax.update_config(key, value)
  converted = tf2jax.convert_functional(
    call, *(np.zeros(spec.shape, spec.dtype.as_numpy_dtype) for spec in specs)
  )

  def function(tensors, sequences):
    with jax_operations.datum(sequences), warnings.catch_warnings():
      # JAX counts in 32 bits.
      warnings.filterwarnings('ignore', message='Explicitly requested dtype')
      return list(converted(*tensors))

  return JaxFunction(function, sequence_types)


def _check(
  graph_def: Any, sequence_types: Sequence[tff.SequenceType], name: str
) -> None:
  """Raises a NotImplementedError if a graph can't be converted."""
  nodes = [
    *graph_def.node,
    *(n for f in graph_def.library.function for n in f.node_def),
  ]
  unknown = ops.get_unsupported_operations([node.op for node in nodes])
  if unknown:
    raise NotImplementedError(
      f'{name} has operations that JAX has no counterpart of: '
      f'{", ".join(sorted(set(unknown)))}.'
    )
  random = sorted({node.op for node in nodes} & RANDOM_OPERATIONS)
  if random:
    raise NotImplementedError(
      f'{name} draws random numbers ({", ".join(random)}), which JAX draws '
      'otherwise: leave out dropout and random compression.'
    )
  if any(map(client_arrays.rows_vary, sequence_types)) and not any(
    node.name.rpartition('/')[2] == COUNTED_ROWS for node in nodes
  ):
    raise NotImplementedError(
      f'{name} takes batches of any number of rows, but shapes must be known: '
      'build a language model within `layers.static_shapes()`, which leaves '
      'out rows of padding, or give all batches one size.'
    )
