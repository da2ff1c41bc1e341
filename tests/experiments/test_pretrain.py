"""Tests of central training as a user runs it."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_TINY = (
  '--task=synthetic:num_clients=30',
  '--vocab_size=20',
  '--sequence_length=6',
  '--model=cifg:units=8,embedding_size=4',
  '--num_validation_examples=16',
)
_STEPS = (
  '--num_steps=3',
  '--batch_size=4',
  '--steps_per_eval=2',
  '--steps_per_checkpoint=1',
)


def _command(binary, *args):
  return [sys.executable, '-m', f'experiments.{binary}', *map(str, args)]


def _run(binary, *args, **options):
  return subprocess.run(
    _command(binary, *args),
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
    **options,
  )


def _weights(folder):
  newest = sorted((folder / 'checkpoints').glob('*.npz'))[-1]
  with np.load(newest) as arrays:
    return {n: arrays[n] for n in arrays.files if n != 'facts'}


def test_pretrained_then_trained_federatedly(tmp_path):
  where = f'--root_output_dir={tmp_path}'
  done = _run('pretrain', *_TINY, *_STEPS, where, '--experiment_name=before')
  assert done.returncode == 0, done.stderr
  assert 'round 3/3' in done.stderr
  assert f'--initial_model={tmp_path / "before"}' in done.stdout
  before = json.loads((tmp_path / 'before' / 'summary.json').read_text())

  args = (
    *_TINY,
    where,
    '--experiment_name=after',
    f'--initial_model={tmp_path / "before"}',
    '--clients_per_round=2',
    '--total_rounds=1',
  )
  done = _run('train', *args)
  assert done.returncode == 0, done.stderr
  lines = (tmp_path / 'after' / 'metrics.csv').read_text().splitlines()
  first = dict(zip(lines[0].split(','), lines[1].split(',')))
  assert float(first['eval/loss']) == before['final']['eval/loss']
  done = _run('predict', f'--run={tmp_path / "before"}', '--text=w1')
  assert done.returncode == 0, done.stderr
  assert done.stdout.count('%') == 5

  done = _run('train', *args[:-1], '--total_rounds=2', '--model=lstm')
  assert done.returncode == 2
  assert '--model: lstm here' in done.stderr


@pytest.mark.slow
def test_interrupted_saves_and_goes_on_as_if_it_had_not(tmp_path):
  steps = ('--num_steps=400', '--batch_size=4', '--steps_per_eval=400')
  args = (*_TINY, *steps, f'--root_output_dir={tmp_path}')
  process = subprocess.Popen(
    _command('pretrain', *args, '--experiment_name=x'),
    cwd=_ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stderr is not None
  for line in process.stderr:
    if line.startswith('round '):
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
  assert 'Going on from step' in done.stderr
  whole = _run('pretrain', *args, '--experiment_name=whole')
  assert whole.returncode == 0, whole.stderr
  one, other = _weights(tmp_path / 'x'), _weights(tmp_path / 'whole')
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


def test_wrong_parts_end_with_one_sentence(tmp_path):
  args = ('--experiment_name=x', f'--root_output_dir={tmp_path}')
  done = _run('pretrain', *args, '--text_files=/no/such/*.txt')
  assert done.returncode == 2
  assert 'No file is called' in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
