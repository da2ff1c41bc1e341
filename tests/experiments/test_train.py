"""Tests of training as a user runs it: a process, killed and started again."""

from __future__ import annotations

import collections
import io
import json
import os
import shutil
import signal
import subprocess
import time
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import config, experiment
from si_federated.inference import trained_model
from tests import tiny

_CHANGES: dict[str, Any] = {
  'sequence_length': 8,
  'model': 'si_cifg:units=16,embedding_size=8',
  'clients_per_round': 3,
  'total_rounds': 12,
  'rounds_per_eval': 4,
  'rounds_per_checkpoint': 3,
  'num_validation_examples': 64,
}
_FLAGS = tiny.tiny_flags(**_CHANGES)


def _start(root, *flags):
  return subprocess.Popen(
    tiny.command('train', *_FLAGS, f'--root_output_dir={root}', *flags),
    cwd=tiny.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def _await_rows(process, folder, count):
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline:
    if process.poll() is not None:
      pytest.fail(f'ended too early: {process.stdout.read()}')
    if (folder / 'metrics.csv').exists() and (
      len(tiny.read_rows(folder)) >= count
    ):
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
  """The folder of an uninterrupted run."""
  root = tmp_path_factory.mktemp('whole')
  experiment.run(tiny.tiny_config(**_CHANGES), str(root))
  return root / 'x'


def test_writes_the_run_folder_and_learns(whole):
  assert {path.name for path in whole.iterdir()} >= {
    'config.json',
    'task.json',
    'vocabulary.txt',
    'metrics.csv',
    'logdir',
    'checkpoints',
    'summary.json',
  }
  rows = tiny.read_rows(whole)
  assert len(rows) == 13
  losses = [float(row['eval/loss']) for row in rows if row['eval/loss']]
  assert losses[-1] < losses[0]
  for row in rows:
    if row['eval/loss']:
      assert float(row['eval/perplexity']) == pytest.approx(
        np.exp(float(row['eval/loss']))
      )
  task = json.loads((whole / 'task.json').read_text())
  assert task['reference_perplexity']['floor'] < losses[-1] * 100


@pytest.mark.slow
def test_killed_it_resumes_from_a_whole_checkpoint(whole, tmp_path):
  """The newest is garbled, the output is piped, and no process remains."""
  process = _start(tmp_path)
  _await_rows(process, tmp_path / 'x', 6)
  process.kill()
  process.communicate()
  assert len(tiny.read_rows(tmp_path / 'x')) < 13
  newest = max((tmp_path / 'x' / 'checkpoints').glob('*.npz'))
  os.truncate(newest, newest.stat().st_size // 3)
  process = _start(tmp_path)
  # The reader of a pipe sees its end when every process that holds the other
  # end has ended.
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  assert _group_is_gone(process)
  assert newest.name in output
  assert 'Falling back' in output
  assert 'Resuming from round' in output
  assert 'round 12/12' in output
  assert str(tmp_path / 'x') in output
  tiny.assert_same_run(tmp_path / 'x', whole)


@pytest.mark.slow
@pytest.mark.parametrize(
  'how', [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_interrupted_saves_and_leaves_no_process(whole, tmp_path, how):
  process = _start(tmp_path)
  _await_rows(process, tmp_path / 'x', 5)
  os.kill(process.pid, how)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 130, output
  assert 'Traceback' not in output
  assert 'is saved' in output
  assert _group_is_gone(process)
  experiment.run(tiny.tiny_config(**_CHANGES), str(tmp_path))
  tiny.assert_same_run(tmp_path / 'x', whole)


@pytest.mark.slow
def test_tffs_runtime_gives_the_same_and_leaves_no_process(whole, tmp_path):
  process = _start(tmp_path, '--runtime=tff', '--total_rounds=1')
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  assert _group_is_gone(process)
  ours, theirs = (
    float(tiny.read_rows(folder)[1]['train/loss'])
    for folder in (tmp_path / 'x', whole)
  )
  assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['--task=docstring'], ["'docstrings'"]),
    (['--clients_per_round=0'], ['--clients_per_round']),
    (['--clients_per_round=many'], ['clients_per_round', 'many']),
    (['--client_learning_rat=1'], ['client_learning_rat']),
    (['stray'], ["'stray'"]),
    (['--model=si_cifg:'], ['--model', 'name:key=value']),
  ],
)
def test_a_wrong_flag_ends_with_one_sentence(tmp_path, args, words):
  done = tiny.run_binary(
    'train', f'--root_output_dir={tmp_path}', '--experiment_name=x', *args
  )
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  for word in words:
    assert word in line
  assert not list(tmp_path.iterdir())


def test_a_wrong_option_is_refused_before_a_folder_is_made(tmp_path):
  with pytest.raises(config.ConfigError, match="'unit'.*'units'"):
    experiment.run(tiny.tiny_config(model='si_cifg:unit=3'), str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_a_name_is_required(tmp_path):
  done = tiny.run_binary('train', f'--root_output_dir={tmp_path}')
  assert done.returncode == 2
  assert 'experiment_name' in done.stderr


def test_other_flags_do_not_resume(whole):
  before = (whole / 'metrics.csv').read_text()
  settings = tiny.config_from_flags(*_FLAGS, '--client_lr=0.125')
  with pytest.raises(config.ConfigError, match='--client_learning_rate: 0.125'):
    experiment.run(settings, str(whole.parent))
  assert (whole / 'metrics.csv').read_text() == before


def test_other_data_do_not_resume(whole, tmp_path):
  """For example, ids change their meaning if docstrings' packages change."""
  folder = tmp_path / 'x'
  shutil.copytree(whole, folder)
  words = (folder / 'vocabulary.txt').read_text().split()
  (folder / 'vocabulary.txt').write_text('\n'.join(words[::-1]) + '\n')
  with pytest.raises(config.ConfigError, match='no longer those'):
    experiment.run(tiny.tiny_config(**_CHANGES), str(tmp_path))


def test_help_shows_every_flag():
  done = tiny.run_binary('train', '--help')
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
  changes: dict[str, Any] = {
    'task': 'stackoverflow',
    'data_dir': str(tmp_path),
    'vocab_size': 10_000,
    'sequence_length': 20,
    'clients_per_round': 4,
    'client_learning_rate': 3.0,
  }
  experiment.run(tiny.tiny_config(**changes), str(tmp_path))
  losses = [
    float(row['eval/loss'])
    for row in tiny.read_rows(tmp_path / 'x')
    if row['eval/loss']
  ]
  assert losses[-1] < losses[0]


def test_stackoverflow_without_its_file_says_which(tmp_path):
  changes: dict[str, Any] = {'task': 'stackoverflow', 'data_dir': str(tmp_path)}
  with pytest.raises(
    (ValueError, OSError), match='stackoverflow.sqlite'
  ) as caught:
    experiment.run(tiny.tiny_config(**changes), str(tmp_path / 'runs'))
  assert '\n' not in str(caught.value)


def test_predict_reads_lines_and_suggests_words_with_probabilities(
  whole, run_binary, monkeypatch
):
  words = (whole / 'vocabulary.txt').read_text().split()
  # Files of Windows editors begin with a byte order mark.
  text = f'\ufeff{words[0]} {words[1]}\n\nunheard\n'.encode()
  monkeypatch.setattr(
    'sys.stdin', io.TextIOWrapper(io.BytesIO(text), encoding='utf-8')
  )
  code, output, errors = run_binary('predict', f'--run={whole}', '--top=21')
  assert code == 0, errors
  assert f'{words[0]} {words[1]} ...' in output
  shares = [
    float(line.split('%')[0]) for line in output.splitlines() if '%' in line
  ]
  # All words and the end of the sentence: two lists that sum to one each.
  assert len(shares) == 42
  assert sum(shares) == pytest.approx(200, abs=2.5)
  assert shares[:21] == sorted(shares[:21], reverse=True)


@pytest.mark.parametrize('encoding', ['utf-8', 'ascii'])
def test_predict_reads_files_that_were_joined(
  whole, run_binary, monkeypatch, encoding
):
  word = (whole / 'vocabulary.txt').read_text().split()[0]
  # Marks are inside the file; PYTHONIOENCODING=ascii concerns the output.
  lines = f'\ufeffcafé {word}\n\ufeff{word}\n'.encode()
  monkeypatch.setattr(
    'sys.stdin', io.TextIOWrapper(io.BytesIO(lines), encoding=encoding)
  )
  code, output, errors = run_binary('predict', f'--run={whole}', '--top=1')
  assert code == 0, errors
  assert [line for line in output.splitlines() if '...' in line] == [
    f'<UNK> {word} ...',
    f'{word} ...',
  ]


def test_predict_refuses_lines_of_another_encoding(
  whole, run_binary, monkeypatch
):
  # As in some locales, where Python reads the byte as some other character.
  stdin = io.TextIOWrapper(
    io.BytesIO('café\n'.encode('latin-1')),
    encoding='utf-8',
    errors='surrogateescape',
  )
  monkeypatch.setattr('sys.stdin', stdin)
  code, _, errors = run_binary('predict', f'--run={whole}')
  assert code == 1
  assert '0xe9); if they are latin1' in errors.splitlines()[-1]


def test_predict_without_a_run_is_reported_in_one_sentence(tmp_path):
  with pytest.raises(config.ConfigError, match='config.json') as caught:
    trained_model.load_model(str(tmp_path))
  assert '\n' not in str(caught.value)
