"""Child process: rounds of one mechanism on constant updates."""

from __future__ import annotations

import contextlib
import inspect
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments.benchmarking import machine, protocol
from si_federated import config
from si_federated.aggregators import AGGREGATORS, noise_generators
from si_federated.models import MODELS
from si_federated.runtime import set_local_context

# A mechanism that makes one row of z each round, or an unknown number.
_ONE_ROW = np.ones(1, np.int64)


def _build_mechanism(request: dict[str, Any]) -> Any:
  """Builds the mechanism; its options override the request's numbers."""
  spec = config.ComponentSpec.parse(request['mechanism'])
  builder = AGGREGATORS[spec.name]
  given = {
    'clip_norm': 1.0,
    # Small, because adaptive clipping with small cohorts needs that.
    'noise_multiplier': 0.1,
    'clients_per_round': request['num_clients'],
    'total_rounds': request['rounds'],
    'min_separation': max(1, request['rounds'] // request['participations']),
    'max_participations': request['participations'],
    'noise_seed': 1,
    'cache_dir': request['folder'],
    **dict(spec.options),
  }
  known = inspect.signature(builder).parameters
  return builder(**{key: given[key] for key in known if key in given})


def _rows_of_z(factory: Any) -> np.ndarray:
  """Returns the number of rows of z of each round, or one for all rounds."""
  strategy = getattr(factory, 'strategy', None)
  if strategy is None:
    return _ONE_ROW
  generator = noise_generators.for_strategy(
    strategy, keep_rows=factory.keep_rows
  )
  if isinstance(generator, noise_generators.Regenerated):
    return generator.rows.ends - generator.rows.begins
  if isinstance(generator, noise_generators.TreeBuffered):
    fresh = generator.rows.fresh
    return fresh.ends - fresh.begins
  return _ONE_ROW


def _rounds_to_measure(rows: np.ndarray, most: int) -> list[int]:
  """Returns a round with few rows and, if others have more, one with many.

  Args:
    rows: The rows of z of each round.
    most: More rows than this take too long.
  """
  few = int(np.argmin(rows))
  many = int(np.argmin(np.abs(rows - min(rows.mean(), most))))
  return [few] if rows[many] == rows[few] else [few, many]


def _build_rounds(
  factory: Any, shapes: Sequence[Sequence[int]], num_clients: int
) -> tuple[Any, Callable[[Any], Any]]:
  """Builds a process and its clients.

  Args:
    factory: The mechanism's factory.
    shapes: The shapes of an update's variables, all float32.
    num_clients: The number of clients in a round.

  Returns:
    The initial state, and a function from a state to the next one and the mean.
  """
  value_type = tff.to_type([tff.TensorType(np.float32, s) for s in shapes])
  weighted = isinstance(factory, tff.aggregators.WeightedAggregationFactory)
  weight_type = tff.to_type(np.float32)
  process = (
    factory.create(value_type, weight_type)
    if weighted
    else factory.create(value_type)
  )
  state_type = process.initialize.type_signature.result

  @tff.federated_computation(
    state_type, tff.FederatedType((value_type, weight_type), tff.CLIENTS)
  )
  def step(state, clients):
    arguments = [clients[0], clients[1]] if weighted else [clients[0]]
    output = process.next(state, *arguments)
    return output.state, tff.federated_zip((output.result, output.measurements))

  # The server's work does not depend on whether clients compute.
  clients = [
    (
      [
        tf.random.stateless_normal(shape, [client, i])
        for i, shape in enumerate(shapes)
      ],
      1.0,
    )
    for client in range(num_clients)
  ]

  def run(state: Any) -> Any:
    state, (result, _) = step(state, clients)
    return state, result

  return process.initialize(), run


def _state_bytes(state: Any) -> int:
  return sum(np.asarray(part).nbytes for part in tf.nest.flatten(state))


def start(request: dict[str, Any]) -> dict[str, Any]:
  """Builds the mechanism and runs a round; see `protocol.serve`.

  The request contains the model and the mechanism as in flags, the model's
  `vocab_size`, the number of `rounds`, the maximum `participations` of a
  client, the `num_clients` of a round, the `folder` of strategies, and
  `most_rows`, the maximum number of rows of z in a measured round.
  """
  # If memory runs out, the kernel should end this process.
  with contextlib.suppress(OSError):
    pathlib.Path('/proc/self/oom_score_adj').write_text('1000')
  set_local_context()
  model = config.ComponentSpec.parse(request['model']).build(
    MODELS, 'model', vocab_size=request['vocab_size']
  )
  shapes = [weight.shape.as_list() for weight in model.trainable_weights]
  del model
  factory = _build_mechanism(request).factory
  rows = _rows_of_z(factory)
  # Loads lazily loaded libraries, so that their memory does not count.
  initial, run = _build_rounds(
    factory, [[8]] * len(shapes), request['num_clients']
  )
  run(initial)
  base = machine.resident_memory()
  state, run = _build_rounds(factory, shapes, request['num_clients'])

  def measure(round_num: int) -> dict[str, float]:
    nonlocal state
    if isinstance(state, dict) and 'round_num' in state:
      state['round_num'] = np.int64(round_num)
    began = time.perf_counter()
    state, result = run(state)
    seconds = time.perf_counter() - began
    if not all(np.isfinite(part).all() for part in result):
      raise ValueError('The mean of the updates is not finite.')
    return {'seconds': seconds}

  def memory() -> dict[str, int]:
    return {
      'state_bytes': _state_bytes(state),
      'peak_bytes': machine.peak_memory() - base,
    }

  # Warms up what will be measured.
  measure(0)
  measured = _rounds_to_measure(rows, request['most_rows'])
  return {
    'about': {
      'parameters': sum(map(math.prod, shapes)),
      'mean_rows': float(rows.mean()),
      'most_rows': int(rows.max()),
      'measured_rounds': measured,
      'measured_rows': [int(rows[round_num]) for round_num in measured],
    },
    'measure': measure,
    'memory': memory,
  }


if __name__ == '__main__':
  protocol.serve(start)
