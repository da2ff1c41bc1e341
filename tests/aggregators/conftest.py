"""Fixtures of the aggregators' tests: a step of a process, and an oracle."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow_federated as tff

from si_federated.privacy import binary_tree


@functools.lru_cache(maxsize=64)
def _build(factory, shapes):
  process = factory.create(
    tff.to_type([tff.TensorType(np.float32, shape) for shape in shapes])
  )

  @tff.federated_computation(*process.next.type_signature.parameter)
  def step(state, value):
    output = process.next(state, value)
    return output.state, tff.federated_zip((output.result, output.measurements))

  return process.initialize, step


def _run(factory, shapes):
  """Returns the initial state, and a step in the form that our runtime takes.

  Args:
    factory: An unweighted aggregation factory.
    shapes: The shapes of an update's variables, all float32.
  """
  initialize, step = _build(factory, tuple(map(tuple, shapes)))

  def take(state, clients):
    state, (result, measurements) = step(state, clients)
    return state, result, measurements

  return initialize, take


@pytest.fixture
def run():
  """Gives `run(factory, shapes)`: the initial state's function, and a step."""
  return _run


def _tree_decoder(rounds, kind):
  """Returns B of one tree by recursion over nodes, with B C the prefix sums."""
  found = binary_tree.nodes(rounds)
  row_of = {node: row for row, node in enumerate(found)}
  estimates = np.eye(len(found))
  for row, (height, end) in enumerate(found):
    if kind == 'honaker' and height:
      # The node's own noise has variance 1, its children's together
      # 2 / (2 - 2^-(height - 1)); weights are the inverses.
      weight = 1 / (2 - 0.5**height)
      below = [
        row_of[height - 1, end - (1 << (height - 1))],
        row_of[height - 1, end],
      ]
      estimates[row] *= weight
      estimates[row] += (1 - weight) * estimates[below].sum(axis=0)
  return np.array(
    [
      sum(estimates[row_of[node]] for node in binary_tree.prefix_nodes(count))
      for count in range(1, rounds + 1)
    ]
  )


@pytest.fixture
def tree_decoder():
  """Gives `tree_decoder(rounds, kind)`, an oracle for streamed trees."""
  return _tree_decoder
