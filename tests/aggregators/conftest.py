"""How the tests here run an aggregation process."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow_federated as tff


def _run(factory, shapes):
  """Returns the initial state, and a step in the form that our runtime takes.

  Args:
    factory: An unweighted aggregation factory.
    shapes: Of the variables of an update, all float32.
  """
  value_type = tff.to_type([tff.TensorType(np.float32, s) for s in shapes])
  process = factory.create(value_type)

  @tff.federated_computation(*process.next.type_signature.parameter)
  def step(state, value):
    output = process.next(state, value)
    return output.state, tff.federated_zip((output.result, output.measurements))

  def take(state, clients):
    state, (result, measurements) = step(state, clients)
    return state, result, measurements

  return process.initialize, take


@pytest.fixture
def run():
  """Gives `run(factory, shapes)`: the initial state's function, and a step."""
  return _run
