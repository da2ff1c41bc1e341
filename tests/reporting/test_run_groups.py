"""Tests of shared and differing settings, and of repeated runs."""

from __future__ import annotations

import pytest

from si_federated import reporting
from si_federated.reporting import run_groups


@pytest.fixture
def compare(make_run):
  """Returns a function from keyword dictionaries to their comparison."""

  def build(*kinds):
    return reporting.compare(
      [
        reporting.read_run(make_run(kind.pop('name', f'run{i}'), **kind))
        for i, kind in enumerate(map(dict, kinds))
      ]
    )

  return build


def test_parts_are_split_into_name_and_options(make_run):
  run = reporting.read_run(
    make_run(
      'a',
      server_optimizer='adam:betas=(0.9,0.99),epsilon=1e-3',
      delta=1e-06,
      aggregator=None,
    )
  )
  found = run_groups.settings_of(run)
  assert found['model'] == 'cifg'
  assert found['model.units'] == '256'
  assert found['server_optimizer.betas'] == '(0.9,0.99)'
  assert found['server_optimizer.epsilon'] == '0.001'
  assert found['delta'] == '1e-06'
  assert not {'experiment_name', 'root_output_dir', 'aggregator'} & set(found)
  assert next(iter(found)) == 'model'


def test_one_run_shares_everything(compare):
  comparison = compare({})
  assert comparison.differing == ()
  assert comparison.shared['client_learning_rate'] == '1'
  assert [group.label for group in comparison.groups] == ['cifg']


def test_only_the_model_differs(compare):
  comparison = compare({}, {'model': 'si_cifg:units=256,embedding_size=96'})
  assert comparison.differing == ('model',)
  assert comparison.shared['model.units'] == '256'
  assert 'model' not in comparison.shared
  assert [group.label for group in comparison.groups] == ['cifg', 'si_cifg']


def test_same_value_written_differently_is_the_same(compare):
  comparison = compare(
    {'server_optimizer': 'adam:epsilon=0.001'},
    {'server_optimizer': 'adam:epsilon=1e-3', 'client_learning_rate': 1},
  )
  assert comparison.differing == ()


def test_runs_that_differ_in_seeds_only_are_one_group(compare):
  comparison = compare(
    {'model_seed': 0},
    {'model_seed': 0, 'client_learning_rate': 3.0},
    {'model_seed': 1},
    {'model_seed': 1, 'client_learning_rate': 3.0},
    {'model_seed': 2, 'client_seed': 2},
  )
  assert comparison.differing == (
    'client_learning_rate',
    'client_seed',
    'model_seed',
  )
  assert [
    (group.label, [run.name for run in group.runs])
    for group in comparison.groups
  ] == [
    ('client lr 1', ['run0', 'run2', 'run4']),
    ('client lr 3', ['run1', 'run3']),
  ]


def test_same_settings_and_seeds_are_not_repetitions(compare):
  comparison = compare({'name': 'old'}, {'name': 'new'})
  assert [group.label for group in comparison.groups] == ['old', 'new']


def test_runs_without_settings_are_groups_of_their_own(compare):
  comparison = compare({'config': False}, {'config': False}, {'model_seed': 5})
  assert [len(group.runs) for group in comparison.groups] == [1, 1, 1]
  labels = [group.label for group in comparison.groups]
  assert labels == ['run0', 'run1', 'cifg']
  assert comparison.shared['model_seed'] == '5'


def test_missing_setting_is_a_difference(compare):
  comparison = compare({}, {'clip_norm': 0.3})
  assert comparison.differing == ('clip_norm',)
  assert [group.settings['clip_norm'] for group in comparison.groups] == [
    run_groups.MISSING,
    '0.3',
  ]


def test_short_and_full_names():
  assert run_groups.heading('client_learning_rate') == 'client lr'
  assert run_groups.full_name('client_learning_rate') == 'client learning rate'
  assert run_groups.heading('model.units') == 'units'
  assert run_groups.heading('server_optimizer.beta_2') == (
    'server optimizer beta 2'
  )
