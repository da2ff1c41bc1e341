"""Tests of central training as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import numpy as np
import pytest

from si_federated import experiment
from tests import tiny

_TINY = tuple(
  flag
  for flag in tiny.tiny_flags()
  if not flag.startswith(('--clients_per', '--total_rounds', '--experiment'))
)
_STEPS = (
  '--num_steps=3',
  '--batch_size=4',
  '--steps_per_eval=2',
  '--steps_per_checkpoint=1',
)


def _run(binary, *args, **options):
  return tiny.run_binary(binary, *args, **options)


@pytest.mark.slow
def test_pretrained_then_trained_federatedly(tmp_path):
  where = f'--root_output_dir={tmp_path}'
  done = _run('pretrain', *_TINY, *_STEPS, where, '--experiment_name=before')
  assert done.returncode == 0, done.stderr
  assert 'step 3/3' in done.stderr
  assert f'--initial_model={tmp_path / "before"}' in done.stdout
  before = json.loads((tmp_path / 'before' / 'summary.json').read_text())
  settings = tiny.tiny_config(
    initial_model=str(tmp_path / 'before'), total_rounds=1
  )
  experiment.run(settings, str(tmp_path))
  first = tiny.read_rows(tmp_path / 'x')[0]
  assert float(first['eval/loss']) == before['final']['eval/loss']


@pytest.mark.slow
def test_interrupted_saves_and_goes_on_as_if_it_had_not(tmp_path):
  steps = ('--num_steps=400', '--batch_size=4', '--steps_per_eval=400')
  args = (*_TINY, *steps, f'--root_output_dir={tmp_path}')
  process = subprocess.Popen(
    tiny.command('pretrain', *args, '--experiment_name=x'),
    cwd=tiny.ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stderr is not None
  for line in process.stderr:
    if line.startswith('step '):
      break
  process.send_signal(signal.SIGTERM)
  rest = process.stderr.read()
  assert process.wait(60) == 130, rest
  process.stderr.close()
  assert 'is saved' in rest
  newest = sorted((tmp_path / 'x' / 'checkpoints').iterdir())[-1].name
  assert 'round_000000' < newest < 'round_000400'
  done = _run('pretrain', *args, '--experiment_name=x')
  assert done.returncode == 0, done.stderr
  assert 'Resuming from step' in done.stderr
  whole = _run('pretrain', *args, '--experiment_name=whole')
  assert whole.returncode == 0, whole.stderr
  one, other = (
    tiny.read_newest_checkpoint(tmp_path / name) for name in ('x', 'whole')
  )
  assert list(one) == list(other)
  for name, value in one.items():
    np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.fixture(name='without_tensorflow')
def _without_tensorflow(tmp_path):
  """An environment in which TensorFlow can't be imported."""
  (tmp_path / 'tensorflow.py').write_text('raise ImportError("not to load")')
  return {**os.environ, 'PYTHONPATH': str(tmp_path)}


def test_help_and_wrong_flags_are_answered_without_tensorflow(
  without_tensorflow,
):
  done = _run('pretrain', '--help', env=without_tensorflow)
  assert done.returncode == 0, done.stderr
  for flag in ('--text_files', '--learning_rate', '--model', '--initial_model'):
    assert flag in done.stdout
  assert '--clients_per_round' not in done.stdout
  for args in (
    (),
    ('--experiment_name=x', '--num_steps=many'),
    ('--experiment_name=x', '--model=cifg:units'),
    ('--experiment_name=x', '--reinitialized_variables=y'),
    ('--experiment_name=x', '--vocabulary_from=runs/x'),
    ('--experiment_name=x', '--batch_size=0'),
  ):
    done = _run('pretrain', *args, env=without_tensorflow)
    assert done.returncode == 2
    assert done.stderr.startswith('error: ')
    assert 'Traceback' not in done.stderr
