"""Child process: rounds of the JAX runtime, measured and recorded."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from typing import Any

import numpy as np

from experiments.benchmarking import (
  floor,
  make_workload,
  ours,
  protocol,
  workload,
)
from si_federated import config, layers


def start(request: dict[str, Any]) -> dict[str, Any]:
  """Starts the runtime and its recording; see `protocol.serve`.

  The request contains the settings, `options` of the runtime, and
  `large_words`, the vocabulary size of models with options.
  """
  base = workload.Settings.from_json(request)
  options = request['options']
  context = ours.set_runtime('jax', **options)
  context.recording.add_file(
    'floor.py', pathlib.Path(floor.__file__).read_bytes()
  )

  def settings_of(model: str) -> workload.Settings:
    words = request['large_words'] if ':' in model else base.num_words
    return dataclasses.replace(base, num_words=words)

  @functools.cache
  def prepared(model: str) -> tuple[Any, Any]:
    with layers.static_shapes():
      process = ours.build(settings_of(model), model).process
    return process, process.initialize()

  def sentences(model: str, kind: str, num_clients: int) -> list[np.ndarray]:
    settings = dataclasses.replace(
      settings_of(model), clients_per_round=num_clients
    )
    return make_workload.clients(settings, kind)

  def record(
    model: str, kind: str, num_clients: int, num_checked: int
  ) -> dict[str, Any]:
    process, state = prepared(model)
    settings = settings_of(model)
    clients = sentences(model, kind, num_clients)
    context.record_next({'model': model, 'clients': kind}, num_checked)
    before = process.get_model_weights(state).trainable
    result = process.next(state, ours.cohort(settings, clients)).state
    after = process.get_model_weights(result).trainable
    spec = config.ComponentSpec.parse(model)
    if spec.name in floor.KINDS:
      recording = context.recording
      recording.extend_round(
        floor={
          'options': {
            'kind': spec.name,
            'learning_rate': settings.learning_rate,
            'num_heads': dict(spec.options).get('num_heads', floor.HEADS),
          },
          'weights': recording.add_arrays(before),
          'update': recording.add_arrays(
            [
              np.asarray(new) - np.asarray(old)
              for new, old in zip(after, before)
            ]
          ),
        }
      )
    return {'parameters': int(sum(np.size(array) for array in before))}

  def measure(model: str, kind: str, num_clients: int) -> dict[str, float]:
    process, state = prepared(model)
    settings = settings_of(model)
    clients = sentences(model, kind, num_clients)
    began = time.perf_counter()
    process.next(state, ours.cohort(settings, clients))
    return {'seconds': time.perf_counter() - began}

  return {
    'about': {'device': context.device},
    'record': record,
    'measure': measure,
  }


if __name__ == '__main__':
  protocol.serve(start)
