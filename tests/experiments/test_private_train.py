"""Private training: killed, resumed, refused."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from typing import Any

import numpy as np
import pytest

from si_federated import config, experiment
from si_federated.privacy import accounting, participation, strategies
from si_federated.training import run_folder
from tests import tiny

_CHANGES: dict[str, Any] = {
  'sequence_length': 8,
  'model': 'si_cifg:units=16,embedding_size=8',
  'clients_per_round': 3,
  'total_rounds': 12,
  'rounds_per_eval': 4,
  'rounds_per_checkpoint': 2,
  'server_optimizer': 'sgdm',
  'server_learning_rate': 1.0,
  'aggregator': 'blt:num_buffers=2',
  'participation': 'min_separation',
  'min_separation': 4,
  'clip_norm': 0.5,
}
_PROMISE: dict[str, Any] = {'target_epsilon': 6.0, 'noise_seed': 5}


def _run(root, **changes):
  """Runs in this process; returns the summary and what was printed."""
  settings = tiny.tiny_config(**{**_CHANGES, **changes})
  with contextlib.redirect_stderr(io.StringIO()) as output:
    summary = experiment.run(settings, str(root))
  return summary, output.getvalue()


def _rows(root):
  return tiny.read_rows(root / 'x')


def _checkpoint(root):
  newest = sorted((root / 'x' / 'checkpoints').glob('*.npz'))[-1]
  with np.load(newest) as arrays:
    state = {name: arrays[name] for name in arrays.files}
  facts = json.loads(state.pop('facts').item())
  return newest.name, state, facts['ledger'], facts['privacy']


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  root = tmp_path_factory.mktemp('whole')
  _, output = _run(root, **_PROMISE)
  return root, output


def test_what_it_promises_and_keeps(whole):
  root, output = whole
  privacy = json.loads((root / 'x' / 'privacy.json').read_text())
  assert 'Privacy (simulated): at most epsilon 6 at delta' in output
  assert 'Privacy is simulated: the seed of the noise is public' in output
  assert 'cannot be repeated' not in output
  assert privacy['delta'] == pytest.approx(privacy['num_clients'] ** -1.1)
  assert privacy['promised']['epsilon'] == pytest.approx(6, rel=1e-6)
  assert 0 < privacy['epsilon'] <= 6 * (1 + 1e-9)
  assert privacy['contract']['min_separation'] == 4
  assert privacy['observed']['min_separation'] >= 4
  assert privacy['observed']['rounds'] == 12
  # By the Gaussian formula: rho is half the squared ratio.
  ratio = privacy['so_far']['sensitivity'] / privacy['noise_multiplier']
  assert privacy['rho'] == pytest.approx(ratio**2 / 2)
  assert privacy['epsilon'] == pytest.approx(
    accounting.gaussian_epsilon(1 / ratio, privacy['delta']), rel=1e-6
  )
  rows = _rows(root)
  epsilons = [float(row['privacy/epsilon']) for row in rows]
  assert epsilons[0] == 0 and epsilons == sorted(epsilons)
  assert epsilons[-1] == pytest.approx(privacy['epsilon'])
  assert rows[-1]['train/clip_norm'] == '0.5'
  *columns, facts = privacy['released_without_noise']
  assert set(columns) <= set(rows[0])
  assert facts.startswith('task.json: train_fingerprint')


class _Killed(BaseException):
  """Leaves no time to save."""


@pytest.mark.slow
def test_killed_and_resumed_it_is_as_if_never_stopped(
  whole, tmp_path, monkeypatch
):
  with monkeypatch.context() as patch:
    _stop_before_round(patch, 6)
    with pytest.raises(_Killed):
      _run(tmp_path, **_PROMISE)
  # It belongs to the newest checkpoint, of round 4.
  early = json.loads((tmp_path / 'x' / 'privacy.json').read_text())
  assert early['observed']['rounds'] == 4
  done = tiny.run_binary(
    'train',
    *tiny.tiny_flags(**_CHANGES, **_PROMISE),
    f'--root_output_dir={tmp_path}',
  )
  assert done.returncode == 0, done.stderr
  assert 'Resuming from round 4' in done.stderr
  assert _rows(tmp_path) == _rows(whole[0])
  epsilon = float(_rows(tmp_path)[-1]['privacy/epsilon'])
  assert f'epsilon {epsilon:.3f}' in done.stdout
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


def _stop_before_round(monkeypatch, round_num):
  write = run_folder.RunFolder.write_metrics

  def killed(self, current, values):
    if current == round_num:
      raise _Killed
    write(self, current, values)

  monkeypatch.setattr(run_folder.RunFolder, 'write_metrics', killed)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_strategy(tmp_path, monkeypatch):
  path = tmp_path / 'matrix.npz'
  settings = {
    'aggregator': f'banded:matrix={path}',
    'noise_multiplier': 1.0,
    'noise_seed': 5,
    'total_rounds': 3,
    'rounds_per_checkpoint': 1,
    'model': 'cifg:units=4,embedding_size=2',
  }
  matrix = np.eye(3) + 0.5 * np.eye(3, k=-1)
  np.savez(path, matrix=matrix)
  with monkeypatch.context() as patch:
    _stop_before_round(patch, 3)
    with pytest.raises(_Killed):
      _run(tmp_path, **settings)
  np.savez(path, matrix=np.eye(3) + 0.25 * np.eye(3, k=-1))
  saved = tmp_path / 'x' / 'strategy.npz'
  kept = saved.read_bytes()
  # The stored file is part of the promise as well.
  saved.write_bytes(path.read_bytes())
  with pytest.raises(ValueError, match='another privacy guarantee .*strategy'):
    _run(tmp_path, **settings)
  saved.write_bytes(b'')
  with pytest.raises(config.ConfigError, match="run's own strategy"):
    _run(tmp_path, **settings)
  saved.write_bytes(kept)
  _run(tmp_path, **settings)
  privacy = json.loads((tmp_path / 'x' / 'privacy.json').read_text())
  # Two rounds of one client never share a row: the norm of a column.
  assert privacy['promised']['sensitivity'] == pytest.approx(1.25**0.5)
  assert (
    privacy['strategy']['digest']
    == hashlib.sha256(matrix.astype('<f8').tobytes()).hexdigest()
  )


def test_privacy_json_reproduces_its_epsilon(whole):
  privacy = json.loads((whole[0] / 'x' / 'privacy.json').read_text())
  kept = privacy['strategy']
  assert kept['kind'] == 'blt' and len(kept['decay']) == 2
  record = accounting.PrivacyRecord(
    strategies.Blt.from_parameters(kept['decay'], kept['scale'], 12),
    privacy['noise_multiplier'],
    participation.Participation(**privacy['contract']),
  )
  assert record.epsilon(privacy['delta']) == privacy['promised']['epsilon']


def test_rounds_without_clients_are_found_before_the_first(tmp_path):
  recipe = tiny.config_from_flags(
    '--flagfile=experiments/configs/synthetic.si_cifg.blt.flags',
    '--experiment_name=x',
    '--total_rounds=600',
  )
  with pytest.raises(
    config.ConfigError, match='make 63 of the 600 cohorts .* suffice'
  ):
    experiment.run(recipe, str(tmp_path))
  assert not (tmp_path / 'x' / 'metrics.csv').exists()


@pytest.mark.parametrize(
  'changes', [{'target_epsilon': 5.0}, {'participation': 'uniform'}]
)
def test_a_run_with_another_promise_is_not_resumed(whole, changes):
  with pytest.raises(config.ConfigError, match='other flags'):
    _run(whole[0], **{**_PROMISE, **changes})


@pytest.mark.slow
def test_a_run_takes_the_clip_norm_of_a_shorter_one(tmp_path):
  noise = {'clip_norm': None, 'noise_seed': 5, 'rounds_per_eval': 2}
  small = {'model': 'cifg:units=4,embedding_size=2', **noise}
  _run(
    tmp_path / 'short',
    aggregator='adaptive_gaussian:count_noise=5',
    noise_multiplier=4.0,
    total_rounds=4,
    **small,
  )
  before = tmp_path / 'short' / 'x'
  _run(
    tmp_path / 'long',
    target_epsilon=6.0,
    total_rounds=6,
    clip_norm_from=str(before),
    **small,
  )
  found = _rows(tmp_path / 'short')[-1]['train/clip_norm']
  rows = _rows(tmp_path / 'long')
  assert float(rows[-1]['train/clip_norm']) == pytest.approx(float(found))
  one, both = (
    json.loads((path / 'privacy.json').read_text())
    for path in (before, tmp_path / 'long' / 'x')
  )
  assert both['promised']['epsilon'] == pytest.approx(6, rel=1e-6)
  sensitivity = both['so_far']['sensitivity'] / both['noise_multiplier']
  assert both['rho'] == pytest.approx(one['rho'] + sensitivity**2 / 2)
  # The ledger begins with the first run's epsilon.
  assert float(rows[0]['privacy/epsilon']) == pytest.approx(one['epsilon'])
  with pytest.raises(config.ConfigError, match='training data differ'):
    _run(
      tmp_path / 'other',
      target_epsilon=6.0,
      clip_norm_from=str(before),
      task='synthetic:seed=9',
      **small,
    )


@pytest.mark.slow
def test_secret_noise(tmp_path):
  # Enough noise that no two runs agree.
  weights = []
  for name in ('one', 'two'):
    _, output = _run(tmp_path / name, noise_multiplier=1.0, total_rounds=2)
    assert 'cannot be repeated' in output
    state = _checkpoint(tmp_path / name)[1]
    weights.append(state['state/global_model_weights/trainable/0'])
    # The seed is in the checkpoint alone.
    seed = state['state/aggregator/seed']
    for file in (tmp_path / name / 'x').glob('*.*'):
      assert str(seed[0]).encode() not in file.read_bytes()
  assert not np.allclose(*weights)


def test_epsilon_is_never_below_that_of_one_participation(whole):
  privacy = json.loads((whole[0] / 'x' / 'privacy.json').read_text())
  once = accounting.PrivacyRecord(
    strategies.identity(12),
    privacy['noise_multiplier'],
    participation.Participation(12, 1, 12),
  )
  # Correlated noise has a larger sensitivity than independent noise.
  assert privacy['epsilon'] >= once.epsilon(privacy['delta'])
