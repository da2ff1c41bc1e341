"""The section on partial training: its rounds, memory and upload."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from typing import Dict, List, Optional

from experiments.benchmarking import protocol, table
from experiments.benchmarking.plan import Plan, progress

# The first is the reference.
ALGORITHMS = (
  'fed_avg',
  'partial_training:fraction=0.4',
  'partial_training:fraction=0.4,by=block',
)


def measure_partial(plan: Plan) -> List[str]:
  """Measures rounds that take turns, each algorithm in a process of its own."""
  settings = dataclasses.replace(
    plan.settings, num_words=plan.attention_num_words
  )
  progress(f'Rounds of partial training, {plan.partial_model}')
  seconds: Dict[str, List[float]] = {name: [] for name in ALGORITHMS}
  uploads: Dict[str, float] = {}
  memory: Dict[str, Dict[str, Optional[float]]] = {}
  work: Dict[str, List[float]] = {name: [] for name in ALGORITHMS}
  with contextlib.ExitStack() as stack:
    children = {}
    for name in ALGORITHMS:
      child = protocol.Child(
        name,
        'experiments.benchmarking.partial_child',
        {
          **settings.as_json(),
          'model': plan.partial_model,
          'algorithm': name,
          'num_clients': plan.partial_clients,
          'num_batches': plan.partial_batches,
        },
        log=plan.log_file(f'partial_{name}'),
        environment=plan.environment,
      )
      children[name] = stack.enter_context(child)
      child.about()
    for _ in range(plan.repetitions):
      for name, child in children.items():
        answer = child.ask('round')
        seconds[name].append(answer['seconds'])
        work[name].append(answer['processor_seconds'])
        uploads[name] = answer['bytes_up']
    for name, child in children.items():
      memory[name] = child.ask('peak_memory')
  rows = []
  reference = statistics.median(seconds[ALGORITHMS[0]])
  for name in ALGORITHMS:
    taken = statistics.median(seconds[name])
    plan.record(
      'partial_training',
      model=plan.partial_model,
      algorithm=name,
      seconds=seconds[name],
      relative_to_fed_avg=taken / reference,
      processor_seconds=work[name],
      peak_bytes=memory[name]['bytes'],
      tensor_peak_bytes=memory[name]['tensor_bytes'],
      building_peak_bytes=memory[name]['building_bytes'],
      bytes_up_per_client=uploads[name],
    )
    rows.append(
      [
        plan.partial_model,
        name,
        f'{taken:.2f}',
        f'{taken / reference:.2f}',
        f'{statistics.median(work[name]):.1f}',
        *(
          '' if size is None else f'{size / 2**30:.2f}'
          for size in (
            memory[name][key]
            for key in ('tensor_bytes', 'bytes', 'building_bytes')
          )
        ),
        f'{uploads[name] / 1e6:.1f}',
      ]
    )
  plan.note(
    f'partial: {plan.partial_clients} clients of {plan.partial_batches} full '
    'batches, on the local runtime. The peaks are of all tensors in rounds, of '
    'the process then, and of the process before: TensorFlow keeps what '
    'building took, so that the process tells little of the rounds.'
  )
  return table.table(
    [
      'model',
      'algorithm',
      's a round',
      'relative to fed_avg',
      'processor s',
      'peak GiB of tensors',
      'peak GiB',
      'peak GiB of building',
      'MB up a client',
    ],
    rows,
  )
