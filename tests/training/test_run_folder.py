"""The folder of a run: its lock, its flags and its metrics."""

from __future__ import annotations

import asyncio
import errno

import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import config, files
from si_federated.training import run_folder
from tests.tiny import read_rows
from tests.training.tiny_loop import (
  Process,
  evaluate_weights,
  run_loop,
)


def test_a_torn_last_row_is_dropped_on_resuming(tmp_path):
  run_loop(tmp_path / 'whole')
  with pytest.raises(KeyboardInterrupt):
    run_loop(tmp_path / 'parts', Process(interrupt_in=6))
  with open(tmp_path / 'parts' / 'metrics.csv', 'a') as file:
    file.write('6,0.12')
  run_loop(tmp_path / 'parts')
  assert read_rows(tmp_path / 'parts') == read_rows(tmp_path / 'whole')


def test_perplexities_beyond_tensorboards_numbers_are_recorded(tmp_path):
  def evaluate(weights):
    return {**evaluate_weights(weights), 'perplexity': 5.5e133}

  summary = run_loop(tmp_path, evaluate=evaluate)
  assert summary['final']['eval/perplexity'] == 5.5e133
  assert read_rows(tmp_path)[-1]['eval/perplexity'] == '5.5e+133'


def test_other_flags_are_refused_and_nothing_is_lost(tmp_path):
  run_loop(tmp_path)
  rows = read_rows(tmp_path)
  folder = run_folder.RunFolder(tmp_path)
  with pytest.raises(config.ConfigError, match='--client_learning_rate: 9'):
    folder.open(config.ExperimentConfig('x', client_learning_rate=9.0))
  assert read_rows(tmp_path) == rows


def test_without_its_rows_a_checkpoint_still_refuses_other_flags(tmp_path):
  run_loop(tmp_path)
  (tmp_path / 'config.json').write_text(config.ExperimentConfig('x').to_json())
  (tmp_path / 'metrics.csv').unlink()
  with pytest.raises(config.ConfigError, match='--client_learning_rate: 9'):
    run_folder.RunFolder(tmp_path).open(
      config.ExperimentConfig('x', client_learning_rate=9.0)
    )


def test_flags_may_change_until_there_is_something_to_resume(tmp_path):
  one = run_folder.RunFolder(tmp_path)
  assert not one.open(config.ExperimentConfig('x', data_dir='wrong'))
  one.close()
  other = run_folder.RunFolder(tmp_path)
  assert not other.open(config.ExperimentConfig('x', data_dir='right'))
  assert run_folder.read_config(tmp_path).data_dir == 'right'
  other.close()
  assert other.open(config.ExperimentConfig('x', data_dir='right'))


def test_runs_where_an_event_loop_is_running(tmp_path):
  """As in a notebook."""

  async def notebook():
    return run_loop(tmp_path, total_rounds=2)

  assert asyncio.run(notebook())['rounds'] == 2
  assert len(read_rows(tmp_path)) == 3


def test_two_processes_do_not_share_a_folder(tmp_path):
  one = run_folder.RunFolder(tmp_path)
  one.open(config.ExperimentConfig('x'))
  with pytest.raises(files.LockedError, match='Another process'):
    run_folder.RunFolder(tmp_path).open(config.ExperimentConfig('x'))
  one.close()
  run_folder.RunFolder(tmp_path).open(config.ExperimentConfig('x'))


def test_a_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(config.ConfigError, match='config.json'):
    run_folder.read_config(tmp_path)
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(config.ConfigError, match='garbled'):
    run_folder.read_config(tmp_path)


def test_a_folder_without_locks_is_used_with_a_warning(
  tmp_path, monkeypatch, caplog
):
  def fail(file, operation):
    del file, operation
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr('fcntl.flock', fail)
  assert run_loop(tmp_path)['rounds'] == 10
  assert f'{tmp_path} has no file locks' in caplog.text


def test_opening_a_folder_removes_what_a_killed_run_was_writing(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'checkpoints' / '.round_000003.npz.abcdefgh').write_text('')
  (tmp_path / 'metrics.csv_temp1234').write_text('')
  run_loop(tmp_path)
  names = {path.name for path in tmp_path.rglob('*')}
  assert '.round_000003.npz.abcdefgh' not in names
  assert 'metrics.csv_temp1234' not in names


def test_metrics_that_cannot_be_written_are_reported_in_one_sentence(
  tmp_path, monkeypatch
):
  async def fail(self, value, key):
    del self, value, key
    raise tf.errors.ResourceExhaustedError(None, None, 'm.csv; No space left')

  manager = tff.program.TensorBoardReleaseManager
  monkeypatch.setattr(manager, 'release', fail)
  with pytest.raises(OSError, match='logdir was not written .No space'):
    run_loop(tmp_path)


def test_each_round_appends_one_line(tmp_path):
  folder = run_folder.RunFolder(tmp_path)
  folder.open_metrics(-1)
  folder.write_metrics(0, {'eval/loss': 2.5, 'round_secs': float('inf')})
  before = (tmp_path / 'metrics.csv').read_bytes()
  inode = (tmp_path / 'metrics.csv').stat().st_ino
  folder.write_metrics(1, {'train/loss': 0.5})
  after = (tmp_path / 'metrics.csv').read_bytes()
  assert after.startswith(before) and after.count(b'\n') == 3
  # Nothing is renamed over it, as when all rows are written again.
  assert (tmp_path / 'metrics.csv').stat().st_ino == inode
  rows = run_folder.read_metrics(tmp_path)
  assert [row['round_num'] for row in rows] == ['0', '1']
  assert rows[0]['eval/loss'] == '2.5' and rows[0]['round_secs'] == 'inf'
  assert rows[1]['train/loss'] == '0.5' and rows[1]['eval/loss'] == ''


def test_a_last_line_that_may_be_a_part_does_not_count(tmp_path):
  folder = run_folder.RunFolder(tmp_path)
  folder.open_metrics(-1)
  folder.write_metrics(0, {'secs_total': 1.25})
  folder.write_metrics(1, {'secs_total': 2.25})
  file = tmp_path / 'metrics.csv'
  file.write_bytes(file.read_bytes()[:-1])
  assert [row['round_num'] for row in run_folder.read_metrics(tmp_path)] == [
    '0'
  ]
