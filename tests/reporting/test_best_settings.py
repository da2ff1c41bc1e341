"""Tests of reports on sweeps: the best settings, and curves."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from si_federated import reporting
from si_federated.reporting import best_settings, figures

_FINALS = {
  # The best rate of a standard model is 0.3; 3 is too large for two of three
  # seeds.
  ('cifg', 0.1): (160.0, 161.0, 162.0),
  ('cifg', 0.3): (120.0, 122.0, 124.0),
  ('cifg', 3.0): (100.0, math.inf, math.inf),
  ('si_cifg', 0.1): (150.0, 150.0, 150.0),
  ('si_cifg', 0.3): (130.0, 130.0, 130.0),
  ('si_cifg', 3.0): (110.0, 112.0, 120.0),
}


def _read(folders):
  return reporting.compare([reporting.read_run(folder) for folder in folders])


@pytest.fixture
def sweep(make_run):
  """Two models at three rates with three seeds, written out above."""
  return _read(
    make_run(
      f'{model}-{rate}-{seed}',
      model=f'{model}:units=256',
      client_learning_rate=rate,
      model_seed=seed,
      client_seed=seed,
      perplexities=(4000.0, 700.0, final),
    )
    for (model, rate), finals in _FINALS.items()
    for seed, final in enumerate(finals)
  )


def _cells(table):
  return dict(zip(table.columns, zip(*table.rows)))


def test_the_best_setting_of_each_model_over_its_seeds(sweep):
  table = best_settings.best_table(sweep)
  assert table is not None
  assert _cells(table) == {
    'kind': ('cifg', 'si_cifg'),
    # One run of cifg at rate 3 is the best, but its setting is not.
    'best client lr': ('0.3', '3'),
    'of settings': ('3', '3'),
    'seeds': ('3', '3'),
    'final perplexity': ('122.0 ± 2.00', '114.0 ± 5.29'),
    'diverged, all settings': ('2 of 9 runs', '0 of 9 runs'),
  }


def test_unfinished_runs_do_not_count_if_others_have_finished(make_run):
  comparison = _read(
    make_run(
      f'{rate}-{seed}',
      client_learning_rate=rate,
      model_seed=seed,
      client_seed=seed,
      perplexities=(4000.0, 700.0, final),
      finished=finished,
    )
    for rate, seed, final, finished in (
      (0.1, 0, 100.0, True),
      (0.1, 1, 600.0, False),
      (0.3, 0, 120.0, True),
      (1.0, 0, 500.0, False),
    )
  )
  table = best_settings.rate_table(comparison)
  cells = _cells(table)
  assert cells['0.1'] == ('100.0',)
  # Without others, it counts; the report says that it is unfinished.
  assert cells['1'] == ('500.0',)
  best = best_settings.best_table(comparison)
  assert best is not None
  assert _cells(best)['best client lr'] == ('0.1',)


def test_the_table_of_rates_has_means_deviations_and_divergence(sweep):
  table = best_settings.rate_table(sweep)
  assert (
    best_settings.rate_heading(sweep)
    == 'Final perplexity by client learning rate'
  )
  assert _cells(table) == {
    'kind': ('cifg', 'si_cifg'),
    '0.1': ('161.0 ± 1.00', '150.0 ± 0.00'),
    '0.3': ('122.0 ± 2.00', '130.0 ± 0.00'),
    '3': ('2 of 3 diverged', '114.0 ± 5.29'),
  }


def test_the_curve_over_rates_marks_what_diverged(sweep):
  drawn = {one.name: one for one in figures.draw_all(sweep)}
  picture = drawn['final_by_client_learning_rate']
  texts = re.findall(r'<!-- (.*?) -->', picture.svg)
  assert {'0.1', '0.3', '3', 'cifg', 'si_cifg'} <= set(texts)
  assert 'A cross at the top: 2 runs diverged there.' in picture.caption
  assert 'Line: mean over seeds' in picture.caption


def test_many_curves_over_rates_have_a_picture_for_each_aggregator(make_run):
  comparison = _read(
    make_run(
      f'{model}-{aggregator}-{rate}',
      model=f'{model}:units={units}',
      aggregator=aggregator,
      client_learning_rate=rate,
      perplexities=(4000.0, 500.0, 200.0 + units),
    )
    for aggregator in ('mean', 'blt:num_buffers=2')
    for model, units in (('cifg', 16), ('lstm', 32), ('gru', 64))
    for rate in (0.1, 0.3, 1.0)
  )
  drawn = {one.name: one for one in figures.draw_all(comparison)}
  assert 'final_by_client_learning_rate' not in drawn
  for aggregator in ('mean', 'blt'):
    picture = drawn[f'final_by_client_learning_rate_{aggregator}']
    texts = re.findall(r'<!-- (.*?) -->', picture.svg)
    # Entries have the order of the curves' ends.
    assert [text for text in texts if text in ('cifg', 'lstm', 'gru')] == [
      'gru', 'lstm', 'cifg',
    ]  # fmt: skip
    assert f'with aggregator {aggregator}.' in picture.caption


def test_curves_of_a_large_sweep_are_those_of_the_best(make_run):
  folders = [
    make_run(
      f'{model}-{rate}',
      model=f'{model}:units=256',
      client_learning_rate=rate,
      perplexities=(4000.0, 500.0, 100.0 + abs(math.log(rate / best))),
    )
    for model, best in (('cifg', 0.3), ('si_cifg', 1.0))
    for rate in (0.1, 0.3, 1.0, 3.0)
  ]
  drawn = {one.name: one for one in figures.draw_all(_read(folders))}
  texts = re.findall(r'<!-- (.*?) -->', drawn['perplexity_by_round'].svg)
  legend = ' '.join(texts)
  assert 'cifg, client lr 0.3' in legend and 'si_cifg, client lr 1' in legend
  assert legend.count('client lr') == 2
  assert 'lowest final perplexity' in drawn['perplexity_by_round'].caption


def _private(make_run, **given):
  """Writes a run whose rows have an epsilon."""
  epsilon = given.pop('epsilon')
  folder = make_run(**given)
  path = folder / 'metrics.csv'
  header, *rows = path.read_text().splitlines()
  rows = [
    f'{row},{epsilon * int(row.split(",")[0]) / 30 or ""}' for row in rows
  ]
  path.write_text('\n'.join([header + ',privacy/epsilon', *rows]) + '\n')
  return folder


def test_against_epsilon_the_best_of_each_budget(make_run):
  folders = [
    _private(
      make_run,
      name=f'{model}-{epsilon}-{rate}',
      model=model,
      aggregator='blt:num_buffers=4',
      target_epsilon=epsilon,
      client_learning_rate=rate,
      perplexities=(4000.0, 500.0, 300.0, 200.0 / epsilon + 10 * rate),
      epsilon=epsilon,
    )
    for model in ('cifg', 'si_cifg')
    for epsilon in (2.0, 8.0)
    for rate in (0.1, 1.0)
  ]
  folders.append(
    make_run('plain', aggregator='mean', model='cifg', client_learning_rate=0.1)
  )
  comparison = _read(folders)
  drawn = {one.name: one for one in figures.draw_all(comparison)}
  assert 'perplexity_by_epsilon' not in drawn
  picture = drawn['final_by_epsilon']
  texts = re.findall(r'<!-- (.*?) -->', picture.svg)
  assert {'2', '8', 'ε'} <= set(texts)
  assert any('not private' in text for text in texts)
  table = best_settings.best_table(comparison)
  assert table is not None
  cells = _cells(table)
  assert cells['ε'] == ('2', '8', '2', '8', '–')
  assert cells['final perplexity'] == (
    '101.0',
    '26.0',
    '101.0',
    '26.0',
    '200.0',
  )
  assert cells['best client lr'] == ('0.1',) * 5


def test_against_epsilon_spent_where_all_have_one_budget(make_run):
  comparison = _read(
    [
      _private(make_run, name='a', epsilon=8.0),
      _private(make_run, name='b', epsilon=8.0, model='lstm'),
    ]
  )
  drawn = {one.name: one for one in figures.draw_all(comparison)}
  picture = drawn['perplexity_by_epsilon']
  assert 'ε spent so far' in re.findall(r'<!-- (.*?) -->', picture.svg)


@pytest.mark.parametrize(
  ('rates', 'expected'),
  [([1.0, 3.0], None), ([0.3, 1.0, 3.0], 'client_learning_rate')],
)
def test_a_sweep_has_three_rates(make_run, rates, expected):
  comparison = _read(
    make_run(f'run{rate}', client_learning_rate=rate) for rate in rates
  )
  assert best_settings.swept_rate(comparison) == expected


def test_report_of_runs_that_all_diverge(make_run):
  comparison = _read(
    make_run(
      f'r{rate}', client_learning_rate=rate, perplexities=(9.0, math.inf)
    )
    for rate in (1.0, 3.0, 10.0)
  )
  table = best_settings.rate_table(comparison)
  assert table is not None
  assert table.rows == (('cifg', *['1 of 1 diverged'] * 3),)
  names = [one.name for one in figures.draw_all(comparison)]
  assert 'final_by_client_learning_rate' not in names


def test_indistinguishable_runs_are_kinds_of_their_own(make_run):
  comparison = _read([make_run('a'), make_run('b')])
  assert [kind.label for kind in best_settings.find_kinds(comparison)] == [
    'a',
    'b',
  ]
  assert best_settings.best_table(comparison) is None


def test_labels_leave_out_settings_determined_by_others(make_run):
  private: dict[str, Any] = {
    'aggregator': 'blt:num_buffers=4',
    'clip_norm': 1.0,
    'target_epsilon': 8.0,
    'server_optimizer': 'sgdm',
    'server_learning_rate': 3.0,
    'min_separation': 25,
  }
  comparison = _read(
    make_run(f'{model}{len(more)}{rate}', model=model,
             client_learning_rate=rate, **more)
    for model in ('cifg:units=256', 'si_cifg:units=128')
    for more in ({'aggregator': 'mean'}, private)
    for rate in (0.3, 1.0)
  )  # fmt: skip
  assert [group.label for group in comparison.groups][:3] == [
    'cifg, client lr 0.3, mean',
    'cifg, client lr 1, mean',
    'cifg, client lr 0.3, blt',
  ]
  assert [kind.label for kind in best_settings.find_kinds(comparison)] == [
    *('cifg, mean', 'cifg, blt', 'si_cifg, mean', 'si_cifg, blt'),
  ]
