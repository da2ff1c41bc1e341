"""The ledger in the round loop: what each checkpoint promises."""

from __future__ import annotations

import json

import numpy as np
import pytest

from si_federated.privacy import Participation, PrivacyRecord, strategies
from si_federated.privacy import ledger as ledger_lib
from si_federated.privacy.ledger import Ledger
from si_federated.training import checkpoints, run_folder
from tests.tiny import read_rows
from tests.training.tiny_loop import (
  Cohort,
  Process,
  evaluate_weights,
  last_weights,
  run_loop,
)


def _ledger(noise_multiplier=2.0, max_participations=3, **facts):
  contract = Participation(10, max_participations, 4)
  return Ledger(
    mechanism='gaussian',
    delta=1e-5,
    contract=contract,
    record=PrivacyRecord(strategies.identity(10), noise_multiplier, contract),
    facts={'clip_norm': 1.0, **facts},
    unnoised=['train/loss'],
  )


def _five_in_turn(round_num):
  return Cohort([round_num % 5, 100 + round_num])


def test_epsilon_is_that_of_the_participation_so_far(tmp_path):
  run_loop(tmp_path, sample_cohort=_five_in_turn, ledger=_ledger())
  rows = read_rows(tmp_path)
  assert rows[0]['privacy/epsilon'] == '0.0'
  # One participation up to round 5, two from round 6 on, when client 1 is back.
  once, twice = (
    PrivacyRecord(
      strategies.identity(10), 2.0, Participation(10, k, 5)
    ).epsilon(1e-5)
    for k in (1, 2)
  )
  found = [float(row['privacy/epsilon']) for row in rows[1:]]
  np.testing.assert_allclose(found, [once] * 5 + [twice] * 5, rtol=1e-6)
  privacy = json.loads((tmp_path / 'privacy.json').read_text())
  assert privacy['epsilon'] == pytest.approx(twice)
  assert privacy['observed'] == {
    'rounds': 10,
    'clients': 15,
    'max_participations': 2,
    'min_separation': 5,
  }
  assert privacy['contract']['max_participations'] == 3
  assert privacy['promised']['epsilon'] > privacy['epsilon']
  assert privacy['released_without_noise'] == ['train/loss']
  assert privacy['private'] and not privacy['simulated']
  summary = json.loads((tmp_path / 'summary.json').read_text())
  assert summary['privacy']['epsilon'] == privacy['epsilon']


def test_privacy_json_is_true_at_each_checkpoint(tmp_path, monkeypatch):
  found = {}
  save = checkpoints.Checkpoints.save

  def look(self, state, round_num, facts):
    found[round_num] = json.loads((tmp_path / 'privacy.json').read_text())
    return save(self, state, round_num, facts)

  monkeypatch.setattr(checkpoints.Checkpoints, 'save', look)
  run_loop(tmp_path, sample_cohort=_five_in_turn, ledger=_ledger())
  assert 0 in found and max(found) == 10 and len(found) > 2
  rows = read_rows(tmp_path)
  for round_num, privacy in found.items():
    assert privacy['private']
    assert privacy['observed']['rounds'] == round_num
    assert privacy['epsilon'] == pytest.approx(
      float(rows[round_num]['privacy/epsilon'])
    )
    assert ledger_lib.sentence(privacy).startswith(
      f'Privacy: epsilon {privacy["epsilon"]:.3f} at delta 1e-05'
    )


def test_privacy_json_does_not_count_a_round_that_was_not_saved(
  tmp_path, monkeypatch
):
  write = run_folder.RunFolder.write_metrics

  def interrupted(self, round_num, values):
    if round_num == 7:
      raise KeyboardInterrupt
    write(self, round_num, values)

  monkeypatch.setattr(run_folder.RunFolder, 'write_metrics', interrupted)
  with pytest.raises(KeyboardInterrupt):
    run_loop(tmp_path, sample_cohort=_five_in_turn, ledger=_ledger())
  privacy = json.loads((tmp_path / 'privacy.json').read_text())
  assert last_weights(tmp_path)[0] == 'round_000006.npz'
  assert privacy['observed']['rounds'] == 6


