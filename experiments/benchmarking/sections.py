"""The sections on the machine's limit, memory and start-up; all sections."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence

from experiments.benchmarking import (
  accelerator,
  attention,
  flops,
  noise,
  partial,
  steps,
  table,
)
from experiments.benchmarking.plan import Plan

_OUR_CONTESTANTS = ('local', 'ray', 'tff')


def _label(product: str, model: str) -> str:
  # Only these differ from model to model.
  differs = product in ('inputs', 'recurrence')
  return f'{product} {flops.GATES[model]} gates' if differs else product


def measure_limit(plan: Plan) -> list[str]:
  """Measures matrix products, and compares our steps with them."""
  products = {
    model: flops.products(plan.settings, model) for model in plan.models
  }
  shapes: dict[str, tuple[int, ...]] = {'square': (plan.square,) * 3}
  for model, named in products.items():
    for name, product in named.items():
      shapes[_label(name, model)] = product[1:]
  rates: dict[str, dict[str, float]] = {name: {} for name in shapes}
  cores = len(os.sched_getaffinity(0))
  ways = {
    'one product on all cores': (1, cores),
    'a product a core': (cores, 1),
  }
  for way, (streams, threads) in ways.items():
    fields = {'streams': streams, 'threads': threads}
    with plan.child('rates', 'benchmarking.rates', fields) as child:
      for name, shape in shapes.items():
        answer = child.ask('rate', shape=shape, seconds=plan.rate_seconds)
        rates[name][way] = answer['flops_per_second']
        plan.record('matrix_product', name=name, shape=shape, way=way, **answer)
  lines = table.table(
    [
      {
        'matrix product': name,
        'shape': ' x '.join(map(str, shapes[name])),
        **{f'{way}, GFLOP/s': f'{rate / 1e9:.0f}' for way, rate in of.items()},
      }
      for name, of in rates.items()
    ]
  )
  peak = max(rates['square'].values())
  rows = []
  for model in plan.models:
    work = flops.step_flops(plan.settings, model)
    limit = work / peak
    # Each product at the rate of its shape, and its gradients at the same rate.
    own = sum(
      3 * 2.0 * count * m * k * n / max(rates[_label(name, model)].values())
      for name, (count, m, k, n) in products[model].items()
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
      if measured is None and name == 'ray':
        continue
      row = {
        'model': model,
        'contestant': name,
        'GFLOP a step': f'{work / 1e9:.2f}',
        f'ms at the rate of {plan.square} cubed': f'{limit * 1e3:.1f}',
        "ms at its own shapes' rates": f'{own * 1e3:.1f}',
        'ms measured': '',
        'of the limit': '',
      }
      if measured is not None:
        fraction = limit / measured
        plan.record('fraction', model=model, contestant=name, fraction=fraction)
        row['ms measured'] = f'{measured * 1e3:.1f}'
        row['of the limit'] = f'{fraction:.0%}'
      rows.append(row)
  return [*lines, '', *table.table(rows)]


def measure_memory(plan: Plan) -> list[str]:
  """Measures a fresh process's peak memory by size of the cohort."""
  rows = []
  for contestant in plan.present(['local']):
    first = None
    for size in plan.cohort_sizes:
      fields = {
        'contestant': contestant,
        'model': 'cifg',
        'num_clients': size,
        'num_words': 1000,
        'embedding_size': 32,
        'units': 64,
      }
      with plan.child(contestant, 'benchmarking.probe', fields) as child:
        peak = child.ask('peak_memory')['bytes']
      first = first or peak
      plan.record(
        'peak_memory', contestant=contestant, clients=size, bytes=peak
      )
      rows.append(
        {
          'runtime': contestant,
          'clients of a batch': str(size),
          'peak MiB': f'{peak / 2**20:.0f}',
          f'relative to {plan.cohort_sizes[0]}': f'{peak / first:.2f}',
        }
      )
  return table.table(rows)


def measure_startup(plan: Plan) -> list[str]:
  """Measures start-up and the time for a client without data."""
  rows = []
  for contestant in plan.present(_OUR_CONTESTANTS):
    starts, empties = [], []
    fields = {'contestant': contestant, 'model': 'cifg', 'num_clients': 1}
    for _ in range(plan.starts):
      began = time.perf_counter()
      with plan.child(contestant, 'benchmarking.probe', fields) as child:
        child.about()
        starts.append(time.perf_counter() - began)
        child.ask('empty_client')
        empties += [child.ask('empty_client')['seconds'] for _ in range(5)]
    plan.record('start_up', contestant=contestant, seconds=starts)
    plan.record('empty_client', contestant=contestant, seconds=empties)
    rows.append(
      {
        'runtime': contestant,
        's from start to the first round': f'{statistics.median(starts):.1f}',
        'ms for an empty client': f'{statistics.median(empties) * 1e3:.0f}',
      }
    )
  return table.table(rows)


SECTIONS: dict[str, Callable[[Plan], Sequence[str]]] = {
  'steps': steps.measure_steps,
  'limit': measure_limit,
  'memory': measure_memory,
  'startup': measure_startup,
  'noise': noise.measure_noise,
  'attention': attention.measure_attention,
  'partial': partial.measure_partial,
  'accelerator': accelerator.measure_accelerator,
}
