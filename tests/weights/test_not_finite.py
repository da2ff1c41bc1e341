"""A run that ends in NaN says so, and nothing uses its weights."""

from __future__ import annotations

import json

import numpy as np
import pytest

from si_federated import config, experiment
from si_federated.assembly import task_and_model
from si_federated.inference import export, trained_model
from si_federated.training import checkpoints, loop
from si_federated.weights import initial_model, weight_files
from tests.tiny import tiny_config


@pytest.fixture(scope='module')
def diverged(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  with pytest.raises(loop.DivergedError, match=r'not finite since round [12] '):
    experiment.run(tiny_config(server_learning_rate=1e45), str(root))
  return root / 'x'


def test_its_results_are_kept(diverged):
  summary = json.loads((diverged / 'summary.json').read_text())
  assert summary['rounds'] == 2
  assert summary['diverged_since'] in (1, 2)
  assert (diverged / 'privacy.json').exists()
  assert (diverged / 'checkpoints' / 'round_000002.npz').exists()


def test_its_weights_are_refused(diverged, tmp_path):
  words = r'round_000002\.npz has weights that are not finite.*diverged'
  with pytest.raises(checkpoints.NotFiniteError, match=words):
    trained_model.load_model(str(diverged))
  with pytest.raises(checkpoints.NotFiniteError, match=words):
    export.export_model(str(diverged), str(tmp_path / 'export'))
  assert not (tmp_path / 'export').exists()
  with pytest.raises(config.ConfigError, match=words):
    initial_model.load(str(diverged), task_and_model.build_model)


def test_a_file_of_weights_is_refused(tmp_path):
  path = str(tmp_path / 'w.npz')
  np.savez(path, a=np.zeros([2]), b=np.array([1, np.inf], np.float32))
  with pytest.raises(checkpoints.NotFiniteError, match='in 1 of 2 arrays.* b:'):
    weight_files.read(path)
