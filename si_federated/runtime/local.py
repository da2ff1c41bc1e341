"""Runs TFF computations in this process, several clients at once.

TFF's compiler lowers a round (`tff.backends.mapreduce.MapReduceForm`) to a few
plain TensorFlow graphs: prepare at the server, work at each client, accumulate
and report, update at the server. They run here as functions of this process,
without a worker process to start, feed and stop.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.context_stack import (
  context_base,
  context_stack_impl,
)
from tensorflow_federated.python.core.impl.types import (
  type_analysis,
  type_conversions,
)
from tensorflow_federated.python.core.impl.utils import tensorflow_utils

from si_federated.runtime import tensorflow_function

_Tensors = list[Any]


class ClientError(RuntimeError):
  """A client's computation failed; the message names the client."""


def _flatten(value: Any, type_spec: tff.Type) -> _Tensors:
  """Flattens a value to the tensors that a `TensorFlowFunction` takes."""
  if isinstance(type_spec, tff.TensorType):
    if isinstance(value, tf.Variable):
      value = value.read_value()
    return [tf.convert_to_tensor(value, type_spec.dtype)]
  if isinstance(type_spec, tff.SequenceType):
    if not isinstance(value, tf.data.Dataset):
      value = tensorflow_utils.make_data_set_from_elements(
        None, list(value), type_spec.element
      )
    return [tf.data.experimental.to_variant(value)]
  if isinstance(type_spec, tff.FederatedType):
    return _flatten(value, type_spec.member)
  if isinstance(type_spec, tff.StructType):
    elements = tff.structure.to_elements(tff.structure.from_container(value))
    types = tff.structure.to_elements(type_spec)
    if len(elements) != len(types):
      raise TypeError(
        f'The value has {len(elements)} elements where its type {type_spec} '
        f'has {len(types)}.'
      )
    named = all(name is not None for name, _ in elements)
    by_name = dict(elements) if named else {}
    return [
      tensor
      for index, (name, element_type) in enumerate(types)
      for tensor in _flatten(
        by_name[name] if named and name is not None else elements[index][1],
        element_type,
      )
    ]
  raise NotImplementedError(f'Values of type {type_spec} do not run locally.')


def _to_python(tensor: tf.Tensor) -> Any:
  value = tensor.numpy()
  # TFF's own contexts return scalars as numpy scalars, strings as bytes.
  return (
    value[()] if isinstance(value, np.ndarray) and not value.shape else value
  )


def _unflatten(tensors: collections.deque, type_spec: tff.Type) -> Any:
  if isinstance(type_spec, tff.TensorType):
    return _to_python(tensors.popleft())
  if isinstance(type_spec, tff.SequenceType):
    dataset = tf.data.experimental.from_variant(
      tensors.popleft(),
      structure=type_conversions.type_to_tf_structure(type_spec.element),
    )
    return list(dataset)
  if isinstance(type_spec, tff.FederatedType):
    return _unflatten(tensors, type_spec.member)
  return tff.structure.Struct(
    (name, _unflatten(tensors, element))
    for name, element in tff.structure.iter_elements(type_spec)
  )


def _num_leaves(type_spec: tff.Type) -> int:
  return sum(1 for _ in tensorflow_function.leaf_types(type_spec))


def _elements(tensors: Sequence[Any], type_spec: tff.Type) -> list[_Tensors]:
  """Splits the flat tensors of a struct into those of its elements."""
  parts, start = [], 0
  for _, element in tff.structure.iter_elements(type_spec):
    end = start + _num_leaves(element)
    parts.append(list(tensors[start:end]))
    start = end
  return parts


class _Round:
  """One compiled computation with a client part, such as `process.next`."""

  def __init__(self, computation: tff.Computation):
    form = tff.backends.mapreduce.get_map_reduce_form_for_computation(
      computation
    )

    def function(part: str) -> tensorflow_function.TensorFlowFunction:
      return tensorflow_function.TensorFlowFunction(getattr(form, part), part)

    self._parameter_type = computation.type_signature.parameter
    self._prepare = function('prepare')
    self._work = function('work')
    self._zero = function('zero')
    self._accumulate = function('accumulate')
    self._report = function('report')
    self._update = function('update')
    self._secure_limits = [
      function(part)([])
      for part in (
        'secure_sum_bitwidth',
        'secure_sum_max_input',
        'secure_modular_sum_modulus',
      )
    ]

  def __call__(
    self, arg: Any, executor: concurrent.futures.Executor, window: int
  ) -> _Tensors:
    (_, state_type), (_, clients_type) = tff.structure.to_elements(
      self._parameter_type
    )
    server_state, clients = tff.structure.to_elements(
      tff.structure.from_container(arg)
    )
    state = _flatten(server_state[1], state_type)
    clients = clients[1]
    if clients_type.all_equal:
      raise NotImplementedError('Clients that share one value')
    broadcast = self._prepare(state)

    def work(index: int) -> list[_Tensors]:
      try:
        tensors = self._work(
          [*_flatten(clients[index], clients_type.member), *broadcast]
        )
      except Exception as error:
        name = getattr(clients, 'client_name', lambda i: f'number {i}')(index)
        raise ClientError(
          f'Client {name} of the cohort failed: {error}'
        ) from error
      return _elements(tensors, self._work.type_signature.result)

    accumulator = self._zero([])
    secure_sums: list[_Tensors] | None = None
    for update in _in_order(executor, work, len(clients), window):
      accumulator = self._accumulate([*accumulator, *update[0]])
      secure_sums = (
        update[1:]
        if secure_sums is None
        else [
          [tf.add(total, value) for total, value in zip(totals, values)]
          for totals, values in zip(secure_sums, update[1:])
        ]
      )
    if secure_sums is None:
      secure_sums = [
        [
          tf.zeros(leaf.shape, leaf.dtype)
          for leaf in tensorflow_function.leaf_types(element)
        ]
        for _, element in tff.structure.to_elements(
          self._work.type_signature.result
        )[1:]
      ]
    if secure_sums[-1]:
      secure_sums[-1] = [
        tf.math.floormod(total, modulus)
        for total, modulus in zip(secure_sums[-1], self._secure_limits[-1])
      ]
    return self._update(
      [
        *state,
        *self._report(accumulator),
        *(tensor for total in secure_sums for tensor in total),
      ]
    )


