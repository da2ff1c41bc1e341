"""The section on steps: all contestants on the same clients, in turns."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
from typing import Any, Dict, List, Optional, Tuple

from experiments.benchmarking import protocol, table, workload
from experiments.benchmarking.plan import Plan, progress

# The largest relative difference between contestants' updates of a round.
TOLERANCE = 1e-3
_OURS = ('local', 'ray')


def _variants(contestant: str) -> Dict[str, Dict[str, Any]]:
  """Returns the ways to run a contestant by name; the best one counts."""
  cores = len(os.sched_getaffinity(0))
  if contestant != 'pfl' or cores == 1:
    return {contestant: {'processes': 1, 'threads': cores}}
  return {
    f'pfl {processes}x{threads}': {'processes': processes, 'threads': threads}
    for processes, threads in ((cores, 1), (1, cores))
  }


def models_of(plan: Plan, contestant: str) -> List[str]:
  """Returns the models that a contestant supports."""
  return [m for m in plan.models if contestant in _OURS or m == 'lstm']


def start_contestant(plan: Plan, contestant: str) -> Dict[str, protocol.Child]:
  """Starts the processes of a contestant without waiting for them."""
  modules = {'fedjax': 'peers.fedjax_steps', 'pfl': 'peers.pfl_steps'}
  return {
    name: plan.child(
      name,
      modules.get(contestant, 'benchmarking.our_steps'),
      {'contestant': contestant, **variant},
      python=plan.pythons.get(contestant, sys.executable),
    )
    for name, variant in _variants(contestant).items()
  }


def make_workload(plan: Plan) -> None:
  """Creates the clients' sentences and the initial weights."""
  progress('Making the clients and the initial weights')
  fields = {'kinds': list(plan.kinds), 'models': list(plan.models)}
  with plan.child('workload', 'benchmarking.make_workload', fields) as child:
    facts = child.about()
  for kind, numbers in facts['clients'].items():
    plan.record('clients', kind=kind, **numbers)
    plan.note(
      f'{kind} clients: {numbers["clients"]} a round, {numbers["steps"]} steps '
      f'of {plan.settings.batch_size} sentences, {numbers["tokens"]} words to '
      f'predict in {numbers["sentences"] * plan.settings.sequence_length} '
      'positions.'
    )
  if 'uneven' in facts['clients']:
    plan.note(
      f'uneven clients are training clients of task {plan.settings.task}, '
      f'drawn with seed {plan.settings.seed}, at most '
      f'{plan.settings.max_elements} sentences each.'
    )


def measure_steps(plan: Plan) -> List[str]:
  """Measures rounds of all contestants in turns and compares their updates."""
  make_workload(plan)
  with contextlib.ExitStack() as stack:
    children: Dict[str, Tuple[str, protocol.Child]] = {}
    for contestant in plan.contestants:
      if models_of(plan, contestant):
        for name, child in start_contestant(plan, contestant).items():
          children[name] = contestant, stack.enter_context(child)
    for name, (contestant, child) in list(children.items()):
      progress(f'Warming up {name}')
      try:
        plan.record('contestant', contestant=name, **child.about())
        for model in models_of(plan, contestant):
          for kind in plan.kinds:
            answer = child.ask(
              'update',
              model=model,
              kind=kind,
              path=_update_file(plan, name, model, kind),
            )
            plan.record(
              'warm_up', contestant=name, model=model, kind=kind, **answer
            )
      except protocol.ChildError as error:
        plan.leave_out(contestant, error)
        del children[name]
        child.close(at_once=True)
    for repetition in range(plan.repetitions):
      progress(f'Repetition {repetition + 1} of {plan.repetitions}')
      for model in plan.models:
        for kind in plan.kinds:
          for name, (contestant, child) in children.items():
            if model in models_of(plan, contestant):
              answer = child.ask('measure', model=model, kind=kind)
              plan.record(
                'round',
                contestant=name,
                model=model,
                kind=kind,
                repetition=repetition,
                **answer,
              )
  names = {name: contestant for name, (contestant, _) in children.items()}
  if not names:
    raise ValueError(f'No contestant could be measured. {" ".join(plan.notes)}')
  _compare(plan, names)
  return _tabulate(plan, names)


