"""Tests of the runs of a sweep, their names, and how plans are extended."""

from __future__ import annotations

import json

import pytest

from si_federated import config, flags, sweeps
from si_federated.sweeps import Axis, Base, Range

_PLAIN = Base('', ())


def _axis(flag, *values):
  return Axis((flag,), tuple((value,) for value in values))


_RATES = _axis('client_learning_rate', '0.1', '0.3')


def _plan(axes=(_RATES,), bases=(_PLAIN,), **options):
  return sweeps.build_plan(
    bases, axes, flags.experiment_from_arguments, **options
  )


def _names(plan):
  return [run.experiment_name for run in plan.runs]


def test_a_grid_is_every_combination_first_seeds_first():
  models = _axis('model', 'cifg:units=8', 'si_cifg:units=8,num_layers=2')
  plan = _plan([models, _RATES], num_seeds=2)
  assert _names(plan) == [
    f'{model}-client_lr={rate}-seed={seed}'
    for seed in (0, 1)
    for model in ('cifg', 'si_cifg')
    for rate in ('0.1', '0.3')
  ]
  last = plan.runs[-1]
  assert str(last.model) == 'si_cifg:units=8,num_layers=2'
  assert last.client_learning_rate == 0.3
  assert (last.model_seed, last.client_seed, last.noise_seed) == (1, 1, None)
  assert len(set(plan.runs)) == 8


def test_names_keep_the_options_in_which_models_differ():
  models = _axis(
    'model',
    'cifg:units=8,num_layers=2',
    'cifg:units=16,num_layers=2,embedding_size=8',
    'lstm:units=8',
  )
  assert _names(_plan([models])) == [
    'cifg+units=8',
    'cifg+units=16+embedding_size=8',
    'lstm',
  ]


def test_linked_flags_vary_together():
  linked = Axis(
    ('model', 'client_learning_rate'), (('cifg', '0.3'), ('si_cifg', '1'))
  )
  plan = _plan([linked, _axis('total_rounds', '5', '6')])
  assert [
    (run.model.name, run.client_learning_rate, run.total_rounds)
    for run in plan.runs
  ] == [
    ('cifg', 0.3, 5),
    ('cifg', 0.3, 6),
    ('si_cifg', 1.0, 5),
    ('si_cifg', 1.0, 6),
  ]
  assert _names(plan)[0] == 'cifg-client_lr=0.3-total_rounds=5'
  drawn = _plan([linked], num_random=20)
  assert {(run.model.name, run.client_learning_rate) for run in drawn.runs} == {
    ('cifg', 0.3),
    ('si_cifg', 1.0),
  }


def test_a_long_name_is_cut_and_stays_unique():
  folders = tuple('/data/' + 'x' * 120 + end for end in 'ab')
  one, two = _names(_plan([_axis('data_dir', *folders)]))
  assert one != two and max(len(one), len(two)) < 120


def test_private_aggregators_get_noise_seeds():
  base = Base('dp', ('--aggregator=gaussian', '--noise_seed=5'))
  plan = _plan([], [base], num_seeds=3)
  assert [run.noise_seed for run in plan.runs] == [5, 6, 7]
  base = Base('dp', ('--aggregator=gaussian', '--client_seed=3'))
  plan = _plan([], [base])
  assert [(r.noise_seed, r.client_seed) for r in plan.runs] == [(0, 3)]
  plan = _plan([], [base], num_seeds=2, seed_flags=['client_seed'])
  assert [(r.noise_seed, r.client_seed, r.model_seed) for r in plan.runs] == [
    (None, 3, 0),
    (None, 4, 0),
  ]


def test_bases_come_from_files_and_the_grid_takes_precedence(tmp_path):
  recipe = tmp_path / 'a.flags'
  recipe.write_text('# A recipe.\n--total_rounds=7\n--client_learning_rate=9\n')
  base = Base('a', (f'--flagfile={recipe}', '--clients_per_round=3'))
  plan = _plan([_RATES], [base, Base('b', ())])
  assert _names(plan) == [
    *('a-client_lr=0.1', 'a-client_lr=0.3'),
    *('b-client_lr=0.1', 'b-client_lr=0.3'),
  ]
  first = plan.runs[0]
  assert (first.total_rounds, first.clients_per_round) == (7, 3)
  assert first.client_learning_rate == 0.1


def test_more_draws_and_more_seeds_only_add_runs():
  axes = [
    Axis(('client_learning_rate',), range=Range('log', 0.01, 3.0)),
    _axis('model', 'cifg', 'si_cifg'),
  ]
  few = _plan(axes, num_random=3, num_seeds=2)
  many = _plan(axes, num_random=5, num_seeds=3)
  assert len(few.runs) == 6 and len(many.runs) == 15
  extended = few.extend(many, add=False, where='here')
  assert extended.runs[:6] == few.runs
  assert len(extended.runs) == len(set(_names(extended))) == 15
  assert _plan(axes, num_random=3, num_seeds=2) == few
  other = _plan(axes, num_random=3, num_seeds=2, random_seed=1)
  assert set(other.runs).isdisjoint(few.runs)


