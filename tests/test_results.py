"""README and recipes agree with the study's archived runs.

The archive has the runs of `make reproduce` without their checkpoints.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import tarfile

import pytest

from si_federated import flags, reporting
from si_federated.reporting import privacy_card, tables
from si_federated.reporting import runs as run_files
from si_federated.training import run_folder

_ROOT = pathlib.Path(__file__).parents[1]
_ARCHIVE = _ROOT / 'experiments' / 'results' / 'study.tar.xz'
_RECIPES = [
  f'docstrings.{model}.{aggregator}'
  for model in ('cifg', 'si_cifg', 'transformer', 'si_transformer')
  for aggregator in ('mean', 'blt')
]
_RATES = (0.1, 0.3, 1.0, 3.0)
_SEEDS = 3


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('study')
  with tarfile.open(_ARCHIVE) as archive:
    archive.extractall(folder)
  paths = reporting.find_runs([str(folder / 'laptop')])
  return {path.name: reporting.read_run(path) for path in paths}


def test_runs_have_the_settings_of_the_recipes(runs):
  """A recipe that changes makes the results stale."""
  found = set()
  for recipe in _RECIPES:
    expected = flags.experiment_from_arguments(
      [
        f'--flagfile={_ROOT}/experiments/configs/{recipe}.flags',
        '--experiment_name=x',
      ]
    )
    for rate in _RATES:
      for seed in range(_SEEDS):
        name = f'{recipe}-client_lr={rate:g}-seed={seed}'
        run = runs[name]
        found.add(name)
        held = run_folder.read_config(run.path)
        private = held.aggregator.name != 'mean'
        expected = dataclasses.replace(
          expected,
          experiment_name=held.experiment_name,
          client_learning_rate=rate,
          model_seed=seed,
          client_seed=seed,
          noise_seed=seed if private else expected.noise_seed,
        )
        assert expected.differences(held) == [], name
        assert run.finished, name
        assert run.last_round == held.total_rounds, name
  assert found == set(runs)


def test_the_readme_has_the_table_of_the_report(runs):
  comparison = reporting.compare(list(runs.values()))
  found = dict(reporting.all_tables(comparison))
  table = found['Final perplexity by client learning rate']
  assert len(table.rows) == len(_RECIPES)
  assert table.as_markdown() in (_ROOT / 'README.md').read_text()


def test_archived_private_runs_have_report_cards(runs):
  private = [run for run in runs.values() if run.privacy.get('private')]
  cards = privacy_card.build(reporting.compare(private[:2]))
  for card in cards:
    assert 'earlier version' in dict(card.statements)['Not recorded'][0]
    assert card.guarantee.startswith('ε 8.000 at δ 1e-06')


@pytest.mark.parametrize('recipe', _RECIPES)
def test_heads_of_recipes_state_their_results(runs, recipe):
  head = (_ROOT / 'experiments' / 'configs' / f'{recipe}.flags').read_text()
  head = re.sub(r'\n#? *', ' ', head.partition('\n--')[0])
  repeated = [
    runs[f'{recipe}-client_lr=1-seed={seed}'] for seed in range(_SEEDS)
  ]
  said = tables.mean_and_deviation(repeated, tables.final_value)
  assert f'validation perplexity {said} after' in head
  epsilons = [run.finite(run_files.EPSILON) for run in repeated]
  known = [values.iloc[-1] for values in epsilons if len(values)]
  assert ('epsilon' in head) == bool(known)
  if known:
    assert f'epsilon {max(known):.2f} or less' in head


def test_the_claims_have_the_numbers_of_the_runs(runs):
  """Recomputes the numbers of the column "measured" from the runs."""

  def of(model, aggregator='mean', rate=1):
    kind = f'docstrings.{model}.{aggregator}-client_lr={rate}'
    return [runs[f'{kind}-seed={seed}'] for seed in range(_SEEDS)]

  def said(group, value=tables.final_value):
    return tables.mean_and_deviation(group, value)

  def at_round_50(run):
    return float(run.finite(run_files.PERPLEXITY)[50])

  def diverged(model, rate):
    return sum(run.divergence is not None for run in of(model, rate=rate))

  def cost(model):
    private, public = (
      sum(tables.final_value(run) or 0.0 for run in of(model, aggregator))
      for aggregator in ('blt', 'mean')
    )
    return f'{private / public:.2f}'

  assert not diverged('cifg', 1) + diverged('si_cifg', 1)
  expected = [
    f'CIFG {said(of("cifg"))}, SI-CIFG {said(of("si_cifg"))} after 100 rounds',
    f'after 50 rounds: CIFG {said(of("cifg"), at_round_50)}, '
    f'SI-CIFG {said(of("si_cifg"), at_round_50)}',
    f'at client rate 3: CIFG {diverged("cifg", 3)} of 3 runs, SI-CIFG '
    f'{diverged("si_cifg", 3)} of 3, within 100 rounds; at rate 1 neither',
    f'epsilon 8: CIFG {said(of("cifg", "blt"))}, '
    f'SI-CIFG {said(of("si_cifg", "blt"))}',
    'the perplexity with epsilon 8 over that without: '
    f'CIFG {cost("cifg")}, SI-CIFG {cost("si_cifg")}',
    f'Transformer {said(of("transformer"))}, '
    f'SI Transformer {said(of("si_transformer"))} after 60 rounds',
  ]
  text = (_ROOT / 'experiments' / 'results' / 'README.md').read_text()
  section = text.partition('## Claims of the paper\n')[2].partition('\n## ')[0]
  rows = [line for line in section.splitlines() if line.startswith('| ')][2:]
  assert [row.split(' | ')[1] for row in rows] == expected
