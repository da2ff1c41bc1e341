"""Distributed differential privacy: clients add the noise (simulated).

Each client clips, rotates, rounds and adds its share of discrete noise, and a
secure sum reveals only the total to the server. Secure sums are simulated here:
this shows the mechanism's effect on training, not its cryptography.
"""

from __future__ import annotations

import collections
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.aggregators import distributed_dp

from si_federated.aggregators import clipping, mechanism
from si_federated.aggregators.private_settings import (
  PrivateSettings,
  private_builder,
)
from si_federated.privacy import discrete_noise

_NOISE = {
  'skellam': 'distributed_skellam',
  'discrete_gaussian': 'distributed_dgauss',
}
_ROTATION = {'hadamard': 'hd', 'fourier': 'dft'}


@private_builder(without=('noise_seed', 'noise_cohort_size'))
def build_distributed_dp(
  settings: PrivateSettings,
  *,
  bits: int = 20,
  noise: str = 'skellam',
  rotation: str = 'hadamard',
) -> mechanism.Mechanism:
  """Builds TFF's distributed mechanisms (arXiv 2102.06387 and 2110.04995).

  Like `tff.learning.ddp_secure_aggregator`, with a fixed clip norm.

  Its privacy is close to that of a Gaussian mechanism with the same noise
  multiplier, but not equal: rounding increases the norm of updates, and a sum
  of discrete noise is not quite Gaussian. Both effects depend on the size of
  the model, which `Mechanism.for_dimension` sets. Overflow in the sum makes it
  wrong, not less private. A round with fewer than `clients_per_round` clients
  fails, since they would add too little noise.

  TensorFlow Privacy draws the noise and seeds it from the clock: runs are not
  reproducible, and privacy is only simulated.

  Args:
    settings: The fields of `PrivateSettings`, as keyword arguments; the noise
      multiplier is that of all `clients_per_round` clients together.
    bits: The width of the numbers that are summed, 1 to 22.
    noise: `'skellam'` or `'discrete_gaussian'`.
    rotation: `'hadamard'`, or `'fourier'`, which pads less.

  Returns:
    The mechanism.

  Raises:
    ValueError: If an argument is out of range.
  """
  record = discrete_noise.DistributedRecord(
    noise=noise,
    noise_multiplier=float(settings.noise_multiplier),
    contract=settings.contract(),
    clip_norm=float(settings.clip_norm),
    clients_per_round=settings.clients_per_round,
    bits=bits,
    rotation=rotation,
  )
  return mechanism.Mechanism(
    factory=_GuardedMeanFactory(record),
    client_weighting='uniform',
    record=record,
    contract=record.contract,
    unnoised_measurements=('nonfinite_updates',),
    simulated_because=(
      "TensorFlow Privacy seeds the clients' noise from the clock, so it can "
      'be guessed and subtracted',
      'secure aggregation is a plain sum in one process',
    ),
  )


class _GuardedMeanFactory(distributed_dp.DistributedDpSumFactory):
  """Replaces updates that are not finite by zero, and averages.

  A subclass, since another process around TFF's would exceed the nesting depth
  of protocol buffers as a part of a learning process (as does
  `tff.learning.ddp_secure_aggregator`).
  """

  def __init__(self, record: discrete_noise.DistributedRecord):
    """Initializes the factory of the mechanism that a record describes."""
    super().__init__(
      noise_multiplier=record.noise_multiplier,
      expected_clients_per_round=record.clients_per_round,
      bits=record.bits,
      l2_clip=record.clip_norm,
      modclip_prob=record.wrap_probability,
      beta=record.beta,
      mechanism=_NOISE[record.noise],
      rotation_type=_ROTATION[record.rotation],
    )
    self._record = record

  def with_record(self, record: discrete_noise.DistributedRecord):
    """Returns the factory for another record."""
    return _GuardedMeanFactory(record)

  def create(self, value_type: Any) -> tff.templates.AggregationProcess:
    """Creates the process.

    Raises:
      ValueError: If updates do not have the size that was accounted for.
    """
    specs = tf.nest.flatten(tff.types.type_to_tf_tensor_specs(value_type))
    self._client_dim = sum(spec.shape.num_elements() for spec in specs)
    accounted = self._record.dimension
    if accounted is not None and accounted != self._client_dim:
      raise ValueError(
        f'Updates have {self._client_dim} weights, but the privacy of '
        f'distributed_dp was accounted for {accounted}; give the number of '
        'trained weights to for_dimension.'
      )
    inner = self._build_aggregation_factory().create(value_type)

    @tff.tensorflow.computation(value_type)
    def guard(update):
      is_finite = tf.math.is_finite(clipping.global_norm(update))
      return tf.nest.map_structure(
        lambda part: tf.where(is_finite, part, tf.zeros_like(part)), update
      ), 1 - tf.cast(is_finite, tf.float32)

    @tff.tensorflow.computation(value_type, tf.int32)
    def divide(total, num_shares):
      # Without noise there is no guarantee to violate.
      enough = self._num_clients if self._noise_multiplier else 0
      check = tf.debugging.assert_greater_equal(
        num_shares,
        enough,
        message='Fewer than clients_per_round clients add less noise than '
        'distributed_dp accounts for; use a schedule of full cohorts.',
      )
      with tf.control_dependencies([check]):
        return tf.nest.map_structure(
          lambda part: part / tf.cast(self._num_clients, part.dtype), total
        )

    @tff.federated_computation(
      inner.initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
    )
    def next_round(state, value):
      guarded = tff.federated_map(guard, value)
      output = inner.next(state, guarded[0])
      num_shares = tff.federated_sum(tff.federated_value(1, tff.CLIENTS))
      return tff.templates.MeasuredProcessOutput(
        output.state,
        tff.federated_map(divide, (output.result, num_shares)),
        tff.federated_zip(
          collections.OrderedDict(
            nonfinite_updates=tff.federated_sum(guarded[1])
          )
        ),
      )

    return tff.templates.AggregationProcess(inner.initialize, next_round)
