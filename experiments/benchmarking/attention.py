"""The section on attention: our Transformers beside stock Keras layers."""

from __future__ import annotations

import dataclasses
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
  settings = dataclasses.replace(
    plan.settings, num_words=plan.attention_num_words
  )
  child = protocol.Child(
    f'attention {size}',
    'experiments.benchmarking.attention_child',
    {**settings.as_json(), 'options': size},
    log=plan.log_file(f'attention_{size}'),
    environment=plan.environment,
  )
  seconds: Dict[str, Dict[str, List[float]]] = {
    kind: {name: [] for name in CONTESTANTS} for kind in KINDS
  }
  with child:
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
        [
          size,
          f'{parameters[name] / 1e6:.2f}',
          kind,
          name,
          f'{taken * 1e3:.1f}',
          f'{taken / reference:.2f}',
        ]
      )
  plan.note(
    'attention: a step of SGD on a batch in one thread, forward and back, of '
    'the model alone; padded batches have a third of padding.'
  )
  return table.table(
    [
      'options',
      'M parameters',
      'sentences',
      'contestant',
      'ms a step',
      'relative to stock Keras',
    ],
    rows,
  )


def _measure_large(plan: Plan) -> List[str]:
  rows = []
  for model in plan.large_models:
    progress(f'A round of {model}')
    settings = dataclasses.replace(
      plan.settings, num_words=plan.attention_num_words
    )
    child = protocol.Child(
      model,
      'experiments.benchmarking.probe',
      {
        **settings.as_json(),
        'contestant': 'local',
        'model': model,
        'num_clients': _LARGE_CLIENTS,
      },
      log=plan.log_file(f'large_{model}'),
      environment=plan.environment,
    )
    try:
      with child:
        child.about()
        rounds = [
          child.ask('round')['seconds'] for _ in range(plan.repetitions)
        ]
        memory = child.ask('peak_memory')['bytes']
    except protocol.ChildError as error:
      plan.note(f'{model} could not be measured: {error}')
      rows.append([model, 'could not be measured', ''])
      continue
    rate = _LARGE_CLIENTS / statistics.median(rounds)
    plan.record(
      'large_model', model=model, round_seconds=rounds, peak_bytes=memory
    )
    rows.append([model, f'{rate:.2f}', f'{memory / 2**30:.2f}'])
  plan.note(
    f'Rounds of large models: {_LARGE_CLIENTS} clients of one full batch, on '
    'the local runtime; the peak is that of the whole process.'
  )
  return table.table(['model', 'client-steps a second', 'peak GiB'], rows)
