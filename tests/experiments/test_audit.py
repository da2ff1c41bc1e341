"""The audit binary."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def audit(run_binary, tmp_path):
  """Gives `audit(*flags)`: the exit code, the output, the errors."""

  def run(*flags):
    return run_binary(
      'audit',
      '--experiment_name=x',
      '--task=synthetic:num_clients=30',
      '--vocab_size=200',
      '--sequence_length=8',
      '--model=si_cifg:units=48,embedding_size=24',
      '--clients_per_round=3',
      '--total_rounds=6',
      '--num_validation_examples=16',
      '--server_optimizer=sgd',
      '--server_learning_rate=0.1',
      '--num_canaries=60',
      '--noise_seed=2',
      '--clip_norm=0.1',
      f'--root_output_dir={tmp_path}',
      *flags,
    )

  return run


@pytest.mark.slow
def test_an_audit_is_written_and_resumes_only_with_its_canaries(
  audit, tmp_path
):
  flags = (
    '--aggregator=banded:bands=2',
    '--participation=fixed_cycles',
    '--noise_multiplier=0.7',
  )
  code, output, errors = audit(*flags)
  assert code == 0, errors
  found = json.loads((tmp_path / 'x' / 'audit.json').read_text())
  assert json.loads(output.partition('\n}\n')[0] + '}') == found
  # Those that took part show in the releases, far above those held out...
  held_out = 60 - found['canaries']['members']
  assert 15 < held_out < 45
  chance = found['std_score_unseen'] / held_out**0.5
  assert found['mean_score'] - found['mean_score_unseen'] > 5 * chance
  # ...but reveal no more than was promised, up to the estimate's error.
  assert 0 < found['epsilon_estimate'] < 1.3 * found['epsilon_promised']
  assert found['confidence'] == 0.95
  assert 0 <= found['epsilon_lower_bound'] < found['epsilon_promised']
  independent = found['epsilon_lower_bound_if_independent']
  assert 0 <= independent < found['epsilon_promised']
  assert not found['promise_is_broken'] and 'wrong' not in output
  # Clipping is part of it, compression is not.
  assert 'clipped like clients' in found['what']
  assert found['not_covered'] == ['compression: canaries are not compressed']
  privacy = json.loads((tmp_path / 'x' / 'privacy.json').read_text())
  assert privacy['canaries'] == {'count': 60, 'seed': 0}
  assert found['epsilon_promised'] == privacy['promised']['epsilon']
  code, _, errors = audit(*flags, '--num_canaries=61')
  assert code == 1
  assert 'canaries' in errors and 'Traceback' not in errors


def test_runs_without_noise_are_not_audited(audit):
  code, _, errors = audit('--aggregator=gaussian', '--noise_multiplier=0')
  assert code == 2
  assert 'Only noise can be audited' in errors
