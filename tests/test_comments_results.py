"""Documents and recipes agree with the archived runs on comments of Linux.

The archive has runs of recipes, the shorter runs of the search for learning
rates, and runs with options of SI-CIFG, without checkpoints.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import tarfile

import pytest

from si_federated import flags, reporting
from si_federated.reporting import runs as run_files
from si_federated.reporting import tables
from si_federated.training import run_folder

_ROOT = pathlib.Path(__file__).parents[1]
_RESULTS = _ROOT / 'experiments' / 'results'
_NAMES = {'cifg': 'CIFG', 'si_cifg': 'SI-CIFG'}
_RECIPES = [
  f'comments.{model}.{aggregator}'
  for aggregator in ('mean', 'blt')
  for model in _NAMES
]
_ROUNDS = (50, 100, 200, 300, 500, 1_000, 1_500, 2_000)


# Runs of `docstrings.si_cifg.mean` with these flags, in the order of the table.
_OPTIONS = (
  ('base', ''),
  ('groups2', 'num_groups=2'),
  ('groups4', 'num_groups=4'),
  ('groups8', 'num_groups=8'),
  ('groups16', 'num_groups=16'),
  ('groups64', 'num_groups=64'),
  ('forget1', 'initial_scale=1,unit_forget_bias=true'),
  ('cell3', 'rate_factor=3,rate_factor_variables=recurrent'),
  ('cell03', 'rate_factor=0.3,rate_factor_variables=recurrent'),
  ('embedding3', 'rate_factor=3,rate_factor_variables=embedding'),
  ('embedding03', 'rate_factor=0.3,rate_factor_variables=embedding'),
  ('warmup20', 'constant:warmup_rounds=20'),
  ('cosine', 'cosine'),
  ('serverdecay', 'adamw:beta_2=0.99,epsilon=0.001,weight_decay=0.1'),
  ('clientdecay', 'sgd:weight_decay=0.01'),
  ('clientdecayclip', 'sgd:weight_decay=0.01,relative_clip=4'),
  ('clientdecay1e-4', 'sgd:weight_decay=0.0001'),
  ('clientdecay1e-4clip', 'sgd:weight_decay=0.0001,relative_clip=4'),
)
# Sizes and options that all runs of a kind of model have.
_CIFG = ('units=256', 'embedding_size=96', 'normalize_embedding=true')
_TRANSFORMER = (
  'embedding_size=128',
  'num_heads=4',
  'intermediate_dim=512',
  'num_layers=2',
)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('study')
  with tarfile.open(_RESULTS / 'comments.tar.xz') as archive:
    archive.extractall(folder)
  root = folder / 'comments'
  paths = reporting.find_runs(
    [str(root), str(root / 'search'), str(root / 'options')]
  )
  return {
    str(path.relative_to(root)): reporting.read_run(path) for path in paths
  }


def _at(run, round_num):
  values = run.finite(run_files.PERPLEXITY)
  return f'{values[round_num]:.1f}' if round_num in values else '–'


def _section(heading):
  text = (_RESULTS / 'README.md').read_text()
  return text.partition(f'\n## {heading}\n')[2].partition('\n## ')[0]


@pytest.mark.parametrize('recipe', _RECIPES)
def test_runs_have_the_settings_of_the_recipes(runs, recipe):
  """A recipe that changes makes the results stale."""
  expected = flags.experiment_from_arguments(
    [
      f'--flagfile={_ROOT}/experiments/configs/{recipe}.flags',
      '--experiment_name=x',
    ]
  )
  held = run_folder.read_config(runs[recipe].path)
  expected = dataclasses.replace(
    expected,
    experiment_name=held.experiment_name,
    diagnostics=held.diagnostics,
  )
  assert expected.differences(held) == []
  assert held.total_rounds == _ROUNDS[-1]
  assert runs[recipe].finished
  assert runs[recipe].last_round == held.total_rounds


@pytest.mark.parametrize('recipe', _RECIPES)
def test_heads_of_recipes_state_their_results(runs, recipe):
  head = (_ROOT / 'experiments' / 'configs' / f'{recipe}.flags').read_text()
  head = re.sub(r'\n#? *', ' ', head.partition('\n--')[0])
  final = runs[recipe].finite(run_files.PERPLEXITY)
  assert (
    f'validation perplexity {final.iloc[-1]:.1f} after {final.index[-1]:,} '
    'rounds'
  ) in head
  epsilons = runs[recipe].finite(run_files.EPSILON)
  assert ('epsilon' in head) == bool(len(epsilons))
  if len(epsilons):
    target = runs[recipe].config['target_epsilon']
    assert f'epsilon {target:.2f} or less' in head
    assert epsilons.max() <= target


def test_the_table_of_rounds(runs):
  rows = [
    f'| `{recipe}` | '
    + ' | '.join(_at(runs[recipe], n) for n in _ROUNDS)
    + ' |'
    for recipe in _RECIPES
  ]
  assert '\n'.join(rows) in _section('Thousands of rounds')


def _model(run):
  name, _, options = run.config['model'].partition(':')
  common = _TRANSFORMER if name.endswith('transformer') else _CIFG
  kept = sorted(set(options.split(',')) - set(common))
  return name + ':' * bool(kept) + ','.join(kept)


def test_the_table_of_the_search(runs):
  rows = []
  for name, run in runs.items():
    if name.startswith('search/'):
      clients, server = (
        run.config[f'{place}_learning_rate'] for place in ('client', 'server')
      )
      ends = [_at(run, n) for n in (100, 300)]
      if run.divergence:
        ends = ['diverged', '']
      aggregator = run.config['aggregator'].partition(':')[0]
      key = (_model(run), aggregator, clients, server)
      rows.append((key, ends))
  assert len(rows) > 8
  expected = [
    f'| `{model}` | {aggregator} | {clients:g} | {server:g} | '
    f'{" | ".join(ends)} |'
    for (model, aggregator, clients, server), ends in sorted(rows)
  ]
  section = _section('Thousands of rounds')
  assert '\n'.join(expected).replace('|  |', '| |') in section


def test_the_table_of_options(runs):
  rows = []
  for name, words in _OPTIONS:
    run = runs[f'options/{name}']
    settings = ' '.join(
      str(run.config[flag])
      for flag in (
        'model',
        'client_optimizer',
        'server_optimizer',
        'server_learning_rate_schedule',
      )
    )
    assert words in settings
    assert run.config['server_learning_rate'] == 0.1
    final = 'diverged' if run.divergence else tables.final_perplexity(run)
    assert run.divergence or run.last_round == 100
    rows.append(f'| {f"`{words}`" if words else "none"} | {final} |')
  assert '\n'.join(rows) in _section('Options of SI-CIFG')


def test_the_claims_have_the_numbers_of_the_runs(runs):
  cifg, si_cifg, private, si_private = (runs[name] for name in _RECIPES)
  fast = runs['search/cifg.3.0.01']
  final = tables.final_perplexity
  assert not any(run.divergence for run in (cifg, si_cifg, private, si_private))

  def cost(run, public):
    ends = [one.finite(run_files.PERPLEXITY).iloc[-1] for one in (run, public)]
    return f'{ends[0] / ends[1]:.2f}'

  expected = [
    f'CIFG {final(cifg)}, SI-CIFG {final(si_cifg)}',
    f'after 50 rounds: CIFG {_at(cifg, 50)}, SI-CIFG {_at(si_cifg, 50)}; '
    f'after 500: {_at(cifg, 500)}, {_at(si_cifg, 500)}',
    'neither at client rate 1; at 3 after 100 rounds: CIFG '
    f'{_at(fast, 100)} ({_at(fast, 0)} at the start), SI-CIFG '
    f'{_at(runs["search/si_cifg.groups4.scale3.3.0.01"], 100)}',
    f'epsilon 8: CIFG {final(private)}, SI-CIFG {final(si_private)}',
    'the perplexity with epsilon 8 over that without: '
    f'CIFG {cost(private, cifg)}, SI-CIFG {cost(si_private, si_cifg)}',
    'not run',
  ]
  rows = [
    line
    for line in _section('Claims of the paper').splitlines()
    if line.startswith('| ')
  ][2:]
  assert [row.split(' | ')[2] for row in rows] == expected


def test_the_text_on_privacy_has_the_numbers_of_the_runs(runs):
  cifg, si_cifg, private, si_private = (runs[name] for name in _RECIPES)

  def percent(run, other, round_num=_ROUNDS[-1]):
    values = (
      one.finite(run_files.PERPLEXITY)[round_num] for one in (run, other)
    )
    return 100 * (next(values) / next(values) - 1)

  behind = {n: percent(si_private, private, n) for n in _ROUNDS}
  large = runs['search/si_cifg.groups4.blt.3']
  text = ' '.join(_section('Thousands of rounds').split())
  assert (
    f'Privacy costs CIFG {percent(private, cifg):.1f} % of perplexity at round '
    f'2,000, and SI-CIFG {percent(si_private, si_cifg):.1f} %'
  ) in text
  assert f'{behind[300]:.0f} %' == f'{behind[500]:.0f} %'
  assert (
    f'SI-CIFG is {behind[300]:.0f} % behind CIFG at rounds 300 and 500, '
    f'{behind[1_000]:.0f} % at 1,000, {behind[1_500]:.1f} % at 1,500 and '
    f'{behind[2_000]:.1f} % at 2,000.'
  ) in text
  assert (
    f'gave {_at(large, 650)} after 650 rounds, where scale 3 with rate 1 gives '
    f'{_at(si_private, 650)} (CIFG {_at(private, 650)})'
  ) in text


def test_the_root_readme_has_the_numbers_of_the_runs(runs):
  cifg, si_cifg = (
    float(runs[name].finite(run_files.PERPLEXITY).iloc[-1])
    for name in _RECIPES[:2]
  )
  text = (_ROOT / 'README.md').read_text()
  assert f'[{100 * (si_cifg / cifg - 1):.0f} % after 2,000 rounds]' in text
  assert f'({si_cifg:.1f} against {cifg:.1f})' in text
