"""The section on rounds: every contestant on the same clients, in turns."""

from __future__ import annotations

import contextlib
import os
import statistics
from typing import Any, Dict, List, Optional, Tuple

from experiments.benchmarking import protocol, table, workload
from experiments.benchmarking.plan import Plan, progress

# Contestants must agree on the update of a round to this, relative.
TOLERANCE = 1e-3
_OURS = ('local', 'ray')


def _variants(contestant: str) -> Dict[str, Dict[str, Any]]:
  """Returns by name the ways to run a contestant, the best of which counts."""
  cores = len(os.sched_getaffinity(0))
  if contestant != 'pfl' or cores == 1:
    return {contestant: {'processes': 1, 'threads': cores}}
  return {
    f'pfl {processes}x{threads}': {'processes': processes, 'threads': threads}
    for processes, threads in ((cores, 1), (1, cores))
  }


def models_of(plan: Plan, contestant: str) -> List[str]:
  """Returns the models that a contestant takes part with."""
  return [m for m in plan.models if contestant in _OURS or m == 'lstm']


def start_contestant(plan: Plan, contestant: str) -> Dict[str, protocol.Child]:
  """Starts the processes of a contestant, without waiting for them."""
  modules = {
    'fedjax': 'experiments.peers.fedjax_steps',
    'pfl': 'experiments.peers.pfl_steps',
  }
  peer = contestant in modules
  options: Dict[str, Any] = (
    {'python': plan.pythons[contestant]}
    if peer
    else {'environment': plan.environment}
  )
  return {
    name: protocol.Child(
      name,
      modules.get(contestant, 'experiments.benchmarking.our_steps'),
      {**plan.settings.as_json(), 'contestant': contestant, **variant},
      log=plan.log_file(name),
      **options,
    )
    for name, variant in _variants(contestant).items()
  }


def make_workload(plan: Plan) -> None:
  """Makes the clients' sentences and the initial weights."""
  progress('Making the clients and the initial weights')
  child = protocol.Child(
    'make_workload',
    'experiments.benchmarking.make_workload',
    {
      **plan.settings.as_json(),
      'kinds': list(plan.kinds),
      'models': list(plan.models),
    },
    log=plan.log_file('make_workload'),
    environment=plan.environment,
  )
  (facts,) = protocol.run_once(child, [])
  for kind, numbers in facts['clients'].items():
    plan.record('clients', kind=kind, **numbers)
    plan.note(
      f'{kind} clients: {numbers["clients"]} a round, {numbers["steps"]} steps '
      f'of {plan.settings.batch_size} sentences, {numbers["tokens"]} words to '
      f'predict of {numbers["sentences"] * plan.settings.sequence_length} '
      'places.'
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
  """Compares everybody's update of a round with the first contestant's."""
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
      'timed with it. Its loss divides by the number of places and it fills '
      'the last batch with further sentences, so that it differs on uneven '
      'clients.'
    )
  if 'tff' in names:
    plan.note(
      'TFF: the loss of its baseline counts padded labels, so that uneven '
      'clients learn to predict padding; on those it is compared with padding '
      'left out, but timed as it is.'
    )


def _rounds(plan: Plan, name: str, model: str, kind: str) -> List[float]:
  found = plan.found('round', contestant=name, model=model, kind=kind)
  return [entry['seconds'] for entry in found]


def seconds_a_step(
  plan: Plan, name: str, model: str, kind: str
) -> Optional[float]:
  """Returns the median time of a client-step, if it was measured.

  Args:
    plan: With its findings.
    name: The contestant (or its variant).
    model: The model.
    kind: The clients.

  Returns:
    Seconds of a round over its steps, all cores taken together.
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
          [
            model,
            kind,
            name,
            f'{1 / seconds:.1f}',
            f'{seconds * 1e3:.1f}',
            f'{statistics.median(rounds):.2f}',
            f'{min(rounds):.2f} - {max(rounds):.2f}',
            '' if ratio is None else f'{ratio:.2f}',
            _agreement(plan, name, model, kind),
          ]
        )
  return table.table(
    [
      'model',
      'clients',
      'contestant',
      'client-steps/s',
      'ms a step',
      's a round',
      'least - most',
      'time / local',
      'update differs by',
    ],
    rows,
  )


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
