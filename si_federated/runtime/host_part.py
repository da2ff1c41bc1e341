"""The part of a client's work that TensorFlow computes before JAX trains.

TensorFlow and JAX draw different numbers from the same seed. So TensorFlow
computes everything that a client draws from seeds and its own number, such as
the choice of variables to train, and passes the result to JAX.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, rewriter_config_pb2
from tensorflow.python.grappler import tf_optimizer

from si_federated.runtime import tensorflow_function

# Operations with the seed as an input draw the same numbers on every machine.
SEEDED_OPERATIONS = frozenset(
  {
    'Fingerprint',
    'StatelessMultinomial',
    'StatelessRandomNormalV2',
    'StatelessRandomUniformFullIntV2',
    'StatelessRandomUniformIntV2',
    'StatelessRandomUniformV2',
  }
)


class SplitGraph:
  """A graph in two parts: the first draws, without weights and examples.

  Attributes:
    drawn: The specs of the tensors that the second part takes from the first.
  """

  def __init__(
    self, graph: tensorflow_function.Graph, *, early: Sequence[bool]
  ):
    """Splits a graph.

    Args:
      graph: The graph.
      early: Whether the first part may use each tensor of the parameter.
    """
    self._specs = graph.specs()
    self._graph_def, self._inputs, self._outputs = _inlined(graph)
    # Nodes that depend on draws, and on no tensor of the second part alone.
    self._seeded: set[str] = set()
    self._drawn = self._boundary(early)
    self.drawn = [
      tf.TensorSpec(shape, dtype) for shape, dtype in self._types(self._drawn)
    ]

  def _boundary(self, early: Sequence[bool]) -> list[str]:
    """Returns the tensors of the first part that the second part uses."""
    late = {name for name, is_early in zip(self._inputs, early) if not is_early}
    seeded = self._seeded
    used: dict[str, None] = {}
    for node in _in_order(self._graph_def):
      # Control edges only order stateful operations.
      edges = [edge for edge in node.input if not edge.startswith('^')]
      parts = [_node_of(edge) for edge in edges]
      if node.name in late or any(part in late for part in parts):
        late.add(node.name)
        used.update(
          (_with_index(edge), None)
          for edge, part in zip(edges, parts)
          if part in seeded
        )
      elif node.op in SEEDED_OPERATIONS or any(p in seeded for p in parts):
        seeded.add(node.name)
    used.update(
      (_with_index(name), None)
      for name in self._outputs
      if _node_of(name) in seeded
    )
    return list(used)

  def _second_part(self) -> Any:
    """Returns the nodes that the result needs, given the draws."""
    nodes = {node.name: node for node in self._graph_def.node}
    drawn, seeded = set(self._drawn), self._seeded
    needed: set[str] = set()
    waiting = [
      _node_of(name) for name in self._outputs if _with_index(name) not in drawn
    ]
    while waiting:
      name = waiting.pop()
      if name not in needed:
        needed.add(name)
        waiting += [
          _node_of(edge)
          for edge in nodes[name].input
          if _with_index(edge) not in drawn and _node_of(edge) not in seeded
        ]
    part = tf.compat.v1.GraphDef(
      versions=self._graph_def.versions, library=self._graph_def.library
    )
    for name in sorted(needed):
      node = part.node.add()
      node.CopyFrom(nodes[name])
      node.input[:] = [
        edge
        for edge in nodes[name].input
        if not edge.startswith('^') or _node_of(edge) in needed
      ]
    return part

  def _types(self, names: Sequence[str]) -> list[tuple[Any, Any]]:
    with tf.Graph().as_default():
      tensors = tf.graph_util.import_graph_def(
        self._graph_def, return_elements=list(names), name=''
      )
      return [(tensor.shape, tensor.dtype) for tensor in tensors]

  def draw_function(self) -> Any:
    """Returns the first part, as a function of the parameter's tensors."""
    part = tf.compat.v1.graph_util.extract_sub_graph(
      self._graph_def, sorted({_node_of(name) for name in self._drawn})
    )
    present = {node.name for node in part.node}

    def draw(*arguments):
      return tf.graph_util.import_graph_def(
        part,
        input_map={
          f'{name}:0': value
          for name, value in zip(self._inputs, arguments)
          if name in present
        },
        return_elements=self._drawn,
        name='draw',
      )

    return tf.compat.v1.wrap_function(draw, self._specs)

  def build(
    self, arguments: Sequence[tf.Tensor], drawn: Sequence[tf.Tensor]
  ) -> list[tf.Tensor]:
    """Imports the second part into the current graph.

    Args:
      arguments: The tensors of the parameter.
      drawn: The result of the first part.

    Returns:
      The tensors of the result.
    """
    given = {f'{name}:0': value for name, value in zip(self._inputs, arguments)}
    given.update(zip(self._drawn, drawn))
    part = self._second_part()
    used = {_with_index(edge) for node in part.node for edge in node.input}
    computed = [n for n in self._outputs if _with_index(n) not in given]
    results = dict(
      zip(
        computed,
        tf.graph_util.import_graph_def(
          part,
          input_map={k: v for k, v in given.items() if k in used},
          return_elements=computed,
          name='train',
        ),
      )
    )
    return [
      tf.identity(
        results[name] if name in results else given[_with_index(name)]
      )
      for name in self._outputs
    ]


