"""The audit, as users run it."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[2]


def _audit(root, *flags):
  return subprocess.run(
    [
      *(sys.executable, '-m', 'experiments.audit', '--experiment_name=x'),
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
      f'--root_output_dir={root}',
      *flags,
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )


@pytest.mark.slow
def test_an_audit_and_a_run_without_canaries_do_not_mix(tmp_path):
  flags = (
    '--aggregator=banded:bands=2',
    '--participation=fixed_cycles',
    '--noise_multiplier=0.7',
  )
  done = _audit(tmp_path, *flags)
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / 'x' / 'audit.json').read_text())
  assert json.loads(done.stdout.partition('\n}\n')[0] + '}') == found
  # Canaries show in the model, far above chance...
  assert abs(found['mean_score']) > 5 * found['std_score_unseen'] / 60**0.5
  # ...and tell no more than what was promised, but for the estimate's error.
  assert 0 < found['epsilon_estimate'] < 1.3 * found['epsilon_promised']
  privacy = json.loads((tmp_path / 'x' / 'privacy.json').read_text())
  assert privacy['canaries'] == {'count': 60, 'seed': 0}
  assert found['epsilon_promised'] == privacy['promised']['epsilon']
  again = _audit(tmp_path, *flags, '--num_canaries=61')
  assert again.returncode == 1
  assert 'canaries' in again.stderr and 'Traceback' not in again.stderr


def test_what_is_not_private_is_not_audited(tmp_path):
  done = _audit(tmp_path, '--aggregator=gaussian', '--noise_multiplier=0')
  assert done.returncode == 2
  assert 'Only noise can be audited' in done.stderr