def test_a_checkpoint_without_a_ledger_is_refused(tmp_path):
  run_loop(tmp_path, total_rounds=4)
  with pytest.raises(
    ValueError, match='round 4 .* does not record who took part'
  ):
    run_loop(tmp_path, sample_cohort=_five_in_turn, ledger=_ledger())
  # Without noise nothing is promised.
  run_loop(
    tmp_path, sample_cohort=_five_in_turn, ledger=_ledger(noise_multiplier=0.0)
  )


def test_a_cohort_that_breaks_the_contract_is_not_used(tmp_path):
  process = Process()
  with pytest.raises(ValueError, match='Client 1 takes part in round 8'):
    run_loop(
      tmp_path,
      process,
      sample_cohort=lambda r: Cohort([1] if r in (5, 8) else [10 + r]),
      ledger=_ledger(),
    )
  assert process.rounds[-1] == 7
  # Earlier rounds are saved, though no checkpoint was due.
  assert last_weights(tmp_path)[0] == 'round_000007.npz'
  assert read_rows(tmp_path)[-1]['round_num'] == '7'


def test_a_resumed_ledger_is_that_of_an_uninterrupted_run(tmp_path):
  run_loop(tmp_path / 'whole', sample_cohort=_five_in_turn, ledger=_ledger())
  with pytest.raises(KeyboardInterrupt):
    run_loop(
      tmp_path / 'x',
      Process(interrupt_in=8),
      sample_cohort=_five_in_turn,
      ledger=_ledger(),
    )
  saved = int(last_weights(tmp_path / 'x')[0][6:12])
  privacy = json.loads((tmp_path / 'x' / 'privacy.json').read_text())
  assert privacy['observed']['rounds'] == saved
  run_loop(tmp_path / 'x', sample_cohort=_five_in_turn, ledger=_ledger())
  assert read_rows(tmp_path / 'x') == read_rows(tmp_path / 'whole')
  files = [
    (tmp_path / name / 'privacy.json').read_text() for name in ('x', 'whole')
  ]
  assert files[0] == files[1]


def test_an_interrupt_in_an_evaluation_leaves_its_round_out(tmp_path):
  calls = []

  def evaluate(weights):
    calls.append(1)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return evaluate_weights(weights)

  with pytest.raises(KeyboardInterrupt):
    run_loop(
      tmp_path,
      evaluate=evaluate,
      sample_cohort=_five_in_turn,
      ledger=_ledger(),
    )
  run_loop(tmp_path, sample_cohort=_five_in_turn, ledger=_ledger())
  assert len(read_rows(tmp_path)) == 11


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'noise_multiplier': 3.0}, 'noise_multiplier: 2.0 there, 3.0 here'),
    ({'max_participations': 2}, 'contract'),
    ({'clip_norm': 0.5}, 'clip_norm: 1.0 there, 0.5 here'),
    ({'participation': 'poisson'}, 'participation: None there, poisson here'),
  ],
)
def test_a_checkpoint_of_another_promise_is_refused(tmp_path, changed, message):
  run_loop(
    tmp_path, total_rounds=6, sample_cohort=_five_in_turn, ledger=_ledger()
  )
  before = (tmp_path / 'metrics.csv').read_text()
  with pytest.raises(ValueError, match=message):
    run_loop(tmp_path, sample_cohort=_five_in_turn, ledger=_ledger(**changed))
  assert (tmp_path / 'metrics.csv').read_text() == before


def test_a_last_digit_refuses_no_resume(tmp_path):
  def ledger(factor):
    population = {'num_clients': 99, 'epsilon': 3.0 * factor, 'delta': 1e-6}
    return _ledger(2.0 * factor, simulated_population=population)

  run_loop(
    tmp_path, total_rounds=6, sample_cohort=_five_in_turn, ledger=ledger(1)
  )
  with pytest.raises(ValueError, match='simulated_population'):
    run_loop(tmp_path, sample_cohort=_five_in_turn, ledger=ledger(1 + 1e-6))
  run_loop(tmp_path, sample_cohort=_five_in_turn, ledger=ledger(1 + 2e-16))
