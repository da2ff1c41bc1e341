"""Computes the privacy of a mechanism, or the noise that a budget needs.

It neither trains nor reads data. It prints JSON and, with --compare, a table of
mechanisms at the same epsilon. DP-FTRL with trees, as deployed in Gboard:

  python -m experiments.account --aggregator=tree --noise_multiplier=7 \\
    --total_rounds=2000 --max_participations=6 --min_separation=314 \\
    --delta=1e-10

The noise that a budget needs, and a comparison of mechanisms in that setting,
including amplification by sampling from 342,000 clients, as a table and a
picture:

  python -m experiments.account --aggregator=blt --target_epsilon=8 \\
    --total_rounds=2048 --participation=fixed_cycles --num_clients=342000 \\
    --clients_per_round=1000 --delta=1e-6 --compare --figure=errors.svg

The privacy of a recipe:

  python -m experiments.account --num_clients=3531 \\
    --flagfile=experiments/configs/docstrings.si_cifg.blt.flags

Flags are those of experiments.train. For Poisson sampling, which amplifies
privacy, give --participation=poisson, --clients_per_round and --num_clients;
for groups that clients draw, --participation=balls_in_bins instead, and for
clients that pause after a round, b_min_sep.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags as absl_flags

from si_federated import config, files, flags

_NAMES = (
  'aggregator',
  'participation',
  'clients_per_round',
  'total_rounds',
  'clip_norm',
  'clip_norm_from',
  'noise_multiplier',
  'target_epsilon',
  'delta',
  'min_separation',
  'max_participations',
  'noise_cohort_size',
)
# Printed first; the other entries of the summary follow.
_FIRST = (
  'noise_multiplier',
  'rho',
  'epsilon',
  'epsilon_without_amplification',
  'delta',
  'sensitivity',
)
flags.define_config_flags(
  field.name
  for field in dataclasses.fields(config.ExperimentConfig)
  if field.name != 'experiment_name'
)
# The other flags are accepted because recipes set them; they have no effect
# here.
for _name in _NAMES:
  absl_flags.declare_key_flag(_name)
_NUM_CLIENTS = absl_flags.DEFINE_integer(
  'num_clients',
  None,
  'The number of training clients: if given, --participation must meet the '
  'contract, and its sampling amplifies privacy if it can.',
  lower_bound=1,
)
_DIMENSION = absl_flags.DEFINE_integer(
  'num_parameters',
  None,
  "The number of the model's parameters, for --aggregator=distributed_dp.",
  lower_bound=1,
)
_METHOD = absl_flags.DEFINE_enum(
  'method',
  'exact',
  ['exact', 'rdp'],
  'The computation of epsilon: exact (with amplification, from privacy loss '
  'distributions), or from Renyi differential privacy, a little larger.',
)
_COMPARE = absl_flags.DEFINE_bool(
  'compare',
  False,
  "Print a table of the mechanisms' errors at the epsilon of this setting; "
  'with --num_clients, also under sampling that amplifies.',
)
_FIGURE = absl_flags.DEFINE_string(
  'figure', None, 'With --compare, draw it to this .png or .svg file.'
)
_MECHANISMS = absl_flags.DEFINE_list(
  'mechanisms',
  None,
  'The mechanisms to compare; all by default, though banded and dense take '
  'minutes.',
)


def _experiment() -> config.ExperimentConfig:
  experiment = flags.experiment_from_flags(experiment_name='account')
  changes: dict[str, Any] = {}
  if experiment.delta is None:
    raise config.ConfigError('--delta is missing; 1e-6 is a usual value.')
  if _NUM_CLIENTS.value is None and experiment.participation.name != 'uniform':
    raise config.ConfigError(
      f'--participation={experiment.participation} needs --num_clients.'
    )
  if (
    experiment.clip_norm is None
    and experiment.clip_norm_from is None
    and 'clip_norm' in _parameters(experiment)
  ):
    # Privacy depends on the clip norm only where updates are rounded.
    changes['clip_norm'] = 1.0
  if (
    experiment.min_separation is None
    and experiment.max_participations == 1
    and _NUM_CLIENTS.value is None
  ):
    # A single participation needs no separation. A schedule has its own.
    changes['min_separation'] = experiment.total_rounds
  return dataclasses.replace(experiment, **changes)


def _parameters(experiment: config.ExperimentConfig) -> Mapping[str, Any]:
  """Returns the parameters of the aggregator's builder."""
  from si_federated.assembly import registries

  registries.check_names(experiment)
  build = registries.builder(experiment, 'aggregator')
  return inspect.signature(build).parameters


