from __future__ import annotations

import dataclasses
import json
import math

import pytest

from si_federated import config
from si_federated.assembly import (
  checks,
  client_schedule,
  earlier_run,
  private_mechanism,
)
from si_federated.privacy import accounting

_CLIENTS = 120
_DELTA = 1e-5
_PART = config.ComponentSpec.parse


def _config(**changes):
  values = {'clients_per_round': 4, 'total_rounds': 60, **changes}
  for key in ('aggregator', 'participation'):
    if key in values:
      values[key] = _PART(values[key])
  return config.ExperimentConfig('x', **values)


def _calibrated(clients=_CLIENTS, **changes):
  experiment = _config(**changes)
  checks.check(experiment)
  schedule = client_schedule.build_schedule(experiment, clients)
  return experiment, private_mechanism.calibrate(
    experiment,
    private_mechanism.build_mechanism(experiment, schedule),
    delta=_DELTA,
    schedule=schedule,
    dimension=1000,
  )


def _finished(folder, clients=_CLIENTS, rounds=6, **changes):
  """Writes the files of a run with an adaptive clip; returns its folder."""
  values = {
    'aggregator': 'adaptive_gaussian:count_noise=1',
    'participation': 'fixed_cycles',
    'total_rounds': 6,
    'noise_multiplier': 4.0,
    **changes,
  }
  experiment, mechanism = _calibrated(clients, **values)
  ledger = private_mechanism.build_ledger(
    experiment, mechanism, train_metrics=['loss'], num_clients=clients
  )
  schedule = client_schedule.build_schedule(experiment, clients)
  folder.mkdir()
  (folder / 'config.json').write_text(experiment.to_json())
  lines = ['round_num,train/clip_norm']
  for round_num in range(1, rounds + 1):
    ledger.record(round_num, schedule.cohort(round_num).tolist())
    lines.append(f'{round_num},{0.1 * round_num}')
  (folder / 'metrics.csv').write_text('\n'.join(lines) + '\n')
  (folder / 'privacy.json').write_text(json.dumps(ledger.summary()))
  (folder / 'task.json').write_text('{"train_fingerprint": "these"}')
  return str(folder)


_MAIN = {
  'aggregator': 'blt:num_buffers=1',
  'participation': 'fixed_cycles',
  'min_separation': 20,
}


def test_clip_norm_and_privacy_of_both_runs_add_up(tmp_path):
  path = _finished(tmp_path / 'before')
  experiment, mechanism = _calibrated(
    **_MAIN, clip_norm_from=path, noise_multiplier=5.0
  )
  assert mechanism.factory.settings.clip_norm == pytest.approx(0.6)
  record = mechanism.record
  # 6 rounds in cycles of 30: one participation, with noise 4.
  own = (record.sensitivity.value / 5) ** 2
  rho = (own + 1 / 4**2) / 2
  assert record.rho == pytest.approx(rho)
  assert record.mu == pytest.approx(math.sqrt(2 * rho))
  epsilon = accounting.gaussian_epsilon((2 * rho) ** -0.5, _DELTA)
  assert record.epsilon(_DELTA) == pytest.approx(epsilon)
  ledger = private_mechanism.build_ledger(
    experiment, mechanism, train_metrics=['loss'], num_clients=_CLIENTS
  )
  delta = _CLIENTS**-1.1
  spent = accounting.gaussian_epsilon(4.0, delta)
  # Spent before the first round, and in all rows after.
  assert ledger.epsilon() == pytest.approx(spent)
  assert f'epsilon {spent:.4g} is already spent' in ' '.join(ledger.notices())
  summary = ledger.summary()
  assert summary['epsilon'] == pytest.approx(spent)
  assert summary['clip_norm'] == pytest.approx(0.6)
  assert summary['clip_norm_from']['noise_multiplier'] == 4.0
  assert summary['promised']['earlier'][0]['rho'] == 1 / 32
  ledger.record(1, [5])
  column = mechanism.record.after(
    dataclasses.replace(mechanism.contract, rounds=1, max_participations=1)
  )
  assert ledger.summary()['rho'] == pytest.approx(column.rho)
  assert spent < ledger.epsilon() < record.epsilon(delta)


def test_the_noise_of_a_target_leaves_room_for_what_is_spent(tmp_path):
  path = _finished(tmp_path / 'before')
  _, mechanism = _calibrated(**_MAIN, clip_norm_from=path, target_epsilon=3.0)
  record = mechanism.record
  assert 2.9999 < record.epsilon(_DELTA) <= 3.0
  _, alone = _calibrated(**_MAIN, clip_norm=0.6, target_epsilon=3.0)
  together = alone.record.mu
  assert record.noise_multiplier == pytest.approx(
    record.sensitivity.value / math.sqrt(together**2 - 1 / 16)
  )
  spent = accounting.gaussian_epsilon(4.0, _DELTA)
  with pytest.raises(config.ConfigError, match='leaves nothing of'):
    _calibrated(**_MAIN, clip_norm_from=path, target_epsilon=0.99 * spent)


