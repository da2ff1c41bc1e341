"""The accounting binary."""

from __future__ import annotations

import functools
import json
import math
import pathlib
import subprocess
import sys
from typing import Any

import dp_accounting
import pytest

from si_federated import experiment
from si_federated.privacy import accountants, truncated_poisson
from tests import tiny

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def account(run_binary):
  """Gives `account(*flags)`: the exit code, the output, the errors."""
  return functools.partial(run_binary, 'account')


_GBOARD = (
  '--noise_multiplier=7',
  '--total_rounds=2000',
  '--max_participations=6',
  '--min_separation=314',
  '--delta=1e-10',
)


def test_a_published_tree(account):
  """Gboard's: rho 0.81; epsilon 8.90 by RDP (Xu et al. 2023, table 1)."""
  code, output, errors = account('--aggregator=tree', *_GBOARD, '--method=rdp')
  assert code == 0, errors
  found = json.loads(output)
  assert found['rho'] == pytest.approx(0.81, abs=0.005)
  assert found['epsilon'] == pytest.approx(8.90, abs=0.005)
  assert found['delta'] == 1e-10
  assert found['noise_multiplier'] == 7
  # rho = (sensitivity / noise)^2 / 2.
  assert found['sensitivity'] == pytest.approx(7 * math.sqrt(2 * found['rho']))
  assert found['contract']['min_separation'] == 314


def test_a_recipe(account):
  recipe = 'experiments/configs/docstrings.si_cifg.blt.flags'
  code, output, errors = account(f'--flagfile={recipe}', '--num_clients=3531')
  assert code == 0, errors
  found = json.loads(output)
  # As stated in the recipe.
  assert found['epsilon'] == pytest.approx(8, rel=1e-3)
  assert found['contract']['min_separation'] == 25


def test_noise_of_a_budget_and_the_comparison(account):
  code, output, errors = account(
    '--aggregator=gaussian',
    '--target_epsilon=2',
    '--total_rounds=64',
    '--max_participations=1',
    '--delta=1e-6',
    '--compare',
    '--mechanisms=gaussian,tree,blt',
  )
  assert code == 0, errors
  found, _, table = output.partition('\n}\n')
  found = json.loads(found + '}')
  assert found['noise_multiplier'] == pytest.approx(2.2305, abs=5e-5)
  rows = {
    cells[0]: [float(cell) for cell in cells[1:5]]
    for line in table.splitlines()
    if line.startswith('| ')
    for cells in [[cell.strip() for cell in line.strip('|').split('|')]]
    if cells[0] in ('gaussian', 'tree', 'blt')
  }
  # The sum of t independent rows has variance t, here times that of the noise
  # for epsilon 2.
  assert rows['gaussian'] == pytest.approx(
    [1, 2.2305, 8 * 2.2305, math.sqrt(sum(range(65)) / 64) * 2.2305], abs=1e-3
  )
  assert rows['blt'][3] < rows['tree'][3] < rows['gaussian'][3]
  for row in rows.values():
    assert row[1] == pytest.approx(2.2305 * row[0], rel=1e-3)


def test_the_comparison_is_at_one_epsilon_with_and_without_sampling(
  account, tmp_path
):
  picture = tmp_path / 'errors.svg'
  code, output, errors = account(
    '--aggregator=tree',
    '--target_epsilon=0.5',
    '--total_rounds=8',
    '--participation=fixed_cycles',
    '--num_clients=20',
    '--clients_per_round=5',
    '--delta=1e-2',
    '--compare',
    '--mechanisms=tree,gaussian,banded_toeplitz',
    f'--figure={picture}',
  )
  assert code == 0, errors
  found, _, table = output.partition('\n}\n')
  found = json.loads(found + '}')
  rows = {
    cells[0]: cells
    for line in table.splitlines()
    for cells in [[cell.strip() for cell in line.strip('| ').split('|')]]
    if len(cells) > 5
  }
  # The requested mechanism is that of the table.
  assert float(rows['tree'][2]) == pytest.approx(
    found['noise_multiplier'], abs=5e-4
  )
  assert rows['gaussian'][5] == 'Poisson' and rows['tree'][5] == ''
  assert rows['banded_toeplitz'][5].startswith('cyclic Poisson')
  # A quarter of the clients, instead of two participations of all of them.
  assert float(rows['gaussian'][8]) < float(rows['gaussian'][4])
  assert 'at epsilon 0.5 and delta 0.01' in table
  assert '</svg>' in picture.read_text()


