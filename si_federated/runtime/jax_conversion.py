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
  host_part,
  jax_operations,
  python_functions,
  tensorflow_function,
)

# The name of the operation that marks a graph as leaving out rows of zeros; see
# `layers.static_shapes`.
COUNTED_ROWS = 'counted_rows'

RANDOM_OPERATIONS = frozenset(
  {
    'Multinomial',
    'RandomShuffle',
    'RandomStandardNormal',
    'RandomUniform',
    'RandomUniformInt',
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
    function: Takes the parameter's tensors except sequences, flat, and the
      sequences as `jax_operations.Batches`; returns the result's tensors, flat.
    sequence_types: The types of the sequences.
    draw: A TensorFlow function from all tensors of the parameter to more
      tensors, which `function` takes after the others; None if it needs none.
  """

  function: Callable[
    [Sequence[Any], Sequence[jax_operations.Batches]], list[Any]
  ]
  sequence_types: list[tff.SequenceType]
  draw: Callable[..., list[tf.Tensor]] | None


def convert(computation: tff.Computation, name: str) -> JaxFunction:
  """Converts a TFF computation whose body is plain TensorFlow.

  Args:
    computation: The computation, such as a part of a `MapReduceForm`. Datasets
      are only reduced.
    name: The computation's name in error messages.

  Returns:
    The function.

  Raises:
    NotImplementedError: If the computation can't be converted.
  """
  graph: Any = tensorflow_function.Graph(computation, name)
  leaves = list(
    tensorflow_function.leaf_types(computation.type_signature.parameter)
  )
  is_sequence = [isinstance(leaf, tff.SequenceType) for leaf in leaves]
  specs = [
    tf.TensorSpec(leaf.shape, leaf.dtype)
    for leaf, kind in zip(leaves, is_sequence)
    if not kind
  ]

  sequence_types = [leaf for leaf, kind in zip(leaves, is_sequence) if kind]
  if any(map(client_arrays.rows_vary, sequence_types)) and not any(
    node.name.rpartition('/')[2].startswith(COUNTED_ROWS)
    for node in graph.nodes()
  ):
    raise NotImplementedError(
      f'{name} takes batches of any number of rows, but shapes must be known: '
      'build a language model within `layers.static_shapes()`, which leaves '
      'out rows of padding, or give all batches one size.'
    )
  split = None
  if any(node.op in host_part.SEEDED_OPERATIONS for node in graph.nodes()):
    split = host_part.SplitGraph(
      graph,
      early=[
        not client_arrays.rows_vary(leaf)
        if kind
        else np.issubdtype(leaf.dtype, np.integer)
        for leaf, kind in zip(leaves, is_sequence)
      ],
    )
    specs += split.drawn

  @tf.function(autograph=False, input_signature=specs)
  def call(*tensors):
    given = list(tensors)
    arguments = [
      # A number in place of a dataset; see `_ReduceDataset`.
      tf.raw_ops.RangeDataset(
        start=np.int64(sum(is_sequence[:i])),
        stop=np.int64(0),
        step=np.int64(1),
        output_types=[tf.int64],
        output_shapes=[[]],
      )
      if kind
      else given.pop(0)
      for i, kind in enumerate(is_sequence)
    ]
    if split is None:
      return graph.build(arguments)
    return split.build(arguments, given)

  traced = call.get_concrete_function()
  nodes = _needed(
    traced.graph.as_graph_def(), [tensor.op.name for tensor in traced.outputs]
  )
  _check(nodes, name)
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

  return JaxFunction(
    function,
    sequence_types,
    None if split is None else split.draw_function(),
  )


def _needed(graph_def: Any, outputs: Sequence[str]) -> list[Any]:
  """Returns the nodes that outputs need, including those in functions."""
  by_name = {node.name: node for node in graph_def.node}
  functions = {f.signature.name: f for f in graph_def.library.function}
  found: dict[str, Any] = {}
  waiting = list(outputs)
  needed: list[Any] = []
  while waiting:
    name = waiting.pop()
    if name in found:
      continue
    if name in functions:
      found[name] = functions[name]
      nodes = functions[name].node_def
    else:
      found[name] = by_name[name]
      nodes = [by_name[name]]
      waiting += [
        edge.lstrip('^').partition(':')[0] for edge in by_name[name].input
      ]
    needed += nodes
    for node in nodes:
      for attribute in node.attr.values():
        called = (attribute.func, *attribute.list.func)
        waiting += [f.name for f in called if f.name in functions]
  return needed


def _check(nodes: Sequence[Any], name: str) -> None:
  """Raises a NotImplementedError if a graph can't be converted."""
  if python_functions.are_called(nodes):
    raise NotImplementedError(
      f"{name} can't be a JAX program: {python_functions.REFUSAL}"
    )
  unknown = ops.get_unsupported_operations([node.op for node in nodes])
  if unknown:
    raise NotImplementedError(
      f'{name} has operations that JAX has no counterpart for: '
      f'{", ".join(sorted(set(unknown)))}.'
    )
  # Seeded operations that remain depend on results of JAX.
  refused = RANDOM_OPERATIONS | host_part.SEEDED_OPERATIONS
  random = sorted({node.op for node in nodes} & refused)
  if random:
    raise NotImplementedError(
      f'{name} draws random numbers ({", ".join(random)}), which JAX would '
      'draw differently: leave out the part that draws them, such as random '
      'compression.'
    )
