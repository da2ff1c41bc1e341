"""Tests of training as a user runs it: a process, killed and started again."""

from __future__ import annotations

import collections
import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

_ROOT = pathlib.Path(__file__).parents[2]
_TIMINGS = {'round_secs', 'eval_secs', 'secs_total', 'clients_per_sec'}
_TINY = (
  '--task=synthetic:num_clients=30',
  '--vocab_size=20',
  '--sequence_length=8',
  '--model=si_cifg:units=16,embedding_size=8',
  '--clients_per_round=3',
  '--total_rounds=12',
  '--rounds_per_eval=4',
  '--rounds_per_checkpoint=3',
  '--num_validation_examples=64',
)


def _command(*args, binary='train'):
  return [sys.executable, '-m', f'experiments.{binary}', *map(str, args)]


def _start(*args, **options):
  return subprocess.Popen(
    _command(*args),
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
    **options,
  )


def _run(*args, binary='train', **options):
  return subprocess.run(
    _command(*args, binary=binary),
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
    **options,
  )


def _rows(folder):
  with open(folder / 'metrics.csv', newline='') as file:
    return [
      {key: value for key, value in row.items() if key not in _TIMINGS}
      for row in csv.DictReader(file)
    ]


def _weights(folder):
  newest = sorted((folder / 'checkpoints').glob('*.npz'))[-1]
  with np.load(newest) as arrays:
    return newest.name, {
      name: arrays[name] for name in arrays.files if name != 'facts'
    }


def _assert_same_run(one, other):
  assert _rows(one) == _rows(other)
  name, weights = _weights(one)
  other_name, other_weights = _weights(other)
  assert name == other_name
  assert set(weights) == set(other_weights)
  for key, value in weights.items():
    np.testing.assert_array_equal(value, other_weights[key])


def _await_rows(process, folder, count):
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline:
    if process.poll() is not None:
      pytest.fail(f'ended too early: {process.stdout.read()}')
    if (folder / 'metrics.csv').exists() and len(_rows(folder)) >= count:
      return
    time.sleep(0.005)
  pytest.fail('took too long')


def _group_is_gone(process):
  for _ in range(100):
    try:
      os.killpg(process.pid, 0)
    except ProcessLookupError:
      return True
    time.sleep(0.05)
  return False


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """An uninterrupted run, and what it printed."""
  root = tmp_path_factory.mktemp('whole')
  done = _run(*_TINY, f'--root_output_dir={root}', '--experiment_name=x')
  assert done.returncode == 0, done.stderr
  return root / 'x', done


def test_writes_the_run_folder_and_learns(whole):
  folder, done = whole
  assert {path.name for path in folder.iterdir()} >= {
    'config.json',
    'task.json',
    'vocabulary.txt',
    'metrics.csv',
    'logdir',
    'checkpoints',
    'summary.json',
  }
  rows = _rows(folder)
  assert len(rows) == 13
  losses = [float(row['eval/loss']) for row in rows if row['eval/loss']]
  assert losses[-1] < losses[0]
  for row in rows:
    if row['eval/loss']:
      assert float(row['eval/perplexity']) == pytest.approx(
        np.exp(float(row['eval/loss']))
      )
  task = json.loads((folder / 'task.json').read_text())
  assert task['reference_perplexity']['floor'] < losses[-1] * 100
  assert 'round 12/12' in done.stderr
  assert str(folder) in done.stdout


@pytest.mark.parametrize(
  'rows_before', [2, pytest.param(8, marks=pytest.mark.slow)]
)
def test_killed_and_started_again_is_as_uninterrupted(
  whole, tmp_path, rows_before
):
  args = (*_TINY, f'--root_output_dir={tmp_path}', '--experiment_name=x')
  process = _start(*args)
  _await_rows(process, tmp_path / 'x', rows_before)
  process.kill()
  process.wait()
  process.stdout.close()
  assert len(_rows(tmp_path / 'x')) < 13
  done = _run(*args)
  assert done.returncode == 0, done.stderr
  assert 'Going on from round' in done.stderr
  _assert_same_run(tmp_path / 'x', whole[0])


@pytest.mark.parametrize(
  'how', [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_interrupted_saves_and_leaves_no_process(whole, tmp_path, how):
  args = (*_TINY, f'--root_output_dir={tmp_path}', '--experiment_name=x')
  process = _start(*args)
  _await_rows(process, tmp_path / 'x', 5)
  os.kill(process.pid, how)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 130, output
  assert 'Traceback' not in output
  assert 'is saved' in output
  assert _group_is_gone(process)
  done = _run(*args)
  assert done.returncode == 0, done.stderr
  _assert_same_run(tmp_path / 'x', whole[0])


def test_a_garbled_checkpoint_falls_back(whole, tmp_path):
  args = (*_TINY, f'--root_output_dir={tmp_path}', '--experiment_name=x')
  process = _start(*args)
  _await_rows(process, tmp_path / 'x', 9)
  process.kill()
  process.wait()
  process.stdout.close()
  newest = sorted((tmp_path / 'x' / 'checkpoints').glob('*.npz'))[-1]
  os.truncate(newest, newest.stat().st_size // 3)
  done = _run(*args)
  assert done.returncode == 0, done.stderr
  assert newest.name in done.stderr
  assert 'Falling back' in done.stderr
  _assert_same_run(tmp_path / 'x', whole[0])


@pytest.mark.parametrize('runtime', ['local', 'tff'])
def test_output_to_a_pipe_ends_and_leaves_no_process(whole, tmp_path, runtime):
  args = (
    *_TINY,
    f'--root_output_dir={tmp_path}',
    '--experiment_name=x',
    f'--runtime={runtime}',
    '--total_rounds=2',
  )
  # What the pipe's reader sees ends only when every process that holds the
  # other end has ended.
  process = _start(*args)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  assert _group_is_gone(process)
  # The same weights on either runtime.
  for ours, theirs in zip(_rows(tmp_path / 'x'), _rows(whole[0])):
    if ours['train/loss']:
      assert float(ours['train/loss']) == pytest.approx(
        float(theirs['train/loss']), rel=1e-4
      )


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['--model=si_cifg:unit=3'], ["'unit'", "'units'"]),
    (['--task=docstring'], ["'docstrings'"]),
    (['--clients_per_round=0'], ['--clients_per_round']),
    (['--clients_per_round=many'], ['clients_per_round', 'many']),
    (['--client_learning_rat=1'], ['client_learning_rat']),
    (['stray'], ["'stray'"]),
    (['--model=si_cifg:'], ['--model', 'name:key=value']),
  ],
)
def test_a_wrong_flag_ends_with_one_sentence(tmp_path, args, words):
  done = _run(f'--root_output_dir={tmp_path}', '--experiment_name=x', *args)
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  for word in words:
    assert word in line
  assert not list(tmp_path.iterdir())