def test_two_releases_a_round_need_more_noise(account):
  found = {}
  for algorithm in ('fed_avg', 'mime_lite'):
    code, out, _ = account(
      f'--algorithm={algorithm}',
      '--aggregator=gaussian',
      '--target_epsilon=8',
      '--total_rounds=100',
      '--max_participations=4',
      '--min_separation=25',
      '--delta=1e-6',
    )
    assert not code
    found[algorithm] = json.loads(out)
  # Two releases are one with the square root of two times the sensitivity.
  noise = {name: one['noise_multiplier'] for name, one in found.items()}
  assert noise['fed_avg'] == pytest.approx(1.3059, abs=5e-4)
  assert noise['mime_lite'] == pytest.approx(
    2**0.5 * noise['fed_avg'], rel=1e-3
  )
  assert found['mime_lite']['epsilon'] == pytest.approx(8, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(experiment.REGISTRIES['algorithm']))
def test_training_promises_what_it_says_for_every_algorithm(account, name):
  flags: dict[str, Any] = {
    'algorithm': name,
    'aggregator': 'gaussian',
    'clip_norm': 1.0,
    'target_epsilon': 3.0,
    'participation': 'fixed_cycles',
    'min_separation': 2,
    'total_rounds': 4,
    'delta': 1e-5,
  }
  if name == 'expert_personalization':
    flags['algorithm'] = f'{name}:num_clients=2'
  built = experiment.build(tiny.tiny_config(**flags))
  privacy = built.ledger.summary()
  code, output, errors = account(
    *(
      argument
      for argument in tiny.tiny_flags(**flags)
      if not argument.startswith('--experiment_name')
    ),
    f'--num_clients={privacy["num_clients"]}',
  )
  assert code == 0, errors
  found = json.loads(output)
  for key, value in privacy['promised'].items():
    assert found[key] == value
  # Two participations, of one or two releases each.
  releases = 2 if name == 'mime_lite' else 1
  assert found['sensitivity'] == pytest.approx((2 * releases) ** 0.5)


def test_groups_that_clients_draw_amplify_with_a_stated_confidence(account):
  flags = (
    '--aggregator=blt:num_buffers=1',
    '--total_rounds=20',
    '--clients_per_round=10',
    '--num_clients=100',
    '--min_separation=10',
    '--noise_multiplier=2',
    '--delta=1e-5',
  )
  facts, plain = (
    json.loads(account(*flags, f'--participation={name}')[1])
    for name in ('balls_in_bins', 'fixed_cycles')
  )
  assert facts['epsilon_confidence'] == 0.999
  assert facts['amplification'] == {
    'kind': 'balls_in_bins',
    'probability': 0.1,
    'groups': 10,
  }
  assert facts['epsilon'] < 0.8 * plain['epsilon']
  assert facts['epsilon_without_amplification'] == plain['epsilon']
  assert facts['simulated'] and not plain['simulated']
  assert plain['amplification'] is None


def test_poisson_sampling_is_that_of_dp_accounting(account):
  code, output, errors = account(
    '--aggregator=gaussian',
    '--noise_multiplier=1',
    '--participation=poisson',
    '--num_clients=10000',
    '--clients_per_round=100',
    '--total_rounds=500',
    '--delta=1e-5',
  )
  assert code == 0, errors
  accountant = dp_accounting.pld.PLDAccountant()
  accountant.compose(
    dp_accounting.PoissonSampledDpEvent(
      0.01, dp_accounting.GaussianDpEvent(1.0)
    ),
    500,
  )
  found = json.loads(output)
  assert found['epsilon'] == pytest.approx(accountant.get_epsilon(1e-5))
  assert found['amplification']['probability'] == 0.01


