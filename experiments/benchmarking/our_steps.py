"""Child process: rounds on our runtimes, or of TFF's own baseline."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from experiments.benchmarking import ours, protocol, workload


def start(request: dict[str, Any]) -> dict[str, Any]:
  """Sets the runtime and returns the commands; see `protocol.serve`."""
  settings = workload.Settings.from_json(request)
  contestant = request['contestant']
  is_tff = contestant == 'tff'
  ours.set_runtime(contestant)
  make_cohort = ours.tff_cohort if is_tff else ours.cohort

  @functools.cache
  def prepared(model: str, comparable: bool) -> tuple[Callable, Callable, Any]:
    if is_tff:
      process = ours.build_tff_baseline(settings, comparable=comparable)
    else:
      process = ours.build(settings, model).process
    weights = workload.load_weights(workload.weights_file(settings, model))
    state = process.set_model_weights(
      process.initialize(), tff.learning.models.ModelWeights(weights, [])
    )
    return process.next, process.get_model_weights, state

  @functools.cache
  def clients(kind: str) -> Any:
    return workload.load_cohort(settings, kind)

  def measure(model: str, kind: str) -> dict[str, float]:
    next_fn, _, state = prepared(model, comparable=False)
    cohort = clients(kind)
    began = time.perf_counter()
    next_fn(state, make_cohort(settings, cohort))
    return {'seconds': time.perf_counter() - began}

  def update(model: str, kind: str, path: str) -> dict[str, float]:
    comparable = is_tff and kind == 'uneven'
    next_fn, get_weights, state = prepared(model, comparable=comparable)
    result = next_fn(state, make_cohort(settings, clients(kind))).state
    workload.save_weights(path, get_weights(result).trainable)
    # Warms up what will be measured.
    return measure(model, kind) if comparable else {}

  return {
    'about': {
      'tensorflow': tf.__version__,
      'tensorflow-federated': tff.__version__,
      'how': {
        'local': 'in process, one thread a client',
        'ray': 'one actor a core',
        'tff': "from_keras_model, TFF's own worker",
      }[contestant],
    },
    'measure': measure,
    'update': update,
  }


if __name__ == '__main__':
  protocol.serve(start)
