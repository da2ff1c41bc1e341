"""Child process: the rate of matrix products on this machine."""

from __future__ import annotations

import concurrent.futures
import os
import statistics
import time
from typing import Any

import tensorflow as tf

from experiments.benchmarking import protocol


def start(request: dict[str, Any]) -> dict[str, Any]:
  """Sets the number of threads; see `protocol.serve`.

  The request's `streams` products run at once, each on `threads` threads.
  """
  streams = request['streams']
  tf.config.threading.set_intra_op_parallelism_threads(request['threads'])
  executor = concurrent.futures.ThreadPoolExecutor(streams)

  def rate(shape: list[int], seconds: float) -> dict[str, float]:
    m, k, n = shape
    product = tf.function(
      lambda a, b: tf.linalg.matmul(a, b), reduce_retracing=True
    ).get_concrete_function(
      tf.TensorSpec([m, k], tf.float32), tf.TensorSpec([k, n], tf.float32)
    )
    pairs = [
      (tf.random.normal([m, k]), tf.random.normal([k, n]))
      for _ in range(streams)
    ]

    def repeat(index: int, count: int) -> None:
      for _ in range(count):
        product(*pairs[index])

    def timed(count: int) -> float:
      began = time.perf_counter()
      for done in [executor.submit(repeat, i, count) for i in range(streams)]:
        done.result()
      return time.perf_counter() - began

    timed(2)
    count = max(2, int(seconds / 5 / max(timed(3) / 3, 1e-6)))
    best = statistics.median(timed(count) for _ in range(5))
    return {'flops_per_second': 2.0 * m * k * n * count * streams / best}

  return {
    'about': {'streams': streams, 'cores': len(os.sched_getaffinity(0))},
    'rate': rate,
  }


if __name__ == '__main__':
  protocol.serve(start)
