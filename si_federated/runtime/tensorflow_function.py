"""A TFF TensorFlow computation as one callable TensorFlow function.

TFF serializes local computations as graphs with bindings that name the tensors
of parameters and results. Here such a graph becomes a concrete function of this
process, from a flat list of tensors to a flat list of tensors, so that nothing
is serialized between the parts of a round.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff
from tensorflow.python.eager import context as tf_context
from tensorflow.python.eager import execute as tf_execute
from tensorflow.python.eager.cancellation import CancellationManager
from tensorflow_federated.proto.v0 import computation_pb2
from tensorflow_federated.python.tensorflow_libs import graph_utils

from si_federated.runtime import private_resources, python_functions

_function_count = 0
python_functions.keep()


def leaf_types(type_spec: tff.Type | None) -> Iterator[tff.Type]:
  """Yields the tensor and sequence types of a nested type, in order."""
  if type_spec is None:
    return
  if isinstance(type_spec, tff.StructType):
    for _, element in tff.structure.iter_elements(type_spec):
      yield from leaf_types(element)
  elif isinstance(type_spec, tff.FederatedType):
    yield from leaf_types(type_spec.member)
  else:
    yield type_spec


def _tensor_names(binding: Any) -> Iterator[str]:
  kind = binding.WhichOneof('binding')
  if kind == 'struct':
    for element in binding.struct.element:
      yield from _tensor_names(element)
  elif kind == 'tensor':
    yield binding.tensor.tensor_name
  elif kind == 'sequence':
    yield binding.sequence.variant_tensor_name
  elif kind is not None:
    raise NotImplementedError(f'A binding of kind {kind!r} is not supported.')


def rename_functions(graph_def: tf.compat.v1.GraphDef) -> None:
  """Gives a graph's functions new names: all graphs share one eager library.

  Args:
    graph_def: The graph, changed in place.
  """
  global _function_count
  _function_count += 1
  prefix = f'tff_{_function_count}_'
  names = {
    function.signature.name: prefix + function.signature.name
    for function in graph_def.library.function
  }

  def rename_node(node):
    node.op = names.get(node.op, node.op)
    for attribute in node.attr.values():
      if attribute.HasField('func'):
        attribute.func.name = names.get(
          attribute.func.name, attribute.func.name
        )
      for function in attribute.list.func:
        function.name = names.get(function.name, function.name)

  for node in graph_def.node:
    rename_node(node)
  for function in graph_def.library.function:
    function.signature.name = names[function.signature.name]
    for node in function.node_def:
      rename_node(node)
  for gradient in graph_def.library.gradient:
    gradient.function_name = names.get(
      gradient.function_name, gradient.function_name
    )
    gradient.gradient_func = names.get(
      gradient.gradient_func, gradient.gradient_func
    )


def _run_initializer_first(
  graph_def: tf.compat.v1.GraphDef, initializer: str, resources: set[str]
) -> None:
  """Makes the other uses of variables and tables depend on their initializer.

  A session runs the initializer in a call of its own, but a function is one
  call.
  """
  node_name = private_resources.node_name
  nodes = {node.name: node for node in graph_def.node}
  initializer = node_name(initializer)
  before: set[str] = set()
  pending = [initializer]
  while pending:
    name = pending.pop()
    if name not in before:
      before.add(name)
      pending.extend(node_name(edge) for edge in nodes[name].input)
  for node in graph_def.node:
    if node.name not in before and any(
      node_name(edge) in resources for edge in node.input
    ):
      node.input.append(f'^{initializer}')


class Graph:
  """The TensorFlow graph of a local TFF computation.

  Attributes:
    type_signature: The computation's `tff.FunctionType`.
    num_outputs: The number of tensors of the result.
  """

  def __init__(self, computation: tff.Computation, name: str):
    """Reads the graph.

    Args:
      computation: A TFF computation whose body is plain TensorFlow, such as a
        part of a `MapReduceForm`.
      name: The computation's name in error messages.

    Raises:
      NotImplementedError: If the body is not plain TensorFlow, or a resource
        in it can't be made private to one call.
    """
    proto: computation_pb2.Computation = computation.to_building_block().proto
    if proto.WhichOneof('computation') != 'tensorflow':
      raise NotImplementedError(
        f'{name} is not a plain TensorFlow computation but '
        f'{proto.WhichOneof("computation")!r}.'
      )
    self.type_signature = computation.type_signature
    self._body = proto.tensorflow
    self._graph_def = tf.compat.v1.GraphDef()
    self._body.graph_def.Unpack(self._graph_def)
    rename_functions(self._graph_def)
    resources = private_resources.make_private(self._graph_def)
    if self._body.initialize_op:
      _run_initializer_first(
        self._graph_def, self._body.initialize_op, resources
      )
    self._inputs = list(_tensor_names(self._body.parameter))
    self._outputs = list(_tensor_names(self._body.result))
    self.num_outputs = len(self._outputs)

  def nodes(self) -> Iterator[Any]:
    """Yields the nodes, including those in functions."""
    functions = (f.node_def for f in self._graph_def.library.function)
    return itertools.chain(self._graph_def.node, *functions)

  def specs(self) -> list[tf.TensorSpec]:
    """Returns the specs of the tensors of the parameter."""
    return [
      tf.TensorSpec([], tf.variant)
      if isinstance(leaf, tff.SequenceType)
      else tf.TensorSpec(leaf.shape, leaf.dtype)
      for leaf in leaf_types(self.type_signature.parameter)
    ]

  def build(self, arguments: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Imports the graph into the current one.

    Args:
      arguments: The tensors of the parameter, flattened in the order of its
        type; for a dataset its variant tensor.

    Returns:
      The tensors of the result, flattened in the same way.
    """
    input_map = dict(zip(self._inputs, arguments))
    if self._body.session_token_tensor_name:
      input_map[self._body.session_token_tensor_name] = tf.constant('local')
    # An operation may depend on a parameter without reading it.
    input_map = graph_utils.add_control_dep_mappings(input_map)
    imported = tf.graph_util.import_graph_def(
      self._graph_def,
      input_map=input_map,
      return_elements=self._outputs,
      name='tff',
    )
    return [tf.identity(tensor) for tensor in imported]


