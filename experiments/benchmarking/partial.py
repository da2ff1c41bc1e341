"""The section on partial training: its rounds, memory and upload."""

from __future__ import annotations

import contextlib
import statistics
from typing import Any, Dict, List

from experiments.benchmarking import table
from experiments.benchmarking.plan import Plan, progress

# The first is the reference.
ALGORITHMS = (
  'fed_avg',
  'partial_training:fraction=0.4',
  'partial_training:fraction=0.4,by=block',
)


def measure_partial(plan: Plan) -> List[str]:
  """Measures rounds in turns, each algorithm in a separate process."""
  progress(f'Rounds of partial training, {plan.partial_model}')
  rounds: Dict[str, List[Dict[str, float]]] = {name: [] for name in ALGORITHMS}
  with contextlib.ExitStack() as stack:
    children = {}
    for name in ALGORITHMS:
      fields = {
        'contestant': 'local',
        'model': plan.partial_model,
        'algorithm': name,
        'num_clients': plan.partial_clients,
        'num_batches': plan.partial_batches,
        'num_words': plan.attention_num_words,
      }
      child = plan.child(name, 'benchmarking.probe', fields)
      children[name] = stack.enter_context(child)
      child.about()
    for _ in range(plan.repetitions):
      for name, child in children.items():
        rounds[name].append(child.ask('round'))
    memory = {
      name: child.ask('peak_memory') for name, child in children.items()
    }
  rows = []
  seconds = {
    name: [one['seconds'] for one in answers]
    for name, answers in rounds.items()
  }
  reference = statistics.median(seconds[ALGORITHMS[0]])
  for name in ALGORITHMS:
    taken = statistics.median(seconds[name])
    work = [one['processor_seconds'] for one in rounds[name]]
    upload = rounds[name][-1]['bytes_up']
    plan.record(
      'partial_training',
      model=plan.partial_model,
      algorithm=name,
      seconds=seconds[name],
      relative_to_fed_avg=taken / reference,
      processor_seconds=work,
      peak_bytes=memory[name]['rounds_bytes'],
      tensor_peak_bytes=memory[name]['tensor_bytes'],
      building_peak_bytes=memory[name]['building_bytes'],
      bytes_up_per_client=upload,
    )
    rows.append(
      {
        'model': plan.partial_model,
        'algorithm': name,
        's a round': f'{taken:.2f}',
        'relative to fed_avg': f'{taken / reference:.2f}',
        'processor s': f'{statistics.median(work):.1f}',
        'peak GiB of tensors': _gib(memory[name]['tensor_bytes']),
        'peak GiB': _gib(memory[name]['rounds_bytes']),
        'peak GiB of building': _gib(memory[name]['building_bytes']),
        'MB up a client': f'{upload / 1e6:.1f}',
      }
    )
  plan.note(
    f'partial: {plan.partial_clients} clients of {plan.partial_batches} full '
    'batches, on the local runtime. The peaks are those of all tensors in '
    'rounds, of the process then, and of the process before: TensorFlow keeps '
    'the memory of building, so that the process says little about rounds.'
  )
  return table.table(rows)


def _gib(size: Any) -> str:
  return '' if size is None else f'{size / 2**30:.2f}'
