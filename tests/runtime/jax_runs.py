"""Rounds of sums, short experiments on a runtime, and their comparison."""

from __future__ import annotations

import numpy as np
import tensorflow_federated as tff

from si_federated import experiment
from tests import tiny


def round_of_sums(client_fn, sequence_type, server_type=np.float32):
  """Returns a round that sums `client_fn(server value, data)` over clients."""
  work = tff.tensorflow.computation(client_fn, server_type, sequence_type)

  @tff.federated_computation(
    tff.FederatedType(server_type, tff.SERVER),
    tff.FederatedType(sequence_type, tff.CLIENTS),
  )
  def next_round(state, data):
    at_clients = tff.federated_broadcast(state)
    return state, tff.federated_sum(tff.federated_map(work, (at_clients, data)))

  return next_round


def run(name, rounds=3, **changes):
  """Returns weights and metrics after some rounds, and an evaluation."""
  options = {
    'model': 'cifg:units=8,embedding_size=4',
    'clients_per_round': 5,
    # Programs are unrolled over steps, which prolongs their compilation.
    'sequence_length': 3,
    'total_rounds': 3,
    # Adam would turn differences in the last digit into large steps.
    'server_optimizer': 'sgd',
    'server_learning_rate': 1.0,
    'client_learning_rate': 0.1,
    **changes,
  }
  built = experiment.build(tiny.tiny_config(runtime=name, **options))
  state = built.process.initialize()
  metrics = []
  for round_num in range(1, rounds + 1):
    output = built.process.next(state, built.sample_cohort(round_num))
    state = output.state
    metrics.append(output.metrics['client_work']['train'])
  weights = built.process.get_model_weights(state)
  return (
    [*weights.trainable, *weights.non_trainable],
    metrics,
    built.evaluate(weights),
  )


def assert_close(got, expected):
  """Compares two results of `run` up to rounding."""
  for some, others in zip(got[:1], expected[:1]):
    scale = max(np.abs(array).max() for array in others)
    for one, other in zip(some, others):
      np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * scale)
  for one, other in zip(got[1], expected[1]):
    assert set(one) == set(other)
    for key, value in other.items():
      np.testing.assert_allclose(one[key], value, rtol=1e-5)
  assert set(got[2]) == set(expected[2])
  for key, value in expected[2].items():
    np.testing.assert_allclose(got[2][key], value, rtol=1e-5)
