"""TensorBoard's files of a run that was killed and resumed."""

from __future__ import annotations

import glob
import os

import pytest
import tensorflow as tf

from si_federated.training import event_files, run_folder
from tests import tiny


def _steps(folder):
  """Returns the wall times by step of one column."""
  found: dict[int, list[float]] = {}
  for path in sorted(glob.glob(os.path.join(folder, 'events*'))):
    for event in tf.compat.v1.train.summary_iterator(path):
      for value in event.summary.value:
        if value.tag == 'train/loss':
          found.setdefault(event.step, []).append(event.wall_time)
  return found


def _write(path, checkpoint, rounds):
  folder = run_folder.RunFolder(path)
  folder.open(tiny.tiny_config())
  folder.open_metrics(checkpoint)
  for round_num in rounds:
    folder.write_metrics(round_num, {'train/loss': 1.0 / (1 + round_num)})
  folder.close()


@pytest.mark.parametrize('half_an_event', [False, True])
def test_each_step_stands_once_with_its_time(tmp_path, half_an_event):
  logs = tmp_path / 'logdir'
  _write(tmp_path, -1, range(6))
  before = _steps(logs)
  if half_an_event:
    with open(next(logs.glob('events*')), 'ab') as file:
      file.write(b'\x18\0\0\0\0\0\0\0half')
  (logs / 'notes.txt').write_text('mine')
  _write(tmp_path, 3, [4, 5, 6])
  _write(tmp_path, 5, [6, 7])
  after = _steps(logs)
  assert {step: len(times) for step, times in after.items()} == dict.fromkeys(
    range(8), 1
  )
  for step in range(4):
    assert after[step] == before[step]
  times = [after[step][0] for step in range(8)]
  assert times == sorted(times)
  assert (logs / 'notes.txt').read_text() == 'mine'


def test_a_run_without_a_checkpoint_begins_again(tmp_path):
  _write(tmp_path, -1, [0, 1])
  _write(tmp_path, -1, [0])
  assert set(_steps(tmp_path / 'logdir')) == {0}


def test_no_files_is_no_error(tmp_path):
  event_files.remove_later_steps(str(tmp_path / 'none'), 3)


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
  _write(tmp_path, -1, range(6))
  before = _steps(tmp_path / 'logdir')
  with (
    tiny.small_disk(100),
    pytest.raises(OSError, match=r'^/\S+ was not written \(File too large\)'),
  ):
    event_files.remove_later_steps(str(tmp_path / 'logdir'), 4)
  assert _steps(tmp_path / 'logdir') == before
