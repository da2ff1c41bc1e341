"""Measures the speed of rounds, compared with TFF, FedJAX and pfl-research.

  python -m experiments.benchmark

takes about ten minutes on two otherwise idle cores. The contestants are our
local and Ray runtimes, TensorFlow Federated's Stack Overflow baseline and, in
separate environments (`make bench-peers`), FedJAX and pfl-research on PyTorch.
All get the same weights and sentences and are measured in turns; figures are
medians. The sections:

  steps      client-steps a second and seconds a round, at the baseline's shape,
             for clients of 8 full batches, of 1, and uneven ones
  limit      the machine's matrix products, and our share of that limit
  memory     a fresh process's peak memory against the size of the cohort
  startup    from the start to the first round's result; a client without data
  noise      the time, state and memory that each aggregator adds to a round of
             4.7 and of 18.8 million parameters
  attention  steps of our Transformers against the same of stock Keras layers;
             rounds and memory of all large models
  partial    rounds, memory and upload of partial training against FedAvg's
  accelerator  rounds of the JAX runtime, on the GPU or TPU of .venv-jax if
             there is one, against clients in plain JAX; only if asked for

Tables go to the terminal and to table.md, all figures to benchmark.jsonl, facts
about the machine to machine.json, in --output_dir. A check that everything
runs takes a minute; its figures mean nothing:

  python -m experiments.benchmark --quick

For a machine with a GPU and JAX, but without TensorFlow,

  python -m experiments.benchmark --record=FOLDER

records the rounds of the section on accelerators; `python FOLDER/replay.py`
measures them on that machine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from typing import Any

from absl import flags as absl_flags

from experiments.benchmarking import machine, protocol, sections, workload
from experiments.benchmarking import plan as plan_lib
from si_federated import config, files, flags

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_CHOICES = {
  'contestants': plan_lib.CONTESTANTS,
  'models': plan_lib.MODELS,
  'client_kinds': workload.KINDS,
  'sections': tuple(sections.SECTIONS),
}
# Not measured by default: on a processor it takes hours.
_ON_REQUEST = frozenset({'accelerator'})
_HELP = {
  'contestants': 'The contestants; updates are compared with those of the '
  'first.',
  'models': 'The models; other libraries have lstm only.',
  'client_kinds': 'The clients: 8 full batches each, 1 each, or uneven ones of '
  'task docstrings.',
  'sections': 'The measurements.',
}

for _name, _all in _CHOICES.items():
  absl_flags.DEFINE_list(
    _name, [one for one in _all if one not in _ON_REQUEST], _HELP[_name]
  )
absl_flags.DEFINE_integer(
  'repetitions', 3, 'Measurements of each round.', lower_bound=1
)
absl_flags.DEFINE_integer(
  'clients_per_round', 12, 'Number of clients in a round.', lower_bound=1
)
absl_flags.DEFINE_string(
  'output_dir', 'runs/benchmark', 'The folder for the tables and figures.'
)
for _peer in ('fedjax', 'pfl'):
  absl_flags.DEFINE_string(
    f'{_peer}_python',
    None,
    f'The Python that has {_peer}; by default .venv-{_peer}/bin/python of this '
    'checkout, if it exists.',
  )
absl_flags.DEFINE_string(
  'accelerator_python',
  None,
  'The Python whose JAX knows the device; by default .venv-jax/bin/python of '
  'this checkout (make accelerator) if it exists, else this one, on the '
  'processor.',
)
absl_flags.DEFINE_string(
  'accelerator_device', None, 'cpu, cuda or tpu; JAX chooses by default.'
)
absl_flags.DEFINE_list(
  'accelerator_models',
  list(plan_lib.Plan.accelerator_models),
  'The models of the section on accelerators; options are separated by ; here.',
)
absl_flags.DEFINE_list(
  'accelerator_clients',
  ['10', '100', '1000'],
  'The numbers of clients per round in that section.',
)
absl_flags.DEFINE_integer(
  'accelerator_group',
  None,
  'How many clients run at once; by default as many as the runtime chooses.',
  lower_bound=1,
)
absl_flags.DEFINE_enum(
  'matmul_precision',
  'default',
  ['default', 'high', 'highest'],
  'The precision of matrix products on accelerators.',
)
absl_flags.DEFINE_string(
  'record',
  None,
  'A new folder in which to record the rounds of the section on accelerators, '
  'instead of measuring.',
)
absl_flags.DEFINE_bool(
  'quick', False, 'Tiny sizes, to check that everything works.'
)


def _chosen(name: str) -> list[str]:
  """Returns a list flag's values, checked."""
  values = list(absl_flags.FLAGS[name].value)
  for value in values:
    if value not in _CHOICES[name]:
      raise config.ConfigError(
        f'--{name} has {value!r}; choose from {", ".join(_CHOICES[name])}.'
      )
  if not values:
    raise config.ConfigError(
      f'--{name} is empty; choose from {", ".join(_CHOICES[name])}.'
    )
  # Without duplicates, in the order given.
  return list(dict.fromkeys(values))


def _numbers(name: str) -> tuple[int, ...]:
  """Returns a list flag's positive numbers."""
  values = absl_flags.FLAGS[name].value
  if not values or not all(v.isdecimal() and int(v) for v in values):
    raise config.ConfigError(
      f'--{name}={",".join(values)} must be numbers of at least 1.'
    )
  return tuple(map(int, values))


