"""Child process: rounds of one algorithm, of full or of partial training."""

from __future__ import annotations

import time
from typing import Any

import tensorflow as tf

from experiments.benchmarking import machine, ours, protocol, workload
from si_federated.algorithms import partial_training

_DEVICE = 'CPU:0'


def _reset_tensor_peak() -> bool:
  """Forgets how much tensors had; returns whether TensorFlow counts it."""
  try:
    tf.config.experimental.reset_memory_stats(_DEVICE)
  except ValueError:  # It does with oneDNN, its default where it knows the CPU.
    return False
  return True


def start(request: dict[str, Any]) -> dict[str, Any]:
  """Runs the first round; see `protocol.serve`.

  The request names the model, the algorithm, how many clients there are and how
  many batches each has.
  """
  settings = workload.Settings.from_json(request)
  ours.set_runtime('local')
  built = ours.build(settings, request['model'], request['algorithm'])
  sentences = workload.full_sentences(
    settings, settings.batch_size * request['num_batches']
  )
  cohort: Any = ours.cohort(settings, [sentences] * request['num_clients'])
  if built.takes_client_numbers:
    cohort = [
      partial_training.client_datum(batches, number)
      for number, batches in enumerate(cohort)
    ]
  state = built.process.initialize()
  state = built.process.next(state, cohort).state
  # Building the computations takes more than running them.
  building = machine.peak_memory()
  machine.reset_peak_memory()
  has_statistics = _reset_tensor_peak()

  def one_round() -> dict[str, float]:
    began, worked = time.perf_counter(), time.process_time()
    output = built.process.next(state, cohort)
    seconds = time.perf_counter() - began
    return {
      'seconds': seconds,
      'processor_seconds': time.process_time() - worked,
      'bytes_up': built.bytes_per_client(output.metrics)['up'],
    }

  return {
    'about': {'parameters': built.num_parameters},
    'round': one_round,
    'peak_memory': lambda: {
      'bytes': machine.peak_memory_since_reset(),
      'building_bytes': building,
      'tensor_bytes': (
        tf.config.experimental.get_memory_info(_DEVICE)['peak']
        if has_statistics
        else None
      ),
    },
  }


if __name__ == '__main__':
  protocol.serve(start)