def test_a_name_is_required(tmp_path):
  done = _run(f'--root_output_dir={tmp_path}')
  assert done.returncode == 2
  assert 'experiment_name' in done.stderr


def test_other_flags_do_not_resume(whole):
  folder, _ = whole
  before = (folder / 'metrics.csv').read_text()
  done = _run(
    *_TINY,
    f'--root_output_dir={folder.parent}',
    '--experiment_name=x',
    '--client_lr=0.125',
  )
  assert done.returncode == 2
  assert '--client_learning_rate: 0.125' in done.stderr
  assert (folder / 'metrics.csv').read_text() == before


def test_other_data_do_not_resume(whole, tmp_path):
  """As when docstrings' packages have changed: ids would mean other words."""
  folder = tmp_path / 'x'
  shutil.copytree(whole[0], folder)
  words = (folder / 'vocabulary.txt').read_text().split()
  (folder / 'vocabulary.txt').write_text('\n'.join(words[::-1]) + '\n')
  done = _run(*_TINY, f'--root_output_dir={tmp_path}', '--experiment_name=x')
  assert done.returncode == 2
  assert 'no longer those' in done.stderr


def test_help_shows_every_flag():
  done = _run('--help')
  assert done.returncode == 0
  for flag in ('--model', '--client_learning_rate', '--root_output_dir'):
    assert flag in done.stdout


def test_stackoverflow_from_a_file_of_tffs_format(tmp_path):
  def client_dataset(client_id):
    texts = [f'how do i {client_id} a file ?', 'thanks .'] * 10
    return tf.data.Dataset.from_tensor_slices(
      collections.OrderedDict(
        creation_date=['2010'] * 20,
        score=np.zeros(20, np.int64),
        tags=['x'] * 20,
        title=['y'] * 20,
        tokens=texts,
        type=['question'] * 20,
      )
    )

  splits = {
    f'client{i}': ('train', 'train', 'heldout', 'test')[i % 4]
    for i in range(16)
  }
  tff.simulation.datasets.save_to_sql_client_data(
    list(splits),
    client_dataset,
    str(tmp_path / 'stackoverflow.sqlite'),
    split_names_by_client_id=splits,
  )
  done = _run(
    '--experiment_name=so',
    f'--root_output_dir={tmp_path}',
    '--task=stackoverflow',
    f'--data_dir={tmp_path}',
    '--model=cifg:units=16,embedding_size=8',
    '--clients_per_round=4',
    '--total_rounds=8',
    '--client_learning_rate=3',
  )
  assert done.returncode == 0, done.stderr
  losses = [
    float(row['eval/loss'])
    for row in _rows(tmp_path / 'so')
    if row['eval/loss']
  ]
  assert losses[-1] < losses[0]


def test_stackoverflow_without_its_file_says_which(tmp_path):
  done = _run(
    '--experiment_name=so',
    f'--root_output_dir={tmp_path}',
    '--task=stackoverflow',
    f'--data_dir={tmp_path}',
  )
  assert done.returncode in (1, 2)
  assert 'stackoverflow.sqlite' in done.stderr.strip().splitlines()[-1]
  assert 'Traceback' not in done.stderr


def test_predict_suggests_words_with_probabilities(whole):
  folder, _ = whole
  words = (folder / 'vocabulary.txt').read_text().split()
  done = _run(
    f'--run={folder}',
    f'--text={words[0]} {words[1]}',
    '--text=unheard',
    '--top=21',
    binary='predict',
  )
  assert done.returncode == 0, done.stderr
  assert f'{words[0]} {words[1]} ...' in done.stdout
  shares = [
    float(line.split('%')[0])
    for line in done.stdout.splitlines()
    if '%' in line
  ]
  # All words and the end of the sentence: two lists that sum to one each.
  assert sum(shares) == pytest.approx(200, abs=2.5)
  assert shares[:21] == sorted(shares[:21], reverse=True)


def test_predict_reads_lines(whole):
  folder, _ = whole
  word = (folder / 'vocabulary.txt').read_text().split()[0]
  done = _run(
    f'--run={folder}', '--top=1', binary='predict', input=f'{word}\n\n{word}\n'
  )
  assert done.stdout.count('%') == 2


def test_predict_without_a_run_is_one_sentence(tmp_path):
  done = _run(f'--run={tmp_path}', '--text=a', binary='predict')
  assert done.returncode == 2
  assert 'config.json' in done.stderr.strip().splitlines()[-1]
  assert 'Traceback' not in done.stderr
