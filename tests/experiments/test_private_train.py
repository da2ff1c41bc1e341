"""Private training as a user runs it: killed, resumed, refused."""

from __future__ import annotations

import csv
import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from si_federated.privacy import accounting, participation, strategies

_ROOT = pathlib.Path(__file__).parents[2]
_TIMINGS = {'round_secs', 'eval_secs', 'secs_total', 'clients_per_sec'}
_FLAGS = (
  '--task=synthetic:num_clients=30',
  '--vocab_size=20',
  '--sequence_length=8',
  '--model=si_cifg:units=16,embedding_size=8',
  '--clients_per_round=3',
  '--total_rounds=12',
  '--rounds_per_eval=4',
  '--rounds_per_checkpoint=2',
  '--num_validation_examples=64',
  '--server_optimizer=sgdm',
  '--server_learning_rate=1',
  '--experiment_name=x',
  '--aggregator=blt:num_buffers=2',
  '--participation=min_separation',
  '--min_separation=4',
  '--clip_norm=0.5',
)


def _start(root, *flags):
  return subprocess.Popen(
    [
      *(sys.executable, '-m', 'experiments.train', *_FLAGS),
      *(f'--root_output_dir={root}', *flags),
    ],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _run(root, *flags):
  process = _start(root, *flags)
  output, _ = process.communicate(timeout=300)
  return process.returncode, output


def _rows(root):
  with open(root / 'x' / 'metrics.csv', newline='') as file:
    return [
      {key: value for key, value in row.items() if key not in _TIMINGS}
      for row in csv.DictReader(file)
    ]


def _checkpoint(root):
  newest = sorted((root / 'x' / 'checkpoints').glob('*.npz'))[-1]
  with np.load(newest) as arrays:
    state = {name: arrays[name] for name in arrays.files}
  facts = json.loads(state.pop('facts').item())
  return newest.name, state, facts['ledger'], facts['privacy']


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  root = tmp_path_factory.mktemp('whole')
  code, output = _run(root, '--target_epsilon=6', '--noise_seed=5')
  assert code == 0, output
  return root, output


def test_what_it_promises_and_keeps(whole):
  root, output = whole
  privacy = json.loads((root / 'x' / 'privacy.json').read_text())
  assert 'Privacy: at most epsilon 6 at delta' in output
  assert 'can not be repeated' not in output
  assert privacy['delta'] == pytest.approx(privacy['num_clients'] ** -1.1)
  assert privacy['promised']['epsilon'] == pytest.approx(6, rel=1e-6)
  assert 0 < privacy['epsilon'] <= 6 * (1 + 1e-9)
  assert privacy['contract']['min_separation'] == 4
  assert privacy['observed']['min_separation'] >= 4
  assert privacy['observed']['rounds'] == 12
  # Of another mechanism's formula: rho is half the squared ratio.
  ratio = privacy['so_far']['sensitivity'] / privacy['noise_multiplier']
  assert privacy['rho'] == pytest.approx(ratio**2 / 2)
  assert privacy['epsilon'] == pytest.approx(
    accounting.gaussian_epsilon(1 / ratio, privacy['delta']), rel=1e-6
  )
  rows = _rows(root)
  epsilons = [float(row['privacy/epsilon']) for row in rows]
  assert epsilons[0] == 0 and epsilons == sorted(epsilons)
  assert epsilons[-1] == pytest.approx(privacy['epsilon'])
  assert f'epsilon {epsilons[-1]:.3f}' in output
  assert rows[-1]['train/clip_norm'] == '0.5'
  assert set(privacy['released_without_noise']) <= set(rows[0])


def test_killed_and_resumed_it_is_as_if_never_stopped(whole, tmp_path):
  flags = ('--target_epsilon=6', '--noise_seed=5')
  process = _start(tmp_path, *flags)
  deadline = time.monotonic() + 240
  while (
    not (tmp_path / 'x' / 'metrics.csv').exists() or len(_rows(tmp_path)) < 6
  ):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not (tmp_path / 'x' / 'privacy.json').exists()
  code, output = _run(tmp_path, *flags)
  assert code == 0, output
  assert 'Going on from round' in output
  assert _rows(tmp_path) == _rows(whole[0])
  for found, expected in zip(_checkpoint(tmp_path), _checkpoint(whole[0])):
    if isinstance(expected, dict) and 'state/aggregator/seed' in expected:
      assert set(found) == set(expected)
      for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    else:
      assert found == expected
  one, other = (
    (root / 'x' / 'privacy.json').read_text() for root in (tmp_path, whole[0])
  )
  assert one == other


@pytest.mark.parametrize(
  'flags',
  [
    ('--target_epsilon=5', '--noise_seed=5'),
    ('--target_epsilon=6', '--noise_seed=5', '--participation=uniform'),
  ],
)
def test_a_run_of_another_promise_is_not_resumed(whole, flags):
  code, output = _run(whole[0], *flags)
  assert code == 2
  assert 'other flags' in output and 'Traceback' not in output


@pytest.mark.slow
def test_secret_noise(tmp_path):
  # Enough noise that no two runs agree.
  codes, weights = [], []
  for name in ('one', 'two'):
    code, output = _run(
      tmp_path / name, '--noise_multiplier=1', '--total_rounds=2'
    )
    codes.append(code)
    assert 'can not be repeated' in output
    weights.append(
      _checkpoint(tmp_path / name)[1]['state/global_model_weights/trainable/0']
    )
    # The seed is in the checkpoint alone.
    seed = _checkpoint(tmp_path / name)[1]['state/aggregator/seed']
    for file in (tmp_path / name / 'x').glob('*.*'):
      assert str(seed[0]) not in file.read_text()
  assert codes == [0, 0]
  assert not np.allclose(*weights)


def test_epsilon_is_never_below_that_of_one_participation(whole):
  privacy = json.loads((whole[0] / 'x' / 'privacy.json').read_text())
  once = accounting.PrivacyRecord(
    strategies.identity(12),
    privacy['noise_multiplier'],
    participation.Participation(12, 1, 12),
  )
  # Correlated noise is of a larger sensitivity than independent noise.
  assert privacy['epsilon'] >= once.epsilon(privacy['delta'])