def _accelerator_python() -> str | None:
  """Returns the interpreter whose JAX knows an accelerator, if there is one."""
  given = absl_flags.FLAGS.accelerator_python
  path = given or os.path.join(_ROOT, '.venv-jax', 'bin', 'python')
  if os.path.exists(path):
    return os.path.abspath(path)
  if given:
    raise config.ConfigError(
      f'--accelerator_python={given} does not exist; name the Python of an '
      'environment that has JAX.'
    )
  return None


def _record_folder() -> str | None:
  """Returns the folder of a recording, checked."""
  folder = absl_flags.FLAGS.record
  if folder and os.path.exists(folder) and os.listdir(folder):
    raise config.ConfigError(
      f'--record={folder} is not empty; name a new folder.'
    )
  return os.path.abspath(folder) if folder else None


def _peer_pythons() -> dict[str, str]:
  """Returns the interpreters of other libraries, where they exist."""
  pythons = {}
  for peer in ('fedjax', 'pfl'):
    given = absl_flags.FLAGS[f'{peer}_python'].value
    path = given or os.path.join(_ROOT, f'.venv-{peer}', 'bin', 'python')
    if os.path.exists(path):
      pythons[peer] = os.path.abspath(path)
    elif given:
      raise config.ConfigError(
        f'--{peer}_python={given} does not exist; name the Python of an '
        f'environment that has {peer}.'
      )
  return pythons


def _make_plan(folder: str) -> plan_lib.Plan:
  settings = workload.Settings(
    folder=folder, clients_per_round=absl_flags.FLAGS.clients_per_round
  )
  plan = plan_lib.Plan(
    settings,
    contestants=_chosen('contestants'),
    models=_chosen('models'),
    kinds=_chosen('client_kinds'),
    repetitions=absl_flags.FLAGS.repetitions,
    pythons=_peer_pythons(),
    accelerator_models=tuple(
      model.replace(';', ',') for model in absl_flags.FLAGS.accelerator_models
    ),
    accelerator_clients=_numbers('accelerator_clients'),
    accelerator_python=_accelerator_python(),
    accelerator_device=absl_flags.FLAGS.accelerator_device,
    accelerator_group=absl_flags.FLAGS.accelerator_group,
    matmul_precision=absl_flags.FLAGS.matmul_precision,
    record_folder=_record_folder(),
  )
  if absl_flags.FLAGS.quick:
    plan = dataclasses.replace(
      plan,
      settings=dataclasses.replace(
        settings,
        task='synthetic',
        num_words=50,
        embedding_size=8,
        units=16,
        batch_size=4,
        sequence_length=6,
        clients_per_round=min(settings.clients_per_round, 3),
      ),
      repetitions=min(plan.repetitions, 2),
      square=64,
      rate_seconds=0.01,
      cohort_sizes=(2, 4),
      starts=1,
      noise_models=('cifg:units=16,embedding_size=8',),
      noise_mechanisms=('tree', 'blt:num_buffers=4'),
      noise_vocab_size=50,
      noise_rounds=8,
      attention_sizes=(
        'embedding_size=8,num_heads=2,intermediate_dim=16,num_layers=1',
      ),
      attention_num_words=50,
      large_models=('cifg:units=16,embedding_size=8',),
      partial_model='cifg:units=16,embedding_size=8',
      partial_clients=2,
      partial_batches=2,
      accelerator_models=('lstm',),
      accelerator_clients=(3,),
    )
    plan.note('--quick: the sizes are tiny and the figures mean nothing.')
  for peer in plan.present(['fedjax', 'pfl']):
    if peer not in plan.pythons:
      plan.leave_out(
        peer, f'give --{peer}_python, or build .venv-{peer} (make bench-peers).'
      )
  return plan


def _write(
  folder: str, plan: plan_lib.Plan, facts: dict[str, Any], lines: list[str]
) -> None:
  """Writes the findings so far."""
  contents = {
    'machine.json': json.dumps(facts, indent=2) + '\n',
    'benchmark.jsonl': ''.join(
      json.dumps(entry) + '\n'
      for entry in [{'record': 'machine', **facts}, *plan.records]
    ),
    'table.md': '\n'.join(lines) + '\n',
  }
  for name, content in contents.items():
    files.write_atomically(os.path.join(folder, name), content)


def main() -> None:
  """Runs the sections and prints their tables.

  Raises:
    config.ConfigError: If a flag is wrong.
    ValueError: If a section could not be measured.
  """
  # Ends the contestants as an interrupt does.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  output = absl_flags.FLAGS.output_dir
  began = time.perf_counter()
  with tempfile.TemporaryDirectory(prefix='si_federated_benchmark') as folder:
    chosen = _chosen('sections')
    if absl_flags.FLAGS.record:
      chosen = ['accelerator']
    plan = _make_plan(folder)
    facts = machine.facts()
    failed: list[str] = []
    lines = [f'# {facts["cpu"]}, {facts["cores"]} cores, {facts["date"]}']
    print(lines[0])
    for name in chosen:
      plan_lib.progress(f'Section {name}')
      try:
        section = ['', *sections.SECTIONS[name](plan)]
      except protocol.ChildError as error:
        failed.append(name)
        section = ['', f'Section {name} could not be measured. {error}']
      print('\n'.join(section), flush=True)
      lines += section
      _write(output, plan, facts, lines)
    notes = ['', *(f'- {note}' for note in plan.notes)]
    facts['seconds'] = round(time.perf_counter() - began, 1)
    _write(output, plan, facts, lines + notes)
  print('\n'.join(notes))
  print(f'Figures are in {output}.')
  if failed:
    raise ValueError(
      f'Not everything could be measured: {", ".join(failed)}; see above.'
    )


def run() -> None:
  """Runs the binary."""
  flags.run_main(main)


if __name__ == '__main__':
  run()
