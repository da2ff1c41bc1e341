"""The description of a run's data, and its check when the run resumes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from si_federated import config
from si_federated.assembly import run_data, task_and_model
from si_federated.tasks import data_fingerprint
from si_federated.training import run_folder
from tests import tiny


@pytest.fixture(name='task', scope='module')
def _task():
  return task_and_model.build_task(
    tiny.tiny_config(task='synthetic:num_clients=20')
  )


def _keep(folder, task, **options):
  run_data.keep(
    folder,
    task,
    examples=task.validation.sample_examples(8, seed=0),
    num_parameters=1,
    initial_facts=None,
    **options,
  )


def test_clients_that_changed_are_refused_on_resuming(task, tmp_path):
  folder = run_folder.RunFolder(tmp_path)
  _keep(folder, task)
  folder.open_metrics(-1)
  _keep(folder, task)
  count = len(task.train)
  last = count - 1

  def without_one(member):
    return np.arange(1, task.train.num_examples(member)) if not member else None

  def in_another_order(member):
    return np.arange(task.train.num_examples(member))[::-1]

  for changed in (
    task.train.subset(range(last)),
    task.train.subset([*range(1, count), 0]),
    task.train.subset(range(count), without_one),
    task.train.subset(range(count), in_another_order),
  ):
    other = dataclasses.replace(task, train=changed)
    with pytest.raises(config.ConfigError, match='training clients differ'):
      _keep(folder, other)
  _keep(
    folder, dataclasses.replace(task, train=task.train.subset(range(count)))
  )


def test_a_private_run_must_know_which_clients_it_began_with(task, tmp_path):
  folder = run_folder.RunFolder(tmp_path)
  _keep(folder, task, is_private=True)
  folder.open_metrics(-1)
  (tmp_path / 'task.json').unlink()
  with pytest.raises(config.ConfigError, match='which clients its private run'):
    _keep(folder, task, is_private=True)
  _keep(folder, task)
  # A checkpoint has used noise, even if the rows of the metrics are gone.
  folder.checkpoints.save({'x': np.zeros(1)}, 3, {})
  (tmp_path / 'metrics.csv').unlink()
  _keep(folder, task, is_private=True)
  fewer = dataclasses.replace(
    task, train=task.train.subset(range(len(task.train) - 1))
  )
  with pytest.raises(config.ConfigError, match='training clients differ'):
    _keep(folder, fewer, is_private=True)


def test_large_populations_are_read_in_part(task):
  read = []

  class Spied:
    """Many clients; records which ones are read."""

    def __len__(self):
      return 2000

    def client_id(self, index):
      return str(index)

    def num_examples(self, index):
      return 1 + index % 3

    def examples(self, index):
      read.append(index)
      return np.zeros([1 + index % 3, 4], np.int32)

  spied: Any = Spied()
  first = data_fingerprint.fingerprint(spied)
  assert read == list(range(0, 2000, 4))
  assert first == data_fingerprint.fingerprint(spied)
  assert first != data_fingerprint.fingerprint(task.train)
