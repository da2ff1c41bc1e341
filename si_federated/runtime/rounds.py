"""A round as TensorFlow functions, shared by the local and the Ray runtime.

TFF's compiler lowers a round to a `tff.backends.mapreduce.MapReduceForm`:
prepare at the server, work at each client, accumulate, merge, report and update
at the server, plus secure sums, which are simulated by plain ones.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, Union

import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.proto.v0 import computation_pb2

from si_federated.runtime import errors, tensorflow_function, values


def client_error(
  clients: Sequence[Any], position: int, problem: object
) -> errors.ClientError:
  """Returns an error that names a client.

  Args:
    clients: The cohort; its method `client_name(position)` is used if it has
      one.
    position: The client's position in the cohort.
    problem: The exception or message.

  Returns:
    An exception to raise.
  """
  name_of = getattr(clients, 'client_name', lambda i: f'number {i}')
  return errors.ClientError(
    f'Client {name_of(position)} of the cohort failed: {_reason(problem)}'
  )


def _reason(problem: object) -> str:
  """Finds the reason among the locations in TensorFlow's message."""
  lines = [
    line
    for line in str(problem).splitlines()
    if line.strip()
    and not line.startswith(
      (
        'Graph execution error',
        'Detected at node',
        'Traceback (',
        '<stack traces',
        '  File',
        '\t [[',
      )
    )
  ]
  if not lines:
    return repr(problem)
  return re.sub(r'{{\w+ [^{}]*}} ?', '', lines[0]).strip()


@dataclasses.dataclass
class Partial:
  """Some clients' updates, combined.

  Attributes:
    accumulator: The tensors of the form's accumulator.
    secure_sums: The tensors of each of the form's kinds of secure sum.
  """

  accumulator: values.Tensors
  secure_sums: list[values.Tensors]


class ClientPart:
  """The part of a round that clients run: work and accumulation."""

  def __init__(
    self,
    work: tff.Computation,
    zero: tff.Computation,
    accumulate: tff.Computation,
  ):
    """Compiles the parts of these names of a `MapReduceForm`."""
    self._computations = (work, zero, accumulate)
    self._work, self._zero, self._accumulate = (
      tensorflow_function.TensorFlowFunction(part, name)
      for part, name in zip(self._computations, ('work', 'zero', 'accumulate'))
    )
    self._result_type = work.type_signature.result

  @property
  def computations(
    self,
  ) -> tuple[tff.Computation, tff.Computation, tff.Computation]:
    """Work, zero and accumulate."""
    return self._computations

  @property
  def calls_python(self) -> bool:
    """Whether it calls Python functions, which exist in one process only."""
    parts = (self._work, self._zero, self._accumulate)
    return any(part.calls_python for part in parts)

  @property
  def client_type(self) -> tff.Type:
    """The type of a client's data."""
    return self._work.type_signature.parameter[0]

  def serialize(self) -> list[bytes]:
    """Returns the computations as bytes, for `deserialize`."""
    return [
      tff.framework.serialize_computation(part).SerializeToString()
      for part in self._computations
    ]

  @classmethod
  def deserialize(cls, serialized: Sequence[bytes]) -> ClientPart:
    """Compiles the computations that `serialize` returned."""
    return cls(
      *(
        tff.framework.deserialize_computation(
          computation_pb2.Computation.FromString(part)
        )
        for part in serialized
      )
    )

  def work(
    self,
    client: values.Tensors,
    broadcast: values.Tensors,
    cancellation: tensorflow_function.CancellationManager | None = None,
  ) -> list[values.Tensors]:
    """Runs a client.

    Args:
      client: Its data, flat.
      broadcast: The values that the server prepared, flat.
      cancellation: Cancels the work.

    Returns:
      The update, and the values for each kind of secure sum, each flat.
    """
    result = self._work([*client, *broadcast], cancellation)
    return values.split(result, self._result_type)

  def fold(
    self, partial: Partial | None, update: list[values.Tensors]
  ) -> Partial:
    """Adds an update to the earlier ones; `None` means no updates yet."""
    accumulator = self._zero([]) if partial is None else partial.accumulator
    return Partial(
      self._accumulate([*accumulator, *update[0]]),
      update[1:] if partial is None else _add(partial.secure_sums, update[1:]),
    )

  def partial(self, tensors: Sequence[tf.Tensor]) -> Partial:
    """Returns the partial with these tensors, concatenated over its parts."""
    kinds = tff.structure.to_elements(self._result_type)[1:]
    rest = list(tensors)
    secure_sums: list[values.Tensors] = []
    for _, element in reversed(kinds):
      count = sum(1 for _ in tensorflow_function.leaf_types(element))
      secure_sums.insert(0, rest[len(rest) - count :])
      del rest[len(rest) - count :]
    return Partial(rest, secure_sums)

  def empty(self) -> Partial:
    """Returns the partial of no clients."""
    return Partial(
      self._zero([]),
      [
        [
          tf.zeros(leaf.shape, leaf.dtype)
          for leaf in tensorflow_function.leaf_types(element)
        ]
        for _, element in tff.structure.to_elements(self._result_type)[1:]
      ],
    )