def test_a_single_participation_does_not_change_the_schedule(account):
  flags = (
    '--aggregator=tree',
    '--noise_multiplier=1',
    '--total_rounds=20',
    '--max_participations=1',
    '--delta=1e-5',
  )
  # 120 clients make cycles of 30 rounds of 4, as in training.
  schedule = ('--participation=fixed_cycles', '--clients_per_round=4')
  code, output, errors = account(*flags, *schedule, '--num_clients=120')
  assert code == 0, errors
  assert json.loads(output)['contract']['min_separation'] == 30
  assert json.loads(account(*flags)[1])['contract']['min_separation'] == 20


def test_a_simulated_cohort_needs_a_larger_population(account):
  flags = (
    '--aggregator=gaussian',
    '--noise_multiplier=1',
    '--participation=poisson',
    '--num_clients=1000',
    '--clients_per_round=10',
    '--total_rounds=5',
    '--delta=1e-5',
  )
  code, output, errors = account(*flags, '--noise_cohort_size=1000')
  assert code == 0, errors
  found = json.loads(output)
  assert found['simulated_population'] == {
    'num_clients': 100_000,
    'delta': 1e-5,
    'epsilon': pytest.approx(found['epsilon']),
  }
  assert 'simulated_population' not in json.loads(account(*flags)[1])


@pytest.mark.slow
def test_training_promises_what_it_says_of_cohorts_of_a_maximum_size(
  account, tmp_path
):
  flags: dict[str, Any] = {
    'aggregator': 'gaussian',
    'clip_norm': 1.0,
    'noise_multiplier': 1.0,
    'participation': 'poisson:max_cohort_size=5',
    'clients_per_round': 4,
    'total_rounds': 3,
    'delta': 1e-5,
  }
  experiment.run(tiny.tiny_config(**flags), str(tmp_path))
  privacy = json.loads((tmp_path / 'x' / 'privacy.json').read_text())
  promised, clients = privacy['promised'], privacy['num_clients']
  assert promised['amplification'] == {
    'kind': 'poisson',
    'probability': 4 / clients,
    'groups': 1,
    'max_cohort_size': 5,
    'num_clients': clients,
  }
  code, output, errors = account(
    *(f'--{name}={value}' for name, value in flags.items()),
    f'--num_clients={clients}',
  )
  assert code == 0, errors
  found = json.loads(output)
  for name in ('epsilon', 'amplification', 'neighbouring_relation', 'profile'):
    assert found[name] == promised[name]
  event = truncated_poisson.TruncatedPoissonDpEvent(clients, 4 / clients, 5, 1)
  accountant = accountants.PldAccountant()
  accountant.compose(event, 3)
  assert found['epsilon'] == pytest.approx(accountant.get_epsilon(1e-5))


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('--aggregator=tree', *_GBOARD[:-1]), '--delta is missing'),
    (('--aggregator=mean', '--delta=1e-6'), 'is not private'),
    (('--aggregator=tree', '--delta=1e-6', '--figure=a.svg'), 'give both'),
    (
      ('--aggregator=blt', '--delta=1e-6', '--noise_multiplier=1'),
      'blt needs min_separation',
    ),
    (
      (
        '--aggregator=gaussian',
        '--delta=1e-6',
        '--noise_multiplier=1',
        '--participation=poisson',
      ),
      'needs --num_clients',
    ),
  ],
)
def test_usage_errors(account, flags, message):
  code, output, errors = account(*flags)
  assert code == 2
  assert message in errors and 'Traceback' not in errors
  assert output == ''


def test_help_lists_the_flags_that_matter():
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.account', '--help'],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 0
  assert '--noise_multiplier' in done.stdout
  assert '--sequence_length' not in done.stdout


@pytest.mark.slow
def test_a_closed_pipe_is_no_error():
  done = subprocess.run(
    [
      'bash',
      '-c',
      '"$@" | true; exit ${PIPESTATUS[0]}',
      'bash',
      *(sys.executable, '-m', 'experiments.account', '--aggregator=gaussian'),
      *('--noise_multiplier=1', '--delta=1e-6'),
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 141
  assert done.stderr == ''
