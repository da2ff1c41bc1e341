"""The section on accelerators: the JAX runtime against plain JAX."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import Any, Dict, List, Tuple

from experiments.benchmarking import protocol, table
from experiments.benchmarking.plan import Plan, progress

# The number of clients whose sums are recorded, and compared in a replay.
_CHECKED = 2


def measure_accelerator(plan: Plan) -> List[str]:
  """Measures rounds of the runtime, then its programs and plain JAX.

  The programs are recorded and replayed in separate processes, so that a
  machine without TensorFlow can give the same figures. If the plan names a
  folder for the recording, nothing is measured here.
  """
  folder = plan.record_folder or os.path.join(plan.settings.folder, 'recording')
  options: Dict[str, Any] = {
    'python': plan.accelerator_python,
    'device': plan.accelerator_device,
    'clients_per_group': plan.accelerator_group,
    'matmul_precision': plan.matmul_precision,
    'record': folder,
  }
  cases = [
    (model, kind, number)
    for model in plan.accelerator_models
    for kind in plan.kinds
    for number in plan.accelerator_clients
  ]
  seconds: Dict[Tuple[str, str, int], List[float]] = {}
  with plan.child(
    'jax',
    'benchmarking.accelerator_child',
    {'options': options, 'large_words': plan.attention_num_words},
  ) as child:
    about = child.about()
    for model, kind, number in cases:
      progress(f'Recording {number} {kind} clients of {model}')
      fields = {'model': model, 'kind': kind, 'num_clients': number}
      answer = child.ask('record', num_checked=_CHECKED, **fields)
      plan.record('recorded', **fields, **answer)
      if plan.record_folder is None:
        child.ask('measure', **fields)
        seconds[model, kind, number] = [
          child.ask('measure', **fields)['seconds']
          for _ in range(plan.repetitions)
        ]
  if plan.record_folder is not None:
    return [
      f'{len(cases)} rounds are recorded in {folder}. On a machine with a GPU, '
      'with JAX and NumPy alone:',
      '',
      f'    python {os.path.join(os.path.basename(folder), "replay.py")}',
    ]
  rows: List[Dict[str, str]] = []
  replayed = _replay(plan, folder)
  device = replayed[0]['device']
  floors = {
    (row['model'], row['clients'], row['num_clients']): row['round_seconds']
    for row in replayed[1:]
    if row['contestant'] == 'plain JAX'
  }
  shown = set()
  for row in replayed[1:]:
    case = row['model'], row['clients'], row['num_clients']
    if case not in shown:
      shown.add(case)
      rows.append(_runtime_row(plan, row, seconds[case], floors.get(case)))
    plan.record('accelerator', device=device, **row)
    rows.append(row['cells'])
  plan.note(
    f'accelerator: on {device}; the runtime on {about["device"]}. A round of '
    'the runtime is everything: data, conversion to arrays, transfers, '
    'clients, server. The recorded programs and plain JAX are measured alone, '
    'from arrays in memory to sums in memory. Matrix products have precision '
    f'{plan.matmul_precision}. Deviation is that of the sums over '
    f'{_CHECKED} clients from those computed while recording. Memory is what '
    'compiled programs take.'
  )
  return [f'{device}', '', *table.table(rows)]


def _runtime_row(
  plan: Plan, row: Dict[str, Any], seconds: List[float], floor: Any
) -> Dict[str, str]:
  median = statistics.median(seconds)
  steps = row['num_steps']
  plan.record(
    'accelerator',
    contestant='runtime',
    model=row['model'],
    clients=row['clients'],
    num_clients=row['num_clients'],
    num_steps=steps,
    seconds=seconds,
    round_seconds=median,
    relative_to_floor=None if floor is None else median / floor,
  )
  return {
    'model': row['model'],
    'clients': row['clients'],
    'contestant': 'runtime, whole round',
    'clients a round': str(row['num_clients']),
    'client-steps': str(steps),
    's a round': f'{median:.4f}',
    'ms a client-step': f'{median * 1e3 / steps:.3f}',
    'time / floor': '' if floor is None else f'{median / floor:.2f}',
  }


def _replay(plan: Plan, folder: str) -> List[Dict[str, Any]]:
  """Returns the lines of a replay on the runtime's device."""
  progress('Replaying')
  environment = dict(os.environ)
  device = plan.accelerator_device
  if device is None and plan.accelerator_python is None:
    device = 'cpu'
  if device is not None:
    environment['JAX_PLATFORMS'] = device
  done = subprocess.run(
    [
      plan.accelerator_python or sys.executable,
      '-I',
      os.path.join(folder, 'replay.py'),
      '--json',
      f'--repetitions={plan.repetitions}',
    ],
    capture_output=True,
    env=environment,
    text=True,
    check=False,
    preexec_fn=protocol.die_with_parent,
  )
  lines = [json.loads(line) for line in done.stdout.splitlines()]
  if done.returncode and not lines[1:]:
    last = done.stderr.strip().rpartition('\n')[2]
    raise protocol.ChildError(f'The replay failed: {last}')
  return lines
