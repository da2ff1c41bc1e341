"""Makes the resources of a graph private to one execution of it.

A table, queue or variable lives in the process, not in the graph, under the
name of its operation or of its file. Without this module, a client's work could
read what another client's work wrote to a table.
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from si_federated.runtime import errors

# A variable's handle with this name is private to one execution of its
# operation, and is freed with its last reference
# (tensorflow/core/framework/resource_handle.cc).
_ANONYMOUS = 'cd2c89b7-88b7-44c8-ad83-06c2a9158347'

# Operations and their anonymous counterparts, which make a new resource in each
# execution; it is freed with its last reference.
_ANONYMOUS_OPERATIONS = {
  'HashTableV2': 'AnonymousHashTable',
  'MutableHashTableV2': 'AnonymousMutableHashTable',
  'MutableHashTableOfTensorsV2': 'AnonymousMutableHashTableOfTensors',
  'MutableDenseHashTableV2': 'AnonymousMutableDenseHashTable',
  'IteratorV2': 'AnonymousIteratorV3',
}
# TFF's worker fails on these, too, and never answers again; or it shares them:
# it numbers the sparse tensors of all clients in one map, and its readers hang
# in the second round.
_REFUSED = (
  'AddManySparseToTensorsMap',
  'AddSparseToTensorsMap',
  'ConditionalAccumulator',
  'FixedLengthRecordReader',
  'FixedLengthRecordReaderV2',
  'IdentityReader',
  'IdentityReaderV2',
  'Iterator',
  'LMDBReader',
  'MultiDeviceIterator',
  'OneShotIterator',
  'ResourceConditionalAccumulator',
  'SparseConditionalAccumulator',
  'TFRecordReader',
  'TFRecordReaderV2',
  'TakeManySparseFromTensorsMap',
  'TextLineReader',
  'TextLineReaderV2',
  'WholeFileReader',
  'WholeFileReaderV2',
)
_NAMES = ('container', 'shared_name', 'use_node_name_sharing')


def _is_named(node: tf.compat.v1.NodeDef) -> bool:
  """Returns whether an operation's resource lives in the process by a name."""
  definition = op_def_registry.get(node.op)
  return definition is not None and any(
    attribute.name in _NAMES for attribute in definition.attr
  )


def node_name(edge: str) -> str:
  """Returns the node at the start of an edge of a graph, as '^a' or 'a:1'.

  Args:
    edge: An entry of a node's `input`.
  """
  return edge.lstrip('^').split(':')[0]


def make_private(graph_def: tf.compat.v1.GraphDef) -> set[str]:
  """Gives each execution of a graph resources of its own.

  Args:
    graph_def: The graph; it is changed.

  Returns:
    The names of the nodes that create resources.

  Raises:
    NotImplementedError: If a resource can't be made private: queues, barriers,
      stages and old variables have no private form, and a resource
      that a function of the graph creates outlives its call.
    errors.UnsupportedError: If TFF's own runtime can't run the graph either.
  """
  for function in graph_def.library.function:
    for node in function.node_def:
      if _is_named(node):
        _refuse(node, f' of the function {function.signature.name!r}')
  first: dict[tuple[str, str, str], str] = {}
  same: dict[str, str] = {}
  created = set()
  for node in graph_def.node:
    if not _is_named(node):
      continue
    names = [
      node.attr[name].s.decode() for name in ('container', 'shared_name')
    ]
    if node.op == 'VarHandleOp':
      node.attr['shared_name'].s = _ANONYMOUS.encode()
    elif node.op in _ANONYMOUS_OPERATIONS:
      node.op = _ANONYMOUS_OPERATIONS[node.op]
      for name in _NAMES:
        node.attr.pop(name, None)
    else:
      _refuse(node, '')
    created.add(node.name)
    if names[1]:
      # Operations of one name share one resource.
      same[node.name] = first.setdefault((node.op, *names), node.name)
  for node in graph_def.node:
    for index, edge in enumerate(node.input):
      if not edge.startswith('^'):
        name = node_name(edge)
        node.input[index] = same.get(name, name) + edge[len(name) :]
  return created


def _refuse(node: tf.compat.v1.NodeDef, where: str) -> None:
  problem = (
    f'the resource of {node.op} {node.name!r}{where} would be shared by all '
    'clients.'
  )
  if node.op in _REFUSED:
    raise errors.UnsupportedError(
      f'A computation is refused: {problem} Keep its content in tensors, in a '
      'tf.Variable or in a table of tf.lookup.'
    )
  raise NotImplementedError(problem)
