"""The section on attention: our Transformers against stock Keras layers."""

from __future__ import annotations

import statistics
from typing import Dict, List

from experiments.benchmarking import protocol, table
from experiments.benchmarking.plan import Plan, progress

# The first is the reference.
CONTESTANTS = ('keras', 'transformer', 'si_transformer')
KINDS = ('full', 'padded')
_LARGE_CLIENTS = 10


def measure_attention(plan: Plan) -> List[str]:
  """Measures training steps in turns, then rounds of the largest models."""
  lines: List[str] = []
  for size in plan.attention_sizes:
    lines += [*_measure_steps(plan, size), '']
  return [*lines, *_measure_large(plan)]


def _measure_steps(plan: Plan, size: str) -> List[str]:
  seconds: Dict[str, Dict[str, List[float]]] = {
    kind: {name: [] for name in CONTESTANTS} for kind in KINDS
  }
  with plan.child(
    f'attention {size}',
    'benchmarking.attention_child',
    {'options': size, 'num_words': plan.attention_num_words},
  ) as child:
    progress(f'Steps of Transformers, {size}')
    parameters = child.about()['parameters']
    for _ in range(5 * plan.repetitions):
      for kind in KINDS:
        for name in CONTESTANTS:
          answer = child.ask('step', name=name, kind=kind)
          seconds[kind][name].append(answer['seconds'])
  rows = []
  for kind in KINDS:
    reference = statistics.median(seconds[kind]['keras'])
    for name in CONTESTANTS:
      taken = statistics.median(seconds[kind][name])
      plan.record(
        'attention_step',
        options=size,
        kind=kind,
        contestant=name,
        parameters=parameters[name],
        seconds=seconds[kind][name],
        relative_to_keras=taken / reference,
      )
      rows.append(
        {
          'options': size,
          'M parameters': f'{parameters[name] / 1e6:.2f}',
          'sentences': kind,
          'contestant': name,
          'ms a step': f'{taken * 1e3:.1f}',
          'relative to stock Keras': f'{taken / reference:.2f}',
        }
      )
  plan.note(
    'attention: an SGD step on a batch in one thread, forward and backward, of '
    'the model alone; a third of a padded batch is padding.'
  )
  return table.table(rows)


def _measure_large(plan: Plan) -> List[str]:
  rows = []
  for model in plan.large_models:
    progress(f'A round of {model}')
    fields = {
      'contestant': 'local',
      'model': model,
      'num_clients': _LARGE_CLIENTS,
      'num_words': plan.attention_num_words,
    }
    rate, size = 'could not be measured', ''
    try:
      with plan.child(model, 'benchmarking.probe', fields) as child:
        rounds = [
          child.ask('round')['seconds'] for _ in range(plan.repetitions)
        ]
        memory = child.ask('peak_memory')['bytes']
      plan.record(
        'large_model', model=model, round_seconds=rounds, peak_bytes=memory
      )
      rate = f'{_LARGE_CLIENTS / statistics.median(rounds):.2f}'
      size = f'{memory / 2**30:.2f}'
    except protocol.ChildError as error:
      plan.note(f'{model} could not be measured: {error}')
    rows.append(
      {'model': model, 'client-steps a second': rate, 'peak GiB': size}
    )
  plan.note(
    f'Rounds of large models: {_LARGE_CLIENTS} clients of one full batch, on '
    'the local runtime; the peak is that of the whole process.'
  )
  return table.table(rows)