def _update_file(plan: Plan, name: str, model: str, kind: str) -> str:
  return os.path.join(
    plan.settings.folder, f'update_{name.replace(" ", "_")}_{model}_{kind}.npz'
  )


def _compare(plan: Plan, names: Dict[str, str]) -> None:
  """Compares all updates of a round with the first contestant's."""
  for model in plan.models:
    initial = workload.load_weights(workload.weights_file(plan.settings, model))
    able = [n for n, c in names.items() if model in models_of(plan, c)]
    for kind in plan.kinds if able else ():
      reference = workload.load_weights(
        _update_file(plan, able[0], model, kind)
      )
      for name in able[1:]:
        weights = workload.load_weights(_update_file(plan, name, model, kind))
        difference = workload.disagreement(weights, reference, initial)
        plan.record(
          'agreement',
          contestant=name,
          reference=able[0],
          model=model,
          kind=kind,
          difference=difference,
          same_work=difference <= TOLERANCE,
        )
  if 'fedjax' in names:
    plan.note(
      'FedJAX: compared without the tanh that its model has after the LSTM, '
      'but timed with it. Its loss divides by the number of positions, and it '
      'fills up the last batch with other sentences, so that it differs on '
      'uneven clients.'
    )
  if 'tff' in names:
    plan.note(
      'TFF: the loss of its baseline counts padded labels, so that uneven '
      'clients learn to predict padding. With those clients it is compared '
      'without padding, but timed unchanged.'
    )


def _rounds(plan: Plan, name: str, model: str, kind: str) -> List[float]:
  found = plan.found('round', contestant=name, model=model, kind=kind)
  return [entry['seconds'] for entry in found]


def seconds_a_step(
  plan: Plan, name: str, model: str, kind: str
) -> Optional[float]:
  """Returns the median time of a client-step, if it was measured.

  Args:
    plan: The plan and its findings.
    name: The contestant (or its variant).
    model: The model.
    kind: The clients.

  Returns:
    Seconds of a round divided by its steps, with all cores in use.
  """
  rounds = _rounds(plan, name, model, kind)
  clients = plan.found('clients', kind=kind)
  if not rounds or not clients:
    return None
  return statistics.median(rounds) / clients[0]['steps']


def _tabulate(plan: Plan, names: Dict[str, str]) -> List[str]:
  rows = []
  for model in plan.models:
    for kind in plan.kinds:
      best: Dict[str, Tuple[float, str]] = {}
      for name, contestant in names.items():
        seconds = seconds_a_step(plan, name, model, kind)
        if seconds is not None:
          best[contestant] = min(
            best.get(contestant, (seconds, name)), (seconds, name)
          )
      for seconds, name in best.values():
        rounds = _rounds(plan, name, model, kind)
        plan.record(
          'steps',
          contestant=name,
          model=model,
          kind=kind,
          steps_per_second=1.0 / seconds,
          round_seconds=statistics.median(rounds),
        )
        ratio = seconds / best['local'][0] if 'local' in best else None
        rows.append(
          {
            'model': model,
            'clients': kind,
            'contestant': name,
            'client-steps/s': f'{1 / seconds:.1f}',
            'ms a step': f'{seconds * 1e3:.1f}',
            's a round': f'{statistics.median(rounds):.2f}',
            'least - most': f'{min(rounds):.2f} - {max(rounds):.2f}',
            'time / local': '' if ratio is None else f'{ratio:.2f}',
            'update differs by': _agreement(plan, name, model, kind),
          }
        )
  return table.table(rows)


def _agreement(plan: Plan, name: str, model: str, kind: str) -> str:
  found = plan.found('agreement', contestant=name, model=model, kind=kind)
  if not found:
    return '(reference)'
  entry = found[0]
  if entry['same_work']:
    return f'{entry["difference"]:.0e}'
  # See the note on FedJAX.
  expected = name == 'fedjax' and kind == 'uneven'
  why = 'another loss' if expected else 'NOT THE SAME WORK'
  return f'{entry["difference"]:.0e} ({why})'