def _without_infinity(value: Any) -> Any:
  """Replaces numbers that JSON lacks by null."""
  if isinstance(value, dict):
    return {key: _without_infinity(part) for key, part in value.items()}
  if isinstance(value, list):
    return [_without_infinity(part) for part in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _account(experiment: config.ExperimentConfig) -> tuple[dict, Any]:
  """Returns the JSON object to print, and the mechanism."""
  from si_federated.assembly import (
    checks,
    client_schedule,
    privacy_disclosures,
    private_mechanism,
  )

  checks.check(experiment)
  delta = experiment.delta
  assert delta is not None
  schedule = None
  if _NUM_CLIENTS.value is not None:
    schedule = client_schedule.build_schedule(experiment, _NUM_CLIENTS.value)
  mechanism = private_mechanism.calibrate(
    experiment,
    private_mechanism.build_mechanism(experiment, schedule),
    delta=delta,
    schedule=schedule,
    dimension=_DIMENSION.value,
  )
  if mechanism.record is None:
    raise config.ConfigError(
      f'--aggregator={experiment.aggregator} is not private; choose another.'
    )
  facts = mechanism.record.summary(delta, method=_METHOD.value)
  reasons = privacy_disclosures.simulated_because(experiment, mechanism)
  if _NUM_CLIENTS.value is not None:
    population = private_mechanism.simulated_population(
      experiment, mechanism, _NUM_CLIENTS.value
    )
    facts.update({'simulated_population': population} if population else {})
  return {
    'aggregator': str(experiment.aggregator),
    **{key: facts.pop(key) for key in _FIRST},
    'method': _METHOD.value,
    'simulated': bool(reasons),
    'simulated_because': reasons,
    **facts,
  }, mechanism


def main() -> None:
  """Prints the privacy of a mechanism."""
  if _FIGURE.value and not (
    _COMPARE.value and _FIGURE.value.endswith(('.png', '.svg'))
  ):
    raise config.ConfigError(
      f'--figure={_FIGURE.value} draws the table of --compare to a .png or '
      '.svg file; give both flags, with such an ending.'
    )
  experiment = _experiment()
  facts, mechanism = _account(experiment)
  print(json.dumps(_without_infinity(facts), indent=2), flush=True)
  if _COMPARE.value:
    _compare(facts['epsilon'], facts['delta'], experiment, mechanism.contract)


def _compare(
  epsilon: float,
  delta: float,
  experiment: config.ExperimentConfig,
  contract: Any,
) -> None:
  """Prints a table of mechanisms at equal epsilon, and draws it."""
  from si_federated import privacy
  from si_federated.privacy import epsilon_comparison, monte_carlo

  if not 0 < epsilon < math.inf:
    raise config.ConfigError(
      f'--compare is for mechanisms of equal epsilon, which is {epsilon} here; '
      'give --target_epsilon.'
    )
  known = privacy.comparison.MECHANISMS
  chosen = _MECHANISMS.value or known
  for name in chosen:
    if name not in known:
      raise config.ConfigError(
        f'--mechanisms has {name!r}; {config.near_matches(name, known)}'
      )
  rows = []
  for row in epsilon_comparison.compare_at_epsilon(
    contract,
    target_epsilon=epsilon,
    delta=delta,
    num_clients=_NUM_CLIENTS.value,
    clients_per_round=experiment.clients_per_round,
    mechanisms=chosen,
    cache=os.path.join(files.cache_folder(), 'strategies'),
  ):
    print(f'{row.mechanism}: {row.secs:.1f} s', file=sys.stderr, flush=True)
    rows.append(row)
  print()
  print(epsilon_comparison.format_rows(rows))
  print(
    '\nErrors are standard deviations of the sum of all updates so far, the '
    f'maximum and the root mean square over rounds, at epsilon {epsilon:.4g} '
    f'and delta {delta:.3g}, in units of the clip norm.'
  )
  if _NUM_CLIENTS.value is not None:
    print(
      'Amplified ones hold for secret sampling, for clients added or removed; '
      'the others for clients whose updates become zero. Those of '
      'b-min-separation and balls in bins are by Monte Carlo, with confidence '
      f'{monte_carlo.CONFIDENCE}.'
    )
  if _FIGURE.value:
    _draw(rows, epsilon, _FIGURE.value)


def _draw(rows: Any, epsilon: float, path: str) -> None:
  from si_federated.reporting import mechanism_figure

  name, ending = os.path.splitext(os.path.basename(path))
  picture = mechanism_figure.draw(rows, name, epsilon)
  content = picture.png if ending == '.png' else picture.svg.encode()
  files.write_atomically(path, content)
  print(f'\n{path}')


def run() -> None:
  """Runs the binary."""
  flags.run_main(main)


if __name__ == '__main__':
  run()