class TensorFlowFunction:
  """A local TFF computation that runs in this process.

  Attributes:
    type_signature: The computation's `tff.FunctionType`.
    calls_python: Whether it calls Python functions of this process.
  """

  def __init__(self, computation: tff.Computation, name: str):
    """Builds the function; see `Graph`."""
    graph = Graph(computation, name)
    self.type_signature = graph.type_signature
    self.calls_python = python_functions.are_called(graph.nodes())
    self._num_outputs = graph.num_outputs
    # Imported graphs have explicit control dependencies. The automatic ones of
    # `tf.function` would only run stateful operations one by one.
    self._function = tf.compat.v1.wrap_function(
      lambda *arguments: graph.build(arguments), graph.specs()
    )

  def __call__(
    self,
    arguments: Sequence[tf.Tensor],
    cancellation: CancellationManager | None = None,
  ) -> list[tf.Tensor]:
    """Runs the function.

    Args:
      arguments: The tensors of the parameter, flattened in the order of its
        type; for a dataset its variant tensor.
      cancellation: Cancels the call.

    Returns:
      The tensors of the result, flattened in the same way.

    Raises:
      tf.errors.CancelledError: If the call was cancelled.
    """
    if cancellation is None:
      return self._function(*arguments)
    # `CancellationManager.get_cancelable_function` keeps the manager in a
    # global, where calls of other threads would find and replace it.
    context = tf_context.context()
    return tf_execute.execute_with_cancellation(
      self._function._inference_function.name.decode(),
      num_outputs=self._num_outputs,
      inputs=list(arguments),
      attrs=tuple(
        itertools.chain(*context.function_call_options.as_attrs().items())
      ),
      ctx=context,
      cancellation_manager=cancellation,
    )