def _inlined(graph: tensorflow_function.Graph) -> tuple[Any, list, list]:
  """Returns a graph's nodes, with functions called at the top level inlined."""
  outer = tf.Graph()
  with outer.as_default():
    inputs = [
      tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in graph.specs()
    ]
    outputs = graph.build(inputs)
  graph_def = outer.as_graph_def()
  functions = (f.node_def for f in graph_def.library.function)
  for nodes in (graph_def.node, *functions):
    for node in nodes:
      # Otherwise, inlining also lowers branches and loops to older operations.
      if '_lower_using_switch_merge' in node.attr:
        node.attr['_lower_using_switch_merge'].b = False
  config = tf.compat.v1.ConfigProto()
  rewrites = config.graph_options.rewrite_options
  rewrites.min_graph_nodes = -1
  rewrites.meta_optimizer_iterations = 1
  rewrites.optimizers.append('function')
  # Inlines stateful functions as well.
  rewrites.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
  meta = tf.compat.v1.train.export_meta_graph(graph_def=graph_def, graph=outer)
  kept = meta_graph_pb2.CollectionDef()
  kept.node_list.value.extend(tensor.name for tensor in [*inputs, *outputs])
  meta.collection_def['train_op'].CopyFrom(kept)
  optimized = tf_optimizer.OptimizeGraph(config, meta)
  # The optimizer gives new functions the same names in all graphs.
  tensorflow_function.rename_functions(optimized)
  _name_arguments(optimized)
  return (
    optimized,
    [tensor.op.name for tensor in inputs],
    [tensor.name for tensor in outputs],
  )


def _name_arguments(graph_def: Any) -> None:
  """Makes names of functions' arguments and results valid in Python."""
  for function in graph_def.library.function:
    names = {}
    for number, argument in enumerate(function.signature.input_arg):
      names[argument.name] = f'argument_{number}'
      argument.name = names[argument.name]

    def renamed(edge: str, names: dict[str, str] = names) -> str:
      mark = '^' if edge.startswith('^') else ''
      name, colon, index = edge.removeprefix('^').partition(':')
      return f'{mark}{names.get(name, name)}{colon}{index}'

    for node in function.node_def:
      node.input[:] = list(map(renamed, node.input))
    returned = {name: renamed(edge) for name, edge in function.ret.items()}
    function.ret.clear()
    for number, result in enumerate(function.signature.output_arg):
      function.ret[f'result_{number}'] = returned[result.name]
      result.name = f'result_{number}'
    # tf2jax mistakes names of control results for names of nodes.
    controls = sorted(set(function.control_ret.values()))
    function.control_ret.clear()
    function.signature.control_output[:] = controls
    for name in controls:
      function.control_ret[name] = name


def _node_of(edge: str) -> str:
  return edge.lstrip('^').partition(':')[0]


def _with_index(name: str) -> str:
  return name if ':' in name or name.startswith('^') else f'{name}:0'


def _in_order(graph_def: Any) -> list[Any]:
  """Returns nodes in an order in which inputs precede their consumers."""
  nodes = {node.name: node for node in graph_def.node}
  ordered: dict[str, Any] = {}
  waiting = list(nodes)
  while waiting:
    name = waiting[-1]
    missing = [
      part for part in map(_node_of, nodes[name].input) if part not in ordered
    ]
    if name in ordered or not missing:
      waiting.pop()
      ordered.setdefault(name, nodes[name])
    else:
      waiting.extend(missing)
  return list(ordered.values())
