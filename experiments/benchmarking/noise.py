"""The section on noise: the cost that each mechanism adds to a round."""

from __future__ import annotations

import statistics
from typing import Any, Dict, List, Tuple

from experiments.benchmarking import protocol, table
from experiments.benchmarking.plan import Plan, progress

# Neither clips nor adds noise: the reference of all others.
REFERENCE = 'mean:weighting=uniform,zeroing=false'
_NUM_CLIENTS = 2
_PARTICIPATIONS = 6
_FLOAT_BYTES = 4


def _rounds(plan: Plan, mechanism: str) -> int:
  """Returns the number of rounds that a mechanism is built for."""
  dense = mechanism.startswith('dense')
  return plan.noise_dense_rounds if dense else plan.noise_rounds


def _child(plan: Plan, model: str, mechanism: str) -> protocol.Child:
  return plan.child(
    mechanism,
    'benchmarking.noise_child',
    {
      'model': model,
      'vocab_size': plan.noise_vocab_size,
      'mechanism': mechanism,
      'rounds': _rounds(plan, mechanism),
      'participations': _PARTICIPATIONS,
      'num_clients': _NUM_CLIENTS,
      'most_rows': plan.noise_rows,
    },
  )


def _measure(
  plan: Plan, model: str, mechanism: str, reference: protocol.Child
) -> None:
  """Measures a mechanism and the reference in turns."""
  with _child(plan, model, mechanism) as child:
    about = child.about()
    seconds: List[List[float]] = [[] for _ in about['measured_rounds']]
    without: List[float] = []
    for _ in range(plan.repetitions):
      for times, round_num in zip(seconds, about['measured_rounds']):
        without.append(reference.ask('measure', round_num=0)['seconds'])
        times.append(child.ask('measure', round_num=round_num)['seconds'])
    memory = child.ask('memory')
  reference_memory = reference.ask('memory')
  base = statistics.median(without)
  added = [statistics.median(times) - base for times in seconds]
  mean, worst = extrapolate(
    about['measured_rows'], added, about['mean_rows'], about['most_rows']
  )
  model_bytes = _FLOAT_BYTES * about['parameters']
  plan.record(
    'noise',
    model=model,
    mechanism=mechanism,
    rounds=_rounds(plan, mechanism),
    **about,
    round_seconds=seconds,
    reference_seconds=without,
    added_seconds=mean,
    added_seconds_worst=worst,
    state_model_sizes=memory['state_bytes'] / model_bytes,
    added_peak_model_sizes=(
      (memory['peak_bytes'] - reference_memory['peak_bytes']) / model_bytes
    ),
    **memory,
    reference_peak_bytes=reference_memory['peak_bytes'],
  )


def extrapolate(
  rows: List[int], seconds: List[float], mean_rows: float, most_rows: int
) -> Tuple[float, float]:
  """Returns the times of rounds with the mean and the largest number of rows.

  Args:
    rows: The rows of z that the measured rounds make: one number if all
      rounds make the same, otherwise two.
    seconds: The time of each.
    mean_rows: The mean over all rounds.
    most_rows: The maximum of any round.
  """
  if len(rows) == 1:
    return seconds[0], seconds[0]
  slope = (seconds[1] - seconds[0]) / (rows[1] - rows[0])
  return (
    seconds[0] + slope * (mean_rows - rows[0]),
    seconds[0] + slope * (most_rows - rows[0]),
  )


def measure_noise(plan: Plan) -> List[str]:
  """Measures each mechanism's time, state and memory at each model's size."""
  for model in plan.noise_models:
    with _child(plan, model, REFERENCE) as reference:
      reference.about()
      for mechanism in plan.noise_mechanisms:
        progress(f'{mechanism} on {model}')
        try:
          _measure(plan, model, mechanism, reference)
        except protocol.ChildError as error:
          plan.record(
            'noise_failed', model=model, mechanism=mechanism, error=str(error)
          )
          plan.note(f'{mechanism} could not be measured on {model}: {error}')
  plan.note(
    f'noise: rounds of {_NUM_CLIENTS} clients whose updates are constants, '
    f'minus those of {REFERENCE}, measured in turns; each client clips in a '
    f'thread of its own. Beyond {plan.noise_rows} rows of z, times are '
    'extrapolated.'
  )
  return _tabulate(plan)


def _tabulate(plan: Plan) -> List[str]:
  rows = []
  for model in plan.noise_models:
    for mechanism in plan.noise_mechanisms:
      found = plan.found('noise', model=model, mechanism=mechanism)
      cells = {'made for rounds': 'could not be measured'}
      if found:
        cells = _cells(found[0])
      size = f'{found[0]["parameters"] / 1e6:.2f}' if found else ''
      rows.append(
        {
          'model': model,
          'M parameters': size,
          'mechanism': mechanism,
          **cells,
        }
      )
  return table.table(rows)


def _cells(entry: Dict[str, Any]) -> Dict[str, str]:
  reference = statistics.median(entry['reference_seconds'])
  rows = f'{entry["mean_rows"]:.1f}, {entry["most_rows"]}'
  return {
    'made for rounds': str(entry['rounds']),
    'rows of z: mean, most': rows if entry['most_rows'] > 1 else '',
    'ms without': f'{reference * 1e3:.0f}',
    'ms added, mean round': f'{entry["added_seconds"] * 1e3:.0f}',
    'ms added, worst round': f'{entry["added_seconds_worst"] * 1e3:.0f}',
    'state, model sizes': f'{entry["state_model_sizes"]:.2f}',
    'peak memory added, model sizes': (
      f'{entry["added_peak_model_sizes"]:.1f}'
    ),
  }