def _add(
  some: list[values.Tensors], others: list[values.Tensors]
) -> list[values.Tensors]:
  return [
    [tf.add(total, value) for total, value in zip(totals, more)]
    for totals, more in zip(some, others)
  ]


# Folds the clients' updates; takes the round, the broadcast and the clients.
RunClients = Callable[
  ['Round', values.Tensors, Sequence[Any]], Union[Partial, None]
]


class Round:
  """One compiled computation with a client part, such as `process.next`."""

  def __init__(self, computation: tff.Computation, *, optimized: bool = True):
    """Compiles a computation from server state and clients' data.

    Args:
      computation: The computation.
      optimized: Whether TensorFlow optimizes the graphs. This lowers branches
        to operations that other compilers don't know.

    Raises:
      NotImplementedError, TypeError, ValueError: If it can't be lowered.
    """
    options = tf.compat.v1.ConfigProto()
    rewrites = options.graph_options.rewrite_options
    rewrites.disable_meta_optimizer = not optimized
    form = tff.backends.mapreduce.get_map_reduce_form_for_computation(
      computation, options
    )

    def function(part: str) -> tensorflow_function.TensorFlowFunction:
      return tensorflow_function.TensorFlowFunction(getattr(form, part), part)

    self._parameter_type = computation.type_signature.parameter
    if self._parameter_type[1].all_equal:
      raise NotImplementedError('its clients share one value.')
    self._prepare = function('prepare')
    self._merge = function('merge')
    self._report = function('report')
    self._update = function('update')
    self.client_part = ClientPart(form.work, form.zero, form.accumulate)
    # Other kinds of secure sum limit the values of clients, not their sums.
    self._modulus = function('secure_modular_sum_modulus')([])

  def __call__(self, arg: Any, run_clients: RunClients) -> values.Tensors:
    """Runs the round.

    Args:
      arg: The computation's argument: the state and the clients' data.
      run_clients: Runs the clients.

    Returns:
      The result, flat.

    Raises:
      errors.ClientError: If a client failed.
      TypeError: If the argument is not of the computation's type.
    """
    (_, state_type), (_, clients_type) = tff.structure.to_elements(
      self._parameter_type
    )
    (_, server_state), (_, clients) = tff.structure.to_elements(
      tff.structure.from_container(arg)
    )
    if not isinstance(clients, Sequence):
      raise TypeError(
        'The clients must be a list, or another sequence, of a value of type '
        f'{clients_type.member} each; this is a {type(clients).__name__}.'
      )
    state = values.flatten(server_state, state_type)
    partial = run_clients(self, self._prepare(state), clients)
    if partial is None:
      partial = self.client_part.empty()
    secure_sums = partial.secure_sums
    if secure_sums[-1]:
      secure_sums[-1] = [
        tf.math.floormod(total, modulus)
        for total, modulus in zip(secure_sums[-1], self._modulus)
      ]
    return self._update(
      [
        *state,
        *self._report(partial.accumulator),
        *(tensor for total in secure_sums for tensor in total),
      ]
    )

  def merge(self, partial: Partial | None, other: Partial) -> Partial:
    """Combines two groups of clients; `None` means no clients."""
    if partial is None:
      return other
    return Partial(
      self._merge([*partial.accumulator, *other.accumulator]),
      _add(partial.secure_sums, other.secure_sums),
    )