@pytest.mark.parametrize(
  ('before', 'main', 'relation'),
  [
    ('poisson', 'poisson', 'add-or-remove-one'),
    ('poisson', 'fixed_cycles', 'zero-out'),
    ('fixed_cycles', 'poisson', 'zero-out'),
  ],
)
def test_sampled_runs_compose_by_their_privacy_losses(
  tmp_path, before, main, relation
):
  path = _finished(tmp_path / 'before', participation=before)
  _, mechanism = _calibrated(
    aggregator='gaussian',
    participation=main,
    clip_norm_from=path,
    noise_multiplier=3.0,
  )
  record = mechanism.record
  assert record.neighbouring_relation == relation
  assert record.rho is None and record.is_amplified
  earlier = record.epsilon_before(_DELTA)
  own = dataclasses.replace(record, earlier=()).epsilon(_DELTA)
  assert max(own, earlier) < record.epsilon(_DELTA) < own + earlier
  # Renyi divergences of both add up: a bound from another accountant.
  assert record.epsilon(_DELTA) < record.epsilon(_DELTA, method='rdp')
  # Without sampling: 1 or 6 rounds with noise 4, and 2 or 60 with noise 3.
  times = {'poisson': (6, 60), 'fixed_cycles': (1, 2)}
  rho = (times[before][0] / 16 + times[main][1] / 9) / 2
  assert record.without_amplification().rho == pytest.approx(rho)
  if main == 'poisson':  # The same search, with many more rounds.
    return
  found = accounting.calibrate(record, target_epsilon=2.5, delta=_DELTA)
  assert 2.49 < found.epsilon(_DELTA) <= 2.501


def test_an_earlier_run_joins_the_mixture_of_bins(tmp_path):
  path = _finished(tmp_path / 'before')
  _, mechanism = _calibrated(
    aggregator='gaussian',
    participation='balls_in_bins',
    min_separation=20,
    clip_norm_from=path,
    noise_multiplier=2.0,
  )
  record = mechanism.record
  mixture = record.mixture()
  # 20 groups with probability 1/30; the rest has only the earlier mean.
  assert mixture.weights.tolist() == pytest.approx([1 / 30] * 20 + [1 / 3])
  assert mixture.gram[0, 0] == pytest.approx(3 / 4 + 1 / 16)
  assert mixture.gram[0, 1] == mixture.gram[20, 20] == pytest.approx(1 / 16)
  earlier = record.epsilon_before(_DELTA)
  own = dataclasses.replace(record, earlier=()).epsilon(_DELTA)
  assert max(own, earlier) < record.epsilon(_DELTA) < own + earlier


def test_a_simulated_earlier_run_makes_the_whole_simulated(tmp_path):
  path = _finished(tmp_path / 'before', noise_seed=3)
  experiment, mechanism = _calibrated(
    **_MAIN, clip_norm_from=path, noise_multiplier=5.0
  )
  summary = private_mechanism.build_ledger(
    experiment, mechanism, train_metrics=[], num_clients=_CLIENTS
  ).summary()
  assert summary['simulated']
  assert 'of the run of --clip_norm_from' in summary['simulated_because'][0]
  assert any('--clip_norm_from' in text for text in summary['not_covered'])


@pytest.mark.parametrize(
  ('changes', 'main', 'message'),
  [
    ({'noise_multiplier': 0.0}, {}, 'has no guarantee'),
    ({'rounds': 4}, {}, 'has not finished'),
    ({'clients': 90}, {}, 'num_clients was 90 there and is 120 here'),
    ({'client_similarity': 0.5}, {}, 'client_similarity was 0.5 there'),
    (
      {'aggregator': 'gaussian', 'clip_norm': 1.0},
      {},
      'has --aggregator=gaussian',
    ),
    ({}, {'aggregator': 'distributed_dp'}, 'not Gaussian'),
    ({}, {'aggregator': 'mean'}, 'is not private'),
    ({}, {'clip_norm': 1.0}, 'exclude each other'),
  ],
)
def test_other_runs_are_refused(tmp_path, changes, main, message):
  path = _finished(tmp_path / 'before', **changes)
  with pytest.raises(config.ConfigError, match=message):
    _calibrated(
      **{**_MAIN, 'noise_multiplier': 5.0, **main}, clip_norm_from=path
    )


def test_a_run_without_a_ledger_or_of_other_data_is_refused(tmp_path):
  path = _finished(tmp_path / 'before')
  experiment = _config(**_MAIN, noise_multiplier=5.0, clip_norm_from=path)
  earlier_run.check_clients(experiment, 'these')
  with pytest.raises(config.ConfigError, match='training data differ'):
    earlier_run.check_clients(experiment, 'others')
  (tmp_path / 'before' / 'metrics.csv').write_text(
    'round_num,train/clip_norm\n5,0.5\n'
  )
  with pytest.raises(config.ConfigError, match='belongs to another round'):
    earlier_run.read(experiment)
  (tmp_path / 'before' / 'privacy.json').unlink()
  with pytest.raises(config.ConfigError, match='no guarantee in'):
    earlier_run.read(experiment)
  (tmp_path / 'before' / 'config.json').unlink()
  with pytest.raises(config.ConfigError, match='not the folder of a run'):
    earlier_run.read(experiment)
