"""Aggregation of compressed updates."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, Union

import tensorflow as tf
import tensorflow_federated as tff

from si_federated.compression import compressors, keys, updates

_Factory = Union[
  tff.aggregators.WeightedAggregationFactory,
  tff.aggregators.UnweightedAggregationFactory,
]
MEASUREMENTS = ('bytes_up_per_client', 'bytes_up')


def build_upload(
  factory: _Factory, compressor: compressors.Compressor, *, seed: int
) -> _Factory:
  """Compresses the updates that enter an aggregation.

  Each client encodes its update, with its own random numbers (`keys`), and
  passes the decoded update to the aggregation. Clipping and noise act on
  decoded updates: a private mechanism keeps its sensitivity even if rounding
  makes an update longer than the clip norm. (In a deployment, the trusted
  server would clip decoded updates.) An aggregation that sums within a finite
  group, such as `distributed_dp`, has its own width and must not be wrapped.

  A variable that is all zeros is not sent. Weights and metrics of clients are
  neither encoded nor counted.

  The state is an ordered dictionary of `round_num` and `inner`. Measurements
  are those of `factory` under their names (under `inner` if they have none) and
  the lengths of `updates.serialize`'s results: `bytes_up_per_client`, float64,
  their mean over the cohort, and `bytes_up`, int64, their sum.

  Args:
    factory: The aggregation of decoded updates.
    compressor: Encodes the updates.
    seed: The seed of the rounding, in [0, 2^63). Not the seed of a private
      mechanism's noise, which clients must not know.

  Returns:
    A factory, weighted if `factory` is.

  Raises:
    TypeError: If `factory` is not an aggregation factory.
    ValueError: If the seed is not an integer in this range.
  """
  keys.check_seed(seed)
  if isinstance(factory, tff.aggregators.UnweightedAggregationFactory):
    return _UnweightedUpload(factory, compressor, seed)
  if isinstance(factory, tff.aggregators.WeightedAggregationFactory):
    return _WeightedUpload(factory, compressor, seed)
  raise TypeError(
    'Compressed uploads need a TFF aggregation factory, but this is a '
    f'{type(factory).__name__}.'
  )


@dataclasses.dataclass(frozen=True, eq=False)
class _UnweightedUpload(tff.aggregators.UnweightedAggregationFactory):
  """See `build_upload`."""

  inner: Any
  compressor: compressors.Compressor
  seed: int

  def create(self, value_type: Any) -> tff.templates.AggregationProcess:
    """Creates the process."""
    initialize, step = _build_step(self, value_type)

    @tff.federated_computation(
      initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
    )
    def next_round(state, value):
      return step(state, value)

    return tff.templates.AggregationProcess(initialize, next_round)


@dataclasses.dataclass(frozen=True, eq=False)
class _WeightedUpload(tff.aggregators.WeightedAggregationFactory):
  """See `build_upload`."""

  inner: Any
  compressor: compressors.Compressor
  seed: int

  def create(
    self, value_type: Any, weight_type: Any
  ) -> tff.templates.AggregationProcess:
    """Creates the process."""
    initialize, step = _build_step(self, value_type, weight_type)

    @tff.federated_computation(
      initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_round(state, value, weight):
      return step(state, value, weight)

    return tff.templates.AggregationProcess(initialize, next_round)


def _build_step(upload, value_type, *weight_type):
  """Returns the initial state's computation, and a function for the next."""
  specs = tff.types.type_to_tf_tensor_specs(tff.to_type(value_type))
  updates.check_type(tf.nest.flatten(specs))
  inner = upload.inner.create(value_type, *weight_type)
  inner_type = inner.initialize.type_signature.result.member
  measured_type = inner.next.type_signature.result.measurements.member

  @tff.tensorflow.computation(inner_type)
  def begin(inner_state):
    return collections.OrderedDict(
      round_num=tf.constant(0, tf.int64), inner=inner_state
    )

  state_type = begin.type_signature.result

  @tff.tensorflow.computation(state_type)
  def get_round(state):
    return state['round_num']

  @tff.tensorflow.computation(state_type)
  def get_inner(state):
    return state['inner']

  @tff.tensorflow.computation(value_type, tf.int64)
  def at_client(update, round_num):
    parts = tf.nest.flatten(update)
    encoded = updates.encode_update(
      update,
      upload.compressor,
      keys.round_seed(upload.seed, round_num, parts),
    )
    decoded = updates.decode_update(encoded, upload.compressor, update)
    return decoded, updates.num_bytes(encoded), tf.constant(1, tf.int64)

  @tff.tensorflow.computation(
    state_type, inner_type, measured_type, tf.int64, tf.int64
  )
  def at_server(state, inner_state, measured, sent, clients):
    measurements = _by_name(measured, measured_type)
    clashes = sorted(set(MEASUREMENTS) & set(measurements))
    if clashes:
      raise ValueError(
        f'The aggregation already measures {", ".join(clashes)}; wrap it once.'
      )
    # In 64 bits, since float32 is not exact above 16 MB.
    measurements['bytes_up_per_client'] = tf.cast(sent, tf.float64) / tf.cast(
      tf.maximum(clients, 1), tf.float64
    )
    measurements['bytes_up'] = sent
    state = collections.OrderedDict(
      round_num=state['round_num'] + 1, inner=inner_state
    )
    return state, measurements

  @tff.federated_computation()
  def initialize():
    return tff.federated_map(begin, inner.initialize())

  def step(state, value, *weight):
    round_num = tff.federated_broadcast(tff.federated_map(get_round, state))
    sent = tff.federated_map(at_client, (value, round_num))
    output = inner.next(tff.federated_map(get_inner, state), sent[0], *weight)
    result = tff.federated_map(
      at_server,
      (
        state,
        output.state,
        output.measurements,
        tff.federated_sum(sent[1]),
        tff.federated_sum(sent[2]),
      ),
    )
    return tff.templates.MeasuredProcessOutput(
      result[0], output.result, result[1]
    )

  return initialize, step


def _by_name(measured, measured_type):
  """Returns measurements as an ordered dictionary."""
  if isinstance(measured_type, tff.StructType):
    elements = tff.structure.to_elements(tff.structure.from_container(measured))
    if all(name is not None for name, _ in elements):
      return collections.OrderedDict(elements)
  return collections.OrderedDict(inner=measured)
