"""Compressed distribution of the model to the clients."""

from __future__ import annotations

import collections
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from si_federated.compression import compressors, keys, updates

MEASUREMENTS = ('bytes_down_per_client',)


def build_download(
  compressor: compressors.Compressor, weights_type: Any, *, seed: int
) -> tff.learning.templates.DistributionProcess:
  """Compresses the model that clients receive.

  Once a round the server encodes all weights, trainable or not, and broadcasts
  the bytes; all clients train from the same decoded model. TFF's client update
  is the difference between received and trained weights: the server applies it
  to its own weights, which are never rounded, so that rounding errors don't
  accumulate over rounds.

  The state is an ordered dictionary of `round_num`. The measurement is
  `bytes_down_per_client`, int64: the length of `updates.serialize`'s result.

  Args:
    compressor: Encodes the weights.
    weights_type: The type of `tff.learning.models.ModelWeights`, all floats.
    seed: The seed of the rounding, in [0, 2^63).

  Returns:
    The argument `model_distributor` of TFF's learning algorithms.

  Raises:
    TypeError: If not all weights are floats.
    ValueError: If the seed is not an integer in this range.
  """
  keys.check_seed(seed)
  specs = tff.types.type_to_tf_tensor_specs(tff.to_type(weights_type))
  updates.check_type(tf.nest.flatten(specs))

  @tff.tensorflow.computation
  def begin():
    return collections.OrderedDict(round_num=tf.constant(0, tf.int64))

  state_type = begin.type_signature.result

  @tff.tensorflow.computation(state_type, weights_type)
  def at_server(state, weights):
    round_num = state['round_num']
    encoded = updates.encode_update(
      weights, compressor, keys.round_seed(seed, round_num)
    )
    return (
      encoded,
      collections.OrderedDict(round_num=round_num + 1),
      collections.OrderedDict(bytes_down_per_client=updates.num_bytes(encoded)),
    )

  @tff.tensorflow.computation(at_server.type_signature.result[0])
  def at_client(encoded):
    return updates.decode_update(encoded, compressor, specs)

  @tff.federated_computation()
  def initialize():
    return tff.federated_eval(begin, tff.SERVER)

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(weights_type, tff.SERVER),
  )
  def next_round(state, weights):
    output = tff.federated_map(at_server, (state, weights))
    received = tff.federated_map(at_client, tff.federated_broadcast(output[0]))
    return tff.templates.MeasuredProcessOutput(output[1], received, output[2])

  return tff.learning.templates.DistributionProcess(initialize, next_round)