def _in_order(
  executor: concurrent.futures.Executor,
  work: Callable[[int], Any],
  count: int,
  window: int,
):
  """Yields `work(0)`, `work(1)`, ...; at most `window` of them at once.

  The order of the results does not depend on which thread is faster, so sums
  of them are the same bits in every run. The window bounds the updates held; it
  is larger than the number of threads, so that they have work while a client
  with much data is at its.
  """
  pending: collections.deque[concurrent.futures.Future] = collections.deque()
  try:
    for index in range(count):
      pending.append(executor.submit(work, index))
      if len(pending) >= window:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    for future in pending:
      future.cancel()
    concurrent.futures.wait(pending)


class LocalContext(context_base.SyncContext):
  """A TFF execution context that runs computations in this process.

  Rounds (computations of a server state and clients' data) and computations
  without placements run here, compiled once each. Others go to TFF's own
  runtime, with a warning that names the reason.
  """

  def __init__(self, num_threads: int | None = None):
    """Initializes the context.

    Args:
      num_threads: How many clients to run at once, one thread each; the number
        of this machine's processors by default.
    """
    self._num_threads = num_threads or len(os.sched_getaffinity(0))
    self._executor = concurrent.futures.ThreadPoolExecutor(
      self._num_threads, thread_name_prefix='client'
    )
    self._compiled: dict[int, tuple[tff.Computation, Callable]] = {}

  @property
  def num_threads(self) -> int:
    """How many clients run at once."""
    return self._num_threads

  def invoke(self, comp: tff.Computation, arg: Any) -> Any:
    """Runs a computation; called by TFF where `comp(arg)` is written."""
    # Hashing a computation serializes it: the identity is enough, as long as
    # the computation is kept alive beside its compiled form.
    if id(comp) not in self._compiled:
      self._compiled[id(comp)] = (comp, self._compile(comp))
    return self._compiled[id(comp)][1](arg)

  def _compile(self, comp: tff.Computation) -> Callable[[Any], Any]:
    signature = comp.type_signature

    def to_result(tensors: Sequence[Any]) -> Any:
      return type_conversions.type_to_py_container(
        _unflatten(collections.deque(tensors), signature.result),
        signature.result,
      )

    try:
      if not type_analysis.contains(
        signature, lambda t: isinstance(t, tff.FederatedType)
      ):
        function = tensorflow_function.TensorFlowFunction(comp, str(comp))
      elif signature.parameter is None:
        function = tensorflow_function.TensorFlowFunction(
          tff.backends.mapreduce.get_state_initialization_computation(comp),
          'initialize',
        )
      else:
        compiled = _Round(comp)
        return lambda arg: to_result(
          compiled(arg, self._executor, window=4 * self._num_threads)
        )
      return lambda arg: to_result(
        function([] if arg is None else _flatten(arg, signature.parameter))
      )
    except (
      NotImplementedError,
      TypeError,
      ValueError,
    ) as error:
      warnings.warn(
        "A computation goes to TFF's own runtime because it can't be "
        f'lowered to plain TensorFlow: {error}',
        stacklevel=4,
      )
      from si_federated.runtime import native

      context = native.get_context()
      return lambda arg: context.invoke(comp, arg)


def set_local_context(num_threads: int | None = None) -> LocalContext:
  """Makes TFF run its computations in this process.

  Call it before TensorFlow runs its first operation: each operation of a client
  then keeps to one thread, which is the fastest way to fill the processors when
  several clients run at once. Later calls work but leave that as it is.

  Args:
    num_threads: How many clients to run at once; the number of processors by
      default.

  Returns:
    The context, now TFF's default.
  """
  with contextlib.suppress(RuntimeError):
    tf.config.threading.set_intra_op_parallelism_threads(1)
  context = LocalContext(num_threads)
  context_stack_impl.context_stack.set_default_context(context)
  return context
