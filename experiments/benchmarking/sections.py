"""The sections of the benchmark beside the steps: limit, memory, start-up."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from experiments.benchmarking import (
  attention,
  flops,
  noise,
  partial,
  protocol,
  steps,
  table,
  workload,
)
from experiments.benchmarking.plan import Plan

_OUR_CONTESTANTS = ('local', 'ray', 'tff')


def _probe(
  plan: Plan, contestant: str, settings: workload.Settings, **fields: Any
) -> protocol.Child:
  return protocol.Child(
    contestant,
    'experiments.benchmarking.probe',
    {**settings.as_json(), 'contestant': contestant, **fields},
    log=plan.log_file('probe'),
    environment=plan.environment,
  )


def _label(product: str, model: str) -> str:
  # Only these differ from model to model.
  differs = product in ('inputs', 'recurrence')
  return f'{product} {flops.GATES[model]} gates' if differs else product


def measure_limit(plan: Plan) -> list[str]:
  """Measures matrix products and sets our steps against them."""
  settings = plan.settings
  shapes: dict[str, tuple[int, ...]] = {'square': (plan.square,) * 3}
  for model in plan.models:
    for name, product in flops.products(settings, model).items():
      shapes[_label(name, model)] = product[1:]
  rates: dict[str, dict[str, float]] = {}
  cores = len(os.sched_getaffinity(0))
  ways = {
    'one product on all cores': (1, cores),
    'a product a core': (cores, 1),
  }
  for way, (streams, threads) in ways.items():
    child = protocol.Child(
      'rates',
      'experiments.benchmarking.rates',
      {'streams': streams, 'threads': threads},
      log=plan.log_file('rates'),
      environment=plan.environment,
    )
    with child:
      for name, shape in shapes.items():
        answer = child.ask('rate', shape=shape, seconds=plan.rate_seconds)
        rates.setdefault(name, {})[way] = answer['flops_per_second']
        plan.record('matrix_product', name=name, shape=shape, way=way, **answer)
  lines = table.table(
    ['matrix product', 'shape', *(f'{way}, GFLOP/s' for way in ways)],
    [
      [
        name,
        ' x '.join(map(str, shapes[name])),
        *(f'{rates[name][way] / 1e9:.0f}' for way in ways),
      ]
      for name in shapes
    ],
  )
  peak = max(rates['square'].values())
  rows = []
  for model in plan.models:
    work = flops.step_flops(settings, model)
    limit = work / peak
    # The products at their own shapes' rates, gradients like forward ones.
    own = sum(
      3 * 2.0 * count * m * k * n / max(rates[label].values())
      for label, (count, m, k, n) in (
        (_label(name, model), product)
        for name, product in flops.products(settings, model).items()
      )
    )
    plan.record(
      'limit',
      model=model,
      step_flops=work,
      limit_seconds=limit,
      limit_seconds_own_shapes=own,
    )
    for name in ('local', 'ray'):
      measured = steps.seconds_a_step(plan, name, model, 'full')
      fraction = '' if measured is None else f'{limit / measured:.0%}'
      if measured is not None:
        plan.record(
          'fraction', model=model, contestant=name, fraction=limit / measured
        )
      elif name == 'ray':
        continue
      rows.append(
        [
          model,
          name,
          f'{work / 1e9:.2f}',
          f'{limit * 1e3:.1f}',
          f'{own * 1e3:.1f}',
          '' if measured is None else f'{measured * 1e3:.1f}',
          fraction,
        ]
      )
  return [
    *lines,
    '',
    *table.table(
      [
        'model',
        'contestant',
        'GFLOP a step',
        f'ms at the rate of {plan.square} cubed',
        "ms at its own shapes' rates",
        'ms measured',
        'of the limit',
      ],
      rows,
    ),
  ]


def measure_memory(plan: Plan) -> list[str]:
  """Measures a fresh process's peak memory against the size of the cohort."""
  settings = dataclasses.replace(
    plan.settings, num_words=1000, embedding_size=32, units=64
  )
  rows = []
  for contestant in plan.present(['local']):
    first = None
    for size in plan.cohort_sizes:
      child = _probe(plan, contestant, settings, model='cifg', num_clients=size)
      _, answer = protocol.run_once(child, [{'command': 'peak_memory'}])
      first = first or answer['bytes']
      plan.record('peak_memory', contestant=contestant, clients=size, **answer)
      rows.append(
        [
          contestant,
          str(size),
          f'{answer["bytes"] / 2**20:.0f}',
          f'{answer["bytes"] / first:.2f}',
        ]
      )
  return table.table(
    [
      'runtime',
      'clients of a batch',
      'peak MiB',
      f'relative to {plan.cohort_sizes[0]}',
    ],
    rows,
  )


def measure_startup(plan: Plan) -> list[str]:
  """Measures start-up and the time for a client without data."""
  rows = []
  for contestant in plan.present(_OUR_CONTESTANTS):
    starts, empties = [], []
    for _ in range(plan.starts):
      began = time.perf_counter()
      child = _probe(
        plan, contestant, plan.settings, model='cifg', num_clients=1
      )
      with child:
        child.about()
        starts.append(time.perf_counter() - began)
        child.ask('empty_client')
        for _ in range(5):
          empties.append(child.ask('empty_client')['seconds'])
    plan.record('start_up', contestant=contestant, seconds=starts)
    plan.record('empty_client', contestant=contestant, seconds=empties)
    rows.append(
      [
        contestant,
        f'{statistics.median(starts):.1f}',
        f'{statistics.median(empties) * 1e3:.0f}',
      ]
    )
  return table.table(
    [
      'runtime',
      's from start to the first round',
      'ms for an empty client',
    ],
    rows,
  )


SECTIONS: dict[str, Callable[[Plan], Sequence[str]]] = {
  'steps': steps.measure_steps,
  'limit': measure_limit,
  'memory': measure_memory,
  'startup': measure_startup,
  'noise': noise.measure_noise,
  'attention': attention.measure_attention,
  'partial': partial.measure_partial,
}
