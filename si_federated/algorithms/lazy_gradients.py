"""Gradients that cost nothing for variables that are not trained.

TensorFlow computes all gradients of a step at once, although the variables that
a client trains are known only when its graph runs. So this module cuts the
graph of a step: operations that only one variable's gradient needs go into a
branch that runs if that variable is trained.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

_SHARED = -1


@contextlib.contextmanager
def _inlined_functions() -> Iterator[None]:
  """Makes TensorFlow inline functions into the graph that calls them.

  Otherwise the whole backward pass would be one operation, which can't be cut.
  """
  before = tf.config.functions_run_eagerly()
  tf.config.run_functions_eagerly(True)
  try:
    yield
  finally:
    tf.config.run_functions_eagerly(before)


def _owners(
  operations: Sequence[tf.Operation],
  shared: Sequence[tf.Tensor],
  gradients: Sequence[tf.Tensor | None],
) -> dict[str, set[int]]:
  """Maps each operation to the gradients that need it; -1 marks shared ones."""
  needed: dict[str, set[int]] = collections.defaultdict(set)
  for tensor in shared:
    needed[tensor.op.name].add(_SHARED)
  for index, gradient in enumerate(gradients):
    if gradient is not None:
      needed[gradient.op.name].add(index)
  # Gradients rewrite loops, which can then have inputs that were created later:
  # operations do not depend only on earlier ones.
  for operation in _consumers_first(operations):
    if operation.op_def.is_stateful or operation.type == 'Placeholder':
      needed[operation.name].add(_SHARED)
    owners = needed[operation.name]
    for tensor in operation.inputs:
      needed[tensor.op.name] |= owners
    for other in operation.control_inputs:
      needed[other.name].add(_SHARED)
  return needed


def _consumers_first(
  operations: Sequence[tf.Operation],
) -> Iterator[tf.Operation]:
  waiting = {
    operation.name: len(
      {
        consumer.name
        for tensor in operation.outputs
        for consumer in tensor.consumers()
      }
      | {other.name for other in operation._control_outputs}
    )
    for operation in operations
  }
  by_name = {operation.name: operation for operation in operations}
  ready = [name for name, count in waiting.items() if not count]
  while ready:
    operation = by_name[ready.pop()]
    yield operation
    for name in {
      *(tensor.op.name for tensor in operation.inputs),
      *(other.name for other in operation.control_inputs),
    }:
      waiting[name] -= 1
      if not waiting[name]:
        ready.append(name)


def _functions_of(nodes: Any, library: Any) -> list[Any]:
  """Returns the functions of a library that nodes call, transitively."""
  by_name = {function.signature.name: function for function in library.function}
  found: dict[str, Any] = {}
  waiting = list(nodes)
  while waiting:
    for attribute in waiting.pop().attr.values():
      for called in (attribute.func, *attribute.list.func):
        if called.name in by_name and called.name not in found:
          found[called.name] = by_name[called.name]
          waiting.extend(by_name[called.name].node_def)
  return list(found.values())


class _Part:
  """Some operations of a graph, to be imported into others."""

  def __init__(self, graph_def: Any, names: set[str], outputs: Sequence[str]):
    self._outputs = list(outputs)
    self._graph_def = tf.compat.v1.GraphDef()
    self._graph_def.versions.CopyFrom(graph_def.versions)
    taken = []
    for node in graph_def.node:
      if node.name not in names:
        continue
      copied = self._graph_def.node.add()
      copied.CopyFrom(node)
      # A colocation constraint can name an operation that is missing here.
      copied.attr.pop('_class', None)
      del copied.input[:]
      for name in node.input:
        if not name.startswith('^'):
          copied.input.append(name)
          if name.partition(':')[0] not in names:
            taken.append(_with_index(name))
        elif name[1:] in names:
          copied.input.append(name)
    self._graph_def.library.function.extend(
      _functions_of(self._graph_def.node, graph_def.library)
    )
    taken += [name for name in outputs if name.partition(':')[0] not in names]
    self.inputs = list(dict.fromkeys(taken))

  def __call__(self, values: dict[str, tf.Tensor]) -> list[tf.Tensor]:
    """Imports the operations into the current graph.

    Args:
      values: The tensor of that graph for each of `inputs`.

    Returns:
      The outputs.
    """
    # A branch can only use outer tensors through an operation of its own.
    given = {name: tf.identity(values[name]) for name in self.inputs}
    computed = [name for name in self._outputs if name not in given]
    results = dict(
      zip(
        computed,
        tf.graph_util.import_graph_def(
          self._graph_def,
          input_map={
            name: value
            for name, value in given.items()
            if name in self._consumed()
          },
          return_elements=computed,
          name='part',
        ),
      )
    )
    return [results.get(name, given.get(name)) for name in self._outputs]

  def _consumed(self) -> set[str]:
    return {
      _with_index(name)
      for node in self._graph_def.node
      for name in node.input
      if not name.startswith('^')
    }


def _with_index(name: str) -> str:
  return name if ':' in name else f'{name}:0'


class LazyGradients:
  """The step of a model, with gradients that are computed on demand."""

  def __init__(self, model: tff.learning.models.FunctionalModel):
    """Traces the step.

    Args:
      model: The model, of batches `(x, y)` or of a mapping with these keys.
    """
    trainable, non_trainable = (
      tuple(
        tf.TensorSpec(weight.shape, tf.as_dtype(weight.dtype))
        for weight in weights
      )
      for weights in model.initial_weights
    )

    def step(trainable, non_trainable, x, y):
      output = model.predict_on_batch(
        (trainable, non_trainable), x, training=True
      )
      loss = model.loss(output=output, label=y)
      # A gradient tape would miss the operations of an imported model.
      gradients = tf.gradients(loss, list(trainable))
      return (
        loss,
        output,
        tuple(
          None if gradient is None else tf.convert_to_tensor(gradient)
          for gradient in gradients
        ),
      )

    batch = model.input_spec
    x, y = (
      (batch['x'], batch['y'])
      if isinstance(batch, collections.abc.Mapping)
      else batch
    )
    # TFF uses Keras models only in graphs.
    with tf.Graph().as_default(), _inlined_functions():
      graph = (
        tf.function(step, autograph=False)
        .get_concrete_function(trainable, non_trainable, x, y)
        .graph
      )
    loss, self._output, gradients = graph.structured_outputs
    outputs = [loss, *tf.nest.flatten(self._output)]
    owners = _owners(graph.get_operations(), outputs, gradients)
    graph_def = graph.as_graph_def(add_shapes=True)
    self._arguments = [tensor.name for tensor in graph.inputs]
    self._shapes = [spec.shape for spec in trainable]
    self._dtypes = [spec.dtype for spec in trainable]
    self._gradients = [
      None
      if gradient is None
      else _Part(
        graph_def,
        {name for name, of in owners.items() if of == {index}},
        [gradient.name],
      )
      for index, gradient in enumerate(gradients)
    ]
    bounds = dict.fromkeys(
      name
      for part in self._gradients
      if part is not None
      for name in part.inputs
      if name not in self._arguments
    )
    placeholders = {name.partition(':')[0] for name in self._arguments}
    self._names = [tensor.name for tensor in outputs] + list(bounds)
    self._step = _Part(
      graph_def,
      {
        name
        for name, of in owners.items()
        if (_SHARED in of or len(of) > 1) and name not in placeholders
      },
      self._names,
    )

  def __call__(
    self, weights: Any, x: Any, y: Any
  ) -> tuple[tf.Tensor, Any, list[Callable[[], tf.Tensor]]]:
    """Makes a step in a TensorFlow graph.

    Args:
      weights: The trainable and the other weights.
      x: A batch's input.
      y: Its labels.

    Returns:
      The loss, the model's output, and for each trainable variable a function
      that computes its gradient, to be called in the branch that needs it.
    """
    values = dict(zip(self._arguments, tf.nest.flatten((weights, x, y))))
    results = self._step(values)
    values.update(zip(self._names, results))
    loss, *output = results[: 1 + len(tf.nest.flatten(self._output))]

    def gradient(index: int) -> Callable[[], tf.Tensor]:
      def compute() -> tf.Tensor:
        part, shape = self._gradients[index], self._shapes[index]
        if part is None:
          return tf.zeros(shape, self._dtypes[index])
        return tf.ensure_shape(part(values)[0], shape)

      return compute

    return (
      loss,
      tf.nest.pack_sequence_as(self._output, output),
      [gradient(index) for index in range(len(self._shapes))],
    )