def test_equal_draws_are_one_run():
  plan = _plan([_axis('model', 'cifg', 'si_cifg')], num_random=20)
  assert sorted(_names(plan)) == ['cifg', 'si_cifg']


def test_a_plan_is_read_as_it_was_written(tmp_path):
  base = Base('x', ('--compression=upload=uniform:bits=8', '--clip_norm=1'))
  plan = _plan([_RATES], [base], num_seeds=2)
  plan.write(tmp_path)
  assert sweeps.read_plan(tmp_path) == plan
  content = json.loads((tmp_path / sweeps.PLAN_NAME).read_text())
  assert content['runs']['x-client_lr=0.3-seed=1'] == {
    'client_learning_rate': 0.3,
    'model_seed': 1,
    'client_seed': 1,
  }
  assert content['shared']['clip_norm'] == 1.0
  assert sweeps.read_plan(tmp_path / 'nowhere') is None


@pytest.mark.parametrize(
  'content',
  [
    '',
    '[]',
    '{}',
    '{"format_version": 2}',
    '{"format_version": 1, "shared": {}, "runs": {}}',
    '{"format_version": 1, "shared": {"nonsense": 1}, "runs": {"a": {}}}',
  ],
)
def test_a_garbled_plan_is_reported_in_one_sentence(tmp_path, content):
  (tmp_path / sweeps.PLAN_NAME).write_text(content)
  with pytest.raises(config.ConfigError, match='not a plan of') as caught:
    sweeps.read_plan(tmp_path)
  assert '\n' not in str(caught.value)


def test_a_plan_from_before_a_flag_existed_is_read(tmp_path):
  plan = _plan()
  content = json.loads(plan.to_json())
  del content['shared']['compression']
  (tmp_path / sweeps.PLAN_NAME).write_text(json.dumps(content))
  assert sweeps.read_plan(tmp_path) == plan


def test_a_changed_plan_is_an_error_that_shows_the_difference():
  held = _plan([_RATES], [Base('', ('--total_rounds=60',))])
  new = _plan([_RATES], [Base('', ('--total_rounds=80',))])
  with pytest.raises(config.ConfigError) as caught:
    held.extend(new, add=False, where='sweep.json')
  said = str(caught.value)
  assert 'client_lr=0.1: --total_rounds: 60 in the plan, 80 now' in said
  assert 'sweep.json plans 2 runs' in said and '--add' in said
  fewer = _plan([_axis('client_learning_rate', '0.1')])
  with pytest.raises(config.ConfigError, match='plans 1 run that'):
    _plan().extend(fewer, add=False, where='sweep.json')


def test_added_runs_extend_the_plan():
  held = _plan([_RATES], [Base('', ('--total_rounds=60',))])
  new = _plan([_RATES], [Base('', ('--total_rounds=80',))])
  both = held.extend(new, add=True, where='sweep.json')
  assert both.runs[:2] == held.runs
  assert [run.total_rounds for run in both.runs] == [60, 60, 80, 80]
  assert len(set(_names(both))) == 4
  # Equal runs are not new, whatever their names.
  assert both.extend(new, add=True, where='sweep.json') == both


@pytest.mark.parametrize(
  ('axes', 'options', 'words'),
  [
    ([_RATES, _RATES], {}, 'twice'),
    ([_axis('client_learning_rate', '0.1', '1e-1')], {}, 'twice'),
    ([_axis('experiment_name', 'a')], {}, 'names its runs'),
    ([_axis('model_seed', '0', '1')], {'num_seeds': 2}, 'both set'),
    ([_RATES], {'num_seeds': 0}, 'at least 1'),
    ([_RATES], {'num_random': 0}, 'at least 1'),
    ([], {'num_random': 2}, 'the flags to vary'),
    ([_RATES], {'seed_flags': ['seed']}, "no seed 'seed'"),
    ([Axis(('clip_norm',), range=Range('log', 0.1, 1.0))], {}, '--random'),
    ([_axis('client_learning_rate', 'fast')], {}, 'fast'),
    ([_axis('model', 'a b')], {}, 'name:key=value'),
    ([_axis('clients_per_round', '0')], {}, 'at least 1'),
  ],
)
def test_mistakes_are_errors_of_one_sentence(axes, options, words):
  with pytest.raises(config.ConfigError, match=words) as caught:
    _plan(axes, **options)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'arguments',
  [
    [],
    ['--task=shakespeare'],
    ['--task=shakespeare', '--sequence_length=20'],
    ['--task=shakespeare', '--sequence_length=80'],
    ['--aggregator=blt:num_buffers=4', '--clip_norm=0.3', '--delta=1e-6'],
    ['--runtime=ray', '--ray_address=auto'],
    ['--compression=upload=uniform:bits=8,download=uniform:bits=16'],
    ['--transform=freeze:variables=a|b', '--server_learning_rate=1e-05'],
  ],
)
def test_the_command_of_a_run_gives_its_settings(arguments):
  run = flags.experiment_from_arguments(['--experiment_name=x', *arguments])
  command = sweeps.command_line(run, flags.experiment_from_arguments)
  assert flags.experiment_from_arguments(command) == run
  assert len(command) <= 1 + 2 * max(1, len(arguments))
