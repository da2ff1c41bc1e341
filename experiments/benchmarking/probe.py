"""Child process: one fresh run of ours, for start-up, memory, empty clients."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from experiments.benchmarking import machine, ours, protocol, workload


def start(request: dict[str, Any]) -> dict[str, Any]:
  """Runs the first round; see `protocol.serve`.

  The request names the contestant, the model and how many clients of one batch
  each there are.
  """
  settings = workload.Settings.from_json(request)
  build, make_cohort = ours.contestant(settings, request['contestant'])
  sentences = workload.full_sentences(settings, settings.batch_size)
  process = build(request['model'])
  state = process.initialize()
  cohort = make_cohort([sentences] * request['num_clients'])
  state = process.next(state, cohort).state

  def peak_memory() -> dict[str, int]:
    return {'bytes': machine.peak_memory()}

  def empty_client() -> dict[str, float]:
    empty = make_cohort([np.empty([0, sentences.shape[1]], np.int32)])
    began = time.perf_counter()
    process.next(state, empty)
    return {'seconds': time.perf_counter() - began}

  def round_again() -> dict[str, float]:
    began = time.perf_counter()
    process.next(state, cohort)
    return {'seconds': time.perf_counter() - began}

  return {
    'about': {'clients': request['num_clients']},
    'round': round_again,
    'peak_memory': peak_memory,
    'empty_client': empty_client,
  }


if __name__ == '__main__':
  protocol.serve(start)
