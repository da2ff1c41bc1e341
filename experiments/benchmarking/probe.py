"""Child process: a fresh run of a contestant, for its rounds and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from experiments.benchmarking import machine, ours, protocol, workload
from si_federated.algorithms import partial_training

_DEVICE = 'CPU:0'


def _reset_tensor_peak() -> bool:
  """Resets the peak memory of tensors; returns whether TensorFlow counts it."""
  try:
    tf.config.experimental.reset_memory_stats(_DEVICE)
  except ValueError:  # TensorFlow with oneDNN, its default on many processors.
    return False
  return True


def start(request: dict[str, Any]) -> dict[str, Any]:
  """Runs the first round; see `protocol.serve`.

  The request names the contestant, the model and the number of clients and,
  optionally, the number of batches of each and, for our own contestants, the
  algorithm.
  """
  settings = workload.Settings.from_json(request)
  sentences = workload.full_sentences(
    settings, settings.batch_size * request.get('num_batches', 1)
  )
  clients = [sentences] * request['num_clients']
  ours.set_runtime(request['contestant'])
  make_cohort: Callable[..., Any]
  if request['contestant'] == 'tff':
    make_cohort, built = ours.tff_cohort, None
    process = ours.build_tff_baseline(settings)
  else:
    make_cohort = ours.cohort
    built = ours.build(
      settings, request['model'], request.get('algorithm', 'fed_avg')
    )
    process = built.process
  cohort = make_cohort(settings, clients)
  if built is not None and built.takes_client_numbers:
    cohort = [
      partial_training.client_datum(batches, number)
      for number, batches in enumerate(cohort)
    ]
  state = process.next(process.initialize(), cohort).state
  # Building the computations takes more memory than running them.
  building = machine.peak_memory()
  machine.reset_peak_memory()
  has_statistics = _reset_tensor_peak()

  def one_round() -> dict[str, float]:
    began, worked = time.perf_counter(), time.process_time()
    output = process.next(state, cohort)
    answer = {
      'seconds': time.perf_counter() - began,
      'processor_seconds': time.process_time() - worked,
    }
    if built is not None:
      answer['bytes_up'] = built.bytes_per_client(output.metrics)['up']
    return answer

  def empty_client() -> dict[str, float]:
    empty = np.empty([0, sentences.shape[1]], np.int32)
    cohort = make_cohort(settings, [empty])
    began = time.perf_counter()
    process.next(state, cohort)
    return {'seconds': time.perf_counter() - began}

  def peak_memory() -> dict[str, int | None]:
    rounds = machine.peak_memory_since_reset()
    tensors = None
    if has_statistics:
      tensors = tf.config.experimental.get_memory_info(_DEVICE)['peak']
    return {
      'bytes': max(building, rounds),
      'building_bytes': building,
      'rounds_bytes': rounds,
      'tensor_bytes': tensors,
    }

  return {
    'about': {'clients': len(clients)},
    'round': one_round,
    'peak_memory': peak_memory,
    'empty_client': empty_client,
  }


if __name__ == '__main__':
  protocol.serve(start)
