"""Combinations of privacy flags, and their consequences."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from si_federated import config
from si_federated.aggregators.canaries import members
from si_federated.assembly import (
  audit_stage,
  checks,
  client_schedule,
  private_mechanism,
)
from si_federated.privacy import (
  Participation,
  PrivacyRecord,
  accounting,
  band_choice,
  banded_inverse,
  blt,
  schedules,
  separation_choice,
  strategies,
)

_CLIENTS = 120


def _config(**changes):
  values = {'clients_per_round': 4, 'total_rounds': 60, **changes}
  return config.ExperimentConfig(
    'x',
    **{
      key: config.ComponentSpec.parse(value)
      if key in ('aggregator', 'participation')
      else value
      for key, value in values.items()
    },
  )


def _build(delta=1e-5, **changes):
  experiment = _config(**changes)
  checks.check(experiment)
  schedule = client_schedule.build_schedule(experiment, _CLIENTS)
  mechanism = private_mechanism.build_mechanism(experiment, schedule)
  return private_mechanism.calibrate(
    experiment, mechanism, delta=delta, schedule=schedule, dimension=1000
  )


_PRIVATE = {'clip_norm': 1.0, 'noise_multiplier': 2.0}


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ({'clip_norm': 1.0}, '--clip_norm has no effect on --aggregator=mean'),
    ({'noise_seed': 0}, '--noise_seed has no effect on --aggregator=mean'),
    ({'target_epsilon': 2.0}, 'no effect on --aggregator=mean'),
    (
      {'aggregator': 'tree', 'noise_multiplier': 1.0},
      '--aggregator=tree needs --clip_norm',
    ),
    (
      {'aggregator': 'blt', 'clip_norm': 1.0},
      'blt needs --noise_multiplier or --target_epsilon',
    ),
    (
      {'aggregator': 'distributed_dp', **_PRIVATE, 'noise_seed': 3},
      '--noise_seed has no effect on --aggregator=distributed_dp',
    ),
    (
      {
        'aggregator': 'distributed_dp',
        'participation': 'poisson',
        **_PRIVATE,
      },
      'cohorts of varying size',
    ),
    (
      {
        'aggregator': 'distributed_dp:bits=8',
        'clip_norm': 1.0,
        'target_epsilon': 0.01,
      },
      'noise',
    ),
    ({'aggregator': 'tre', **_PRIVATE}, "did you mean 'tree'"),
    ({'aggregator': 'tree:efficent=true', **_PRIVATE}, "mean 'efficient'"),
    ({'aggregator': 'tree:clip_norm=1', **_PRIVATE}, 'no option'),
    (
      {'participation': 'poisson:max_cohort_size=3'},
      'max_cohort_size is 3; take 4',
    ),
    # Nor does Poisson sampling.
    (
      {
        'aggregator': 'tree',
        'participation': 'poisson:max_cohort_size=6',
        **_PRIVATE,
      },
      'tree needs min_separation',
    ),
    ({'participation': 'cycles'}, "mean 'fixed_cycles'"),
    ({'participation': 'min_separation'}, 'needs --min_separation'),
    ({'participation': 'cyclic_poisson'}, 'needs --min_separation'),
    ({'participation': 'b_min_sep'}, 'needs --min_separation'),
    # Uniform sampling promises no separation.
    ({'aggregator': 'tree', **_PRIVATE}, 'tree needs min_separation'),
    (
      {'aggregator': 'banded', **_PRIVATE, 'min_separation': 5},
      'uniform meets only .* choose another schedule',
    ),
    (
      {
        'aggregator': 'blt',
        'participation': 'fixed_cycles',
        **_PRIVATE,
        'max_participations': 1,
      },
      'fixed_cycles meets only',
    ),
    (
      {
        'aggregator': 'banded:bands=31',
        'participation': 'fixed_cycles',
        **_PRIVATE,
      },
      'bands is 31',
    ),
    # 120 clients, twice each, are 60 cohorts of 4, but not 80.
    (
      {
        'aggregator': 'blt',
        'participation': 'min_separation',
        **_PRIVATE,
        'min_separation': 10,
        'max_participations': 2,
        'total_rounds': 80,
      },
      r'--participation=min_separation: .* of the 80 cohorts',
    ),
    (
      {'aggregator': 'gaussian', **_PRIVATE, 'noise_cohort_size': 3},
      'noise_cohort_size is 3',
    ),
    (
      {'aggregator': 'gaussian', **_PRIVATE, 'noise_seed': -1},
      'noise_seed is -1',
    ),
  ],
)
def test_flags_that_exclude_each_other(flags, message):
  with pytest.raises(config.ConfigError, match=message) as raised:
    _build(**flags)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('clip_norm', 0.0),
    ('noise_multiplier', -1.0),
    ('target_epsilon', 0.0),
    ('delta', 1.0),
    ('delta', 0.0),
    ('min_separation', 0),
    ('max_participations', 0),
    ('clip_norm', float('nan')),
  ],
)
def test_numbers_out_of_range(name, value):
  with pytest.raises(config.ConfigError, match=f'--{name} must be'):
    _config(**{name: value})


def test_noise_and_epsilon_exclude_each_other():
  with pytest.raises(config.ConfigError, match='exclude each other'):
    _config(noise_multiplier=1.0, target_epsilon=1.0)


def test_the_contract_is_that_of_the_schedule():
  mechanism = _build(
    aggregator='tree', participation='fixed_cycles', **_PRIVATE
  )
  assert mechanism.contract == Participation(60, 2, 30)
  mechanism = _build(
    aggregator='tree',
    participation='fixed_cycles',
    min_separation=20,
    **_PRIVATE,
  )
  assert mechanism.contract == Participation(60, 3, 20)
  mechanism = _build(
    aggregator='tree',
    participation='min_separation',
    min_separation=20,
    max_participations=2,
    clients_per_round=3,
    **_PRIVATE,
  )
  assert mechanism.contract == Participation(60, 2, 20)
  assert _build(aggregator='gaussian', **_PRIVATE).contract == Participation(
    60, 60, 1
  )


@pytest.mark.parametrize(
  ('aggregator', 'participation', 'amplified'),
  [
    ('gaussian', 'poisson', True),
    ('gaussian', 'poisson:max_cohort_size=6', True),
    ('gaussian', 'uniform', False),
    ('adaptive_gaussian:count_noise=2', 'poisson', True),
    ('banded:bands=4', 'cyclic_poisson', True),
    ('banded:bands=4', 'cyclic_poisson:max_cohort_size=6', True),
    ('gaussian', 'cyclic_poisson', True),
    ('tree', 'cyclic_poisson', False),
    ('banded:bands=4', 'fixed_cycles', False),
    ('gaussian', 'balls_in_bins', True),
    ('blt', 'balls_in_bins', True),
    ('tree', 'balls_in_bins', False),
    ('banded:bands=4', 'b_min_sep', True),
    ('gaussian', 'b_min_sep', True),
    ('blt', 'b_min_sep', False),
    ('tree', 'b_min_sep', False),
  ],
)
def test_only_independent_sampling_amplifies(
  aggregator, participation, amplified
):
  separated = participation.partition(':')[0] not in ('uniform', 'poisson')
  mechanism = _build(
    aggregator=aggregator,
    participation=participation,
    min_separation=10 if separated else None,
    **_PRIVATE,
  )
  assert (mechanism.record.amplification is not None) == amplified


@pytest.mark.parametrize(
  'aggregator', ['gaussian', 'tree', 'banded', 'banded_inverse', 'blt']
)
def test_noise_for_a_target_epsilon(aggregator):
  mechanism = _build(
    aggregator=aggregator,
    participation='fixed_cycles',
    min_separation=20,
    clip_norm=0.5,
    target_epsilon=3.0,
  )
  assert mechanism.record.epsilon(1e-5) == pytest.approx(3, rel=1e-4)
  assert (
    mechanism.factory.settings.noise_multiplier
    == mechanism.record.noise_multiplier
  )
  assert mechanism.factory.settings.clip_norm == 0.5
  less = dataclasses.replace(
    mechanism.record, noise_multiplier=0.99 * mechanism.record.noise_multiplier
  )
  assert less.epsilon(1e-5) > 3


def test_ledger_of_a_simulated_cohort():
  experiment = _config(aggregator='gaussian', **_PRIVATE, noise_cohort_size=400)
  ledger = private_mechanism.build_ledger(
    experiment,
    private_mechanism.build_mechanism(experiment),
    train_metrics=['loss'],
    num_clients=_CLIENTS,
  )
  ledger.record(1, range(4))
  summary = ledger.summary()
  assert summary['simulated'] and summary['noise_cohort_size'] == 400
  # 400 instead of 4 clients a round: 100 times as many clients.
  population = summary['simulated_population']
  assert population['num_clients'] == 12000
  assert population['delta'] == pytest.approx(12000**-1.1)
  sixty = accounting.gaussian_epsilon(2 / 60**0.5, 12000**-1.1)
  assert population['epsilon'] == pytest.approx(sixty)
  assert 'a population of 12,000: epsilon' in '\n'.join(ledger.notices())
  assert summary['delta'] == pytest.approx(120**-1.1)
  assert summary['noise_seed_is_secret']
  assert summary['epsilon'] == pytest.approx(
    PrivacyRecord(
      strategies.identity(60), 2.0, Participation(60, 1, 60)
    ).epsilon(120**-1.1)
  )
  assert 'train/clip_fraction' in summary['released_without_noise']


def test_a_simulated_cohort_is_truncated_in_proportion():
  flags: dict[str, Any] = {
    'aggregator': 'gaussian',
    **_PRIVATE,
    'participation': 'poisson:max_cohort_size=6',
    'noise_cohort_size': 40,
    'total_rounds': 5,
  }
  summary = private_mechanism.build_ledger(
    _config(**flags),
    _build(**flags),
    train_metrics=['loss'],
    num_clients=_CLIENTS,
  ).summary()
  population = summary['simulated_population']
  # Of ten times as many clients, cohorts of up to ten times the size.
  expected = PrivacyRecord(
    strategies.identity(5),
    2.0,
    Participation(5, 5, 1),
    schedules.Amplification(
      'poisson', 4 / 120, max_cohort_size=60, num_clients=1200
    ),
  ).epsilon(1200**-1.1)
  assert population['num_clients'] == 1200
  assert population['epsilon'] == pytest.approx(expected)
  # Cohorts of six of 120 are truncated far more often.
  assert summary['promised']['amplification']['max_cohort_size'] == 6


@pytest.mark.parametrize(
  ('flags', 'reasons'),
  [
    ({'aggregator': 'gaussian'}, []),
    ({'aggregator': 'gaussian', 'noise_seed': 0}, ['--noise_seed']),
    # Zero-out of a known cohort: there is nothing to simulate.
    ({'aggregator': 'gaussian', 'participation': 'shuffled_epochs'}, []),
    ({'aggregator': 'gaussian', 'participation': 'poisson'}, ['--client_seed']),
    (
      {
        'aggregator': 'banded:bands=2',
        'participation': 'cyclic_poisson',
        'min_separation': 4,
        'noise_seed': 1,
      },
      ['--noise_seed', '--client_seed'],
    ),
    (
      {
        'aggregator': 'tree',
        'participation': 'cyclic_poisson',
        'min_separation': 4,
      },
      [],
    ),
    (
      {'aggregator': 'blt', 'participation': 'balls_in_bins'},
      ['--client_seed'],
    ),
    (
      {
        'aggregator': 'gaussian',
        'participation': 'b_min_sep',
        'min_separation': 4,
      },
      ['--client_seed'],
    ),
    ({'aggregator': 'distributed_dp'}, ['from the clock', 'plain sum']),
    (
      {'aggregator': 'gaussian', 'noise_cohort_size': 9},
      ['--noise_cohort_size'],
    ),
    (
      {'aggregator': 'gaussian', 'client_similarity': 0.5},
      ['--client_similarity'],
    ),
    (
      {'aggregator': 'gaussian', 'noise_multiplier': 0.0, 'noise_seed': 0},
      [],
    ),
  ],
)
def test_a_guarantee_that_the_run_folder_undoes_is_simulated(flags, reasons):
  flags = {**_PRIVATE, **flags}
  ledger = private_mechanism.build_ledger(
    _config(**flags),
    _build(**flags),
    num_clients=_CLIENTS,
    train_metrics=['loss'],
  )
  summary = ledger.summary()
  found = summary['simulated_because']
  assert len(found) == len(reasons)
  assert all(reason in clause for reason, clause in zip(reasons, found))
  assert summary['simulated'] == bool(reasons)
  notices = '\n'.join(ledger.notices())
  assert all(clause in notices for clause in found)
  assert ('(simulated)' in notices) == bool(reasons)
  # Seeds that are public, or can be guessed, are not called secret.
  is_secret = 'noise_seed' not in flags and flags['aggregator'] != (
    'distributed_dp'
  )
  assert summary['noise_seed_is_secret'] == is_secret
  assert ('has a secret seed' in notices) == (
    is_secret and bool(flags['noise_multiplier'])
  )


def test_epsilon_stands_with_and_without_amplification():
  settings = {
    'aggregator': 'gaussian',
    'participation': 'poisson',
    'clip_norm': 1.0,
    'noise_multiplier': 1.0,
    'clients_per_round': 4,
    'total_rounds': 100,
  }
  experiment = _config(**settings, delta=1e-6)
  schedule = client_schedule.build_schedule(experiment, 400)
  mechanism = private_mechanism.calibrate(
    experiment,
    private_mechanism.build_mechanism(experiment, schedule),
    delta=1e-6,
    schedule=schedule,
  )
  ledger = private_mechanism.build_ledger(
    experiment, mechanism, num_clients=400, train_metrics=['loss']
  )
  promised = ledger.summary()['promised']
  assert promised['epsilon'] == pytest.approx(0.954, abs=5e-4)
  # A hundred rounds with noise 1 are one round with noise 1/10.
  plain = accounting.gaussian_epsilon(0.1, 1e-6)
  assert plain == pytest.approx(96.7, abs=0.05)
  assert promised['epsilon_without_amplification'] == pytest.approx(plain)
  assert 'epsilon is 96.7' in '\n'.join(ledger.notices())
  # The observed participation is two rounds of one client.
  ledger.record(1, [3, 4])
  ledger.record(2, [3])
  so_far = ledger.summary()['so_far']
  assert so_far['epsilon_without_amplification'] == pytest.approx(
    accounting.gaussian_epsilon(0.5**0.5, 1e-6)
  )


@pytest.mark.parametrize(
  ('aggregator', 'module', 'name'),
  [
    ('blt:num_buffers=1', blt, 'optimize_blt'),
    ('banded_inverse:bands=4', banded_inverse, 'optimize_banded_inverse'),
  ],
)
def test_a_last_digit_of_another_machine_does_not_refuse_a_resume(
  aggregator, module, name, tmp_path, monkeypatch
):
  flags = {
    'aggregator': aggregator,
    'participation': 'fixed_cycles',
    'clip_norm': 1.0,
    'target_epsilon': 3.0,
  }
  experiment = _config(**flags)
  path = str(tmp_path / 'strategy.npz')

  def ledger_of_run(resumed):
    schedule = client_schedule.build_schedule(experiment, _CLIENTS)
    mechanism = private_mechanism.keep_strategy(
      private_mechanism.build_mechanism(experiment, schedule),
      path,
      resumed=resumed,
    )
    mechanism = private_mechanism.calibrate(
      experiment, mechanism, delta=1e-5, schedule=schedule
    )
    return private_mechanism.build_ledger(
      experiment, mechanism, num_clients=_CLIENTS, train_metrics=['loss']
    )

  begun = ledger_of_run(False)
  assert begun.facts['strategy']['kind'] == aggregator.partition(':')[0]
  optimize = getattr(module, name)

  def elsewhere(*args, **kwargs):
    found = optimize(*args, **kwargs)
    if module is blt:
      decay, scale = found
      return decay * (1 - 2e-16), scale
    return found * (1 - 2e-16)

  monkeypatch.setattr(module, name, elsewhere)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'other'))
  again = ledger_of_run(True)
  assert again.facts == begun.facts
  assert ledger_of_run(False).facts != begun.facts


def test_restarted_trees_use_that_clients_are_once_in_an_epoch():
  # 120 clients make epochs of 30 rounds of 4.
  mechanism = _build(
    aggregator='tree:restart=true', participation='shuffled_epochs', **_PRIVATE
  )
  assert mechanism.contract == Participation(60, 2, 1, block=30)
  # Two trees of 30 rounds, completed to 32: six nodes above a round.
  assert mechanism.record.sensitivity.value == pytest.approx(12**0.5)
  canaries = audit_stage.add_canaries(
    _config(aggregator='tree', participation='shuffled_epochs', **_PRIVATE),
    mechanism,
    audit_stage.Canaries(16, 0),
  )
  factory: Any = canaries.factory
  for canary in np.flatnonzero(members(16, 0)):
    (rounds, _) = np.nonzero(factory.plan.cohorts == canary)
    assert len(rounds) == 2 and rounds[1] // 30 > rounds[0] // 30
  with pytest.raises(config.ConfigError, match='a single band is left'):
    _build(aggregator='banded', participation='shuffled_epochs', **_PRIVATE)


@pytest.mark.parametrize(
  ('aggregator', 'participation', 'groups'),
  [
    ('gaussian', 'poisson:max_cohort_size=6', 1),
    ('banded:bands=2', 'cyclic_poisson:max_cohort_size=6', 3),
  ],
)
def test_canaries_are_truncated_with_the_clients(
  aggregator, participation, groups
):
  flags: dict[str, Any] = {
    'aggregator': aggregator,
    'participation': participation,
    'min_separation': groups if groups > 1 else None,
    'clip_norm': 1.0,
    'target_epsilon': 2.0,
  }
  added = audit_stage.Canaries(200, 0)
  experiment = _config(**flags)
  schedule: Any = client_schedule.build_schedule(
    experiment, _CLIENTS, num_canaries=added.count
  )
  mechanism = private_mechanism.calibrate(
    experiment,
    private_mechanism.build_mechanism(experiment, schedule),
    delta=1e-5,
    schedule=schedule,
  )
  record: Any = mechanism.record
  # The promise of an audit is that of the clients and the canaries together.
  assert record.amplification.num_clients == _CLIENTS // groups + 200
  assert record.epsilon(1e-5) == pytest.approx(2, rel=1e-3)
  audited: Any = audit_stage.add_canaries(
    experiment, mechanism, added, schedule
  )
  found, sizes = set(np.flatnonzero(members(200, 0))), []
  for time, row in enumerate(audited.factory.plan.cohorts):
    taken = set(row[row >= 0])
    assert taken <= found
    assert taken <= set(schedule.guests_of(time + 1))
    assert not taken or time % groups == 0
    size = len(schedule.guests_of(time + 1)) + len(schedule.cohort(time + 1))
    assert size <= 6
    if time % groups == 0:
      sizes.append((len(taken), size))
  # Members have their share of 6 places that are nearly all taken.
  share = len(found) / (200 + _CLIENTS // groups)
  places = sum(size for _, size in sizes)
  assert places > 5.5 * len(sizes)
  assert sum(count for count, _ in sizes) == pytest.approx(
    share * places, abs=4 * (places * share * (1 - share)) ** 0.5
  )


@pytest.mark.slow
def test_bands_and_groups_are_chosen_for_the_sampling():
  flags = {
    'aggregator': 'banded:bands=auto',
    'participation': 'cyclic_poisson',
    'clip_norm': 1.0,
    'target_epsilon': 0.5,
    'delta': 0.01,
    'total_rounds': 8,
    'clients_per_round': 30,
  }
  experiment = _config(**flags)
  checks.check(experiment)
  schedule = client_schedule.build_schedule(experiment, _CLIENTS)
  best, _ = band_choice.choose_groups(
    8,
    num_clients=_CLIENTS,
    clients_per_round=30,
    target_epsilon=0.5,
    delta=0.01,
  )
  amplification = schedule.amplification
  assert amplification is not None and amplification.groups == best.groups
  mechanism = private_mechanism.calibrate(
    experiment,
    private_mechanism.build_mechanism(experiment, schedule),
    delta=0.01,
    schedule=schedule,
  )
  record: Any = mechanism.record
  assert record.amplification == amplification
  assert record.epsilon(0.01) == pytest.approx(0.5, rel=1e-3)
  summary = private_mechanism.build_ledger(
    experiment, mechanism, train_metrics=['loss'], num_clients=_CLIENTS
  ).summary()
  assert summary['chosen_bands'] == {
    'bands': record.strategy.bands,
    'groups': best.groups,
    'for_epsilon': 0.5,
  }
  assert record.strategy.bands <= best.groups
  with pytest.raises(config.ConfigError, match='finite --target_epsilon'):
    client_schedule.build_schedule(
      _config(**{**flags, 'target_epsilon': None, 'noise_multiplier': 1.0}),
      _CLIENTS,
    )


@pytest.mark.parametrize('chosen', [1, 6])
def test_the_separation_of_clients_that_pause_is_chosen(chosen, monkeypatch):
  flags: dict[str, Any] = {
    'aggregator': 'banded:bands=auto',
    'participation': 'b_min_sep',
    'clip_norm': 1.0,
    'target_epsilon': 8.0,
    'total_rounds': 12,
  }
  asked = []

  def choose(rounds, **options):
    asked.append((rounds, options['target_epsilon'], options['num_clients']))
    return chosen

  monkeypatch.setattr(separation_choice, 'choose_separation', choose)

  def build(**changes):
    experiment = _config(**{**flags, **changes})
    checks.check(experiment)
    schedule = client_schedule.build_schedule(experiment, _CLIENTS)
    return schedule, private_mechanism.build_mechanism(experiment, schedule)

  schedule, mechanism = build()
  assert asked == [(12, 8.0, _CLIENTS)]
  contract = Participation(12, 12 // chosen, chosen)
  record: Any = mechanism.record
  assert record.contract == contract
  assert record.strategy.bands == band_choice.fewest_bands(contract)
  amplification = schedule.amplification
  assert amplification is not None
  assert amplification.kind == ('b_min_sep' if chosen > 1 else 'poisson')
  assert amplification.groups == chosen
  amplification.check_strategy(record.strategy)
  # The choice is remembered for a resumed run.
  build()
  assert len(asked) == 1
  build(target_epsilon=7.0)
  assert len(asked) == 2
  with pytest.raises(config.ConfigError, match='finite --target_epsilon'):
    build(target_epsilon=None, noise_multiplier=1.0)


def test_bands_are_chosen_for_fixed_cycles_and_groups():
  for participation in ('fixed_cycles', 'cyclic_poisson'):
    mechanism = _build(
      aggregator='banded:bands=auto',
      participation=participation,
      min_separation=12,
      **_PRIVATE,
    )
    contract = Participation(60, 5, 12)
    assert mechanism.record.strategy.bands == band_choice.fewest_bands(contract)
  # Poisson sampling leaves one band, which it amplifies.
  mechanism = _build(
    aggregator='banded:bands=auto', participation='poisson', **_PRIVATE
  )
  assert mechanism.record.strategy.kind == 'identity'
  assert mechanism.record.amplification is not None
  for bands, problem in (('most', 'a number or auto'), ('auto', 'single band')):
    with pytest.raises(config.ConfigError, match=problem):
      _build(
        aggregator=f'banded:bands={bands}',
        participation='shuffled_epochs',
        **_PRIVATE,
      )


def _summary(**changes):
  experiment = _config(**{**_PRIVATE, **changes})
  mechanism = _build(**{**_PRIVATE, **changes})
  return private_mechanism.build_ledger(
    experiment, mechanism, num_clients=_CLIENTS, train_metrics=['loss']
  ).summary()


@pytest.mark.parametrize(
  ('aggregator', 'participation', 'sampled'),
  [
    ('gaussian', 'poisson', True),
    ('banded:bands=4', 'cyclic_poisson', True),
    ('gaussian', 'balls_in_bins', True),
    ('gaussian', 'b_min_sep', True),
    # Cohorts are assumed to be known.
    ('tree', 'cyclic_poisson', False),
    ('gaussian', 'uniform', False),
    ('tree', 'fixed_cycles', False),
    ('tree', 'min_separation', False),
    ('blt', 'shuffled_epochs', False),
  ],
)
def test_how_often_clients_were_sampled_is_not_covered(
  aggregator, participation, sampled
):
  told = _summary(
    aggregator=aggregator,
    participation=participation,
    min_separation=10
    if participation not in ('poisson', 'uniform', 'shuffled_epochs')
    else None,
  )['released_without_noise']
  by_name = {name.partition(': ')[0]: name for name in told}
  assert ('privacy.json' in by_name) == sampled
  assert ('clients_per_sec (the exact size of cohorts)' in told) == sampled
  assert 'train_fingerprint' in by_name['task.json']


@pytest.mark.parametrize(
  ('task', 'mixed', 'held_out'),
  [
    ('docstrings', False, 'validation clients, '),
    ('text_classification', True, 'held-out texts, '),
    ('text_classification:path=a.csv,client=who', False, 'held-out texts, '),
    ('text_classification:split=client', False, 'held-out texts, '),
    (
      'text_classification:path=a.csv,client=who,split=dirichlet',
      True,
      'held-out texts, ',
    ),
  ],
)
def test_clients_that_are_no_authors_are_no_unit_of_privacy(
  task, mixed, held_out
):
  flags = {'aggregator': 'gaussian', **_PRIVATE}
  experiment = dataclasses.replace(
    _config(**flags), task=config.ComponentSpec.parse(task)
  )
  summary = private_mechanism.build_ledger(
    experiment, _build(**flags), num_clients=_CLIENTS, train_metrics=[]
  ).summary()
  assert summary['simulated'] == mixed
  reasons = ' '.join(summary['simulated_because'])
  assert ("several authors' texts" in reasons) == mixed
  first, *others = summary['not_covered']
  assert first.startswith(held_out)
  assert any('any one author' in text for text in others) == mixed


def test_what_is_released_and_whom_clients_trust():
  plain = _summary(aggregator='gaussian')
  assert len(plain['released']) == 1
  assert 'the models after all rounds' in plain['released'][0]
  assert plain['trust_model'].startswith('the server is trusted')
  assert plain['update_noise_multiplier'] == 2

  two = _summary(
    aggregator='gaussian', algorithm=config.ComponentSpec('mime_lite')
  )
  assert 'second noisy sum' in two['released'][1]

  # Of 1 / 2^2, the count of sensitivity 1/2 with noise 0.5 * 4 takes 1 / 4^2.
  adaptive = _summary(aggregator='adaptive_gaussian:count_noise=0.5')
  assert 'train/clip_norm' in adaptive['released'][1]
  assert adaptive['noise_multiplier'] == 2
  assert adaptive['update_noise_multiplier'] == pytest.approx(
    (1 / 4 - 1 / 16) ** -0.5
  )

  distributed = _summary(
    aggregator='distributed_dp', participation='fixed_cycles'
  )
  assert 'clients add the noise' in distributed['trust_model']
  none = _summary(aggregator='mean', clip_norm=None, noise_multiplier=None)
  assert none['released'] == [] and none['trust_model'] == ''
  none = _summary(aggregator='gaussian', noise_multiplier=0.0)
  assert none['released'] == [] and none['trust_model'] == ''
  recorded = _summary(
    aggregator='gaussian',
    runtime=config.ComponentSpec.parse('jax:record=there'),
  )
  assert any('the recording of' in text for text in recorded['not_covered'])
  assert not any('recording' in text for text in plain['not_covered'])
  for vocabulary in ('words', 'pretrained'):
    experts = _summary(
      aggregator='gaussian',
      algorithm=config.ComponentSpec.parse(
        'expert_personalization:opt_out=0.4'
      ),
      vocabulary=config.ComponentSpec(vocabulary),
    )
    (said,) = [text for text in experts['not_covered'] if 'opted out' in text]
    assert ('made from their text' in said) == (vocabulary == 'words')
