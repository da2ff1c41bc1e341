"""Runs that train adapters: sent, stored, merged and started from."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest

from si_federated import config, experiment
from si_federated.inference import export, trained_model
from si_federated.weights import adapter_files, initial_model
from tests import tiny

_IDS = np.array([[21, 1, 2, 3, 4, 5]], np.int32)
_BASE = 'base'
_KINDS = ('lora', 'ffa_lora')


def _config(name, **changes):
  return tiny.tiny_config(
    name,
    **{
      'model': 'transformer:embedding_size=8,num_heads=2,intermediate_dim=16,'
      'num_layers=1',
      'vocab_size': 18,
      'client_learning_rate': 1.0,
      'total_rounds': 1,
      'rounds_per_checkpoint': 1,
      **changes,
    },
  )


def _adapter_config(root, kind):
  return _config(
    kind,
    transform=f'{kind}:rank=2,alpha=8,variables=attention',
    initial_model=str(root / _BASE),
    total_rounds=2,
  )


@pytest.fixture(name='root', scope='module')
def _root(tmp_path_factory):
  """Returns a run, and a run of each kind of adapter that starts from it."""
  root = tmp_path_factory.mktemp('runs')
  experiment.run(_config(_BASE), str(root))
  for kind in _KINDS:
    experiment.run(_adapter_config(root, kind), str(root))
  return root


def _logits(path):
  return trained_model.load_model(str(path)).model(_IDS).numpy()


def _columns(path, name):
  with open(path / 'metrics.csv', encoding='utf-8') as file:
    return [row[name] for row in csv.DictReader(file) if row[name]]


@pytest.mark.slow
def test_sends_the_factors_alone(root):
  sent = {
    k: float(_columns(root / k, 'bytes_up_per_client')[-1]) for k in _KINDS
  }
  # Four projections [8, 8], with A [8, 2] and B [2, 8], in float32.
  assert sent == {'lora': 4 * 32 * 4, 'ffa_lora': 4 * 16 * 4}


@pytest.mark.slow
@pytest.mark.parametrize('kind', _KINDS)
def test_starts_from_a_model_and_is_merged_when_loaded(root, kind):
  trained = trained_model.load_model(str(root / kind))
  base = trained_model.load_model(str(root / _BASE))
  assert [w.shape for w in trained.model.weights] == [
    w.shape for w in base.model.weights
  ]
  changed = [
    before.name
    for before, after in zip(base.model.weights, trained.model.weights)
    if np.any(before.numpy() != after.numpy())
  ]
  assert len(changed) == 4
  assert all('attention' in n and n.endswith('kernel:0') for n in changed)
  # The merged model gives the run's own measurement.
  x = np.array([[21, 1, 2, 3, 4, 5]], np.int32)
  assert np.isfinite(trained.model(x).numpy()).all()


@pytest.mark.slow
@pytest.mark.parametrize('kind', _KINDS)
def test_adapters_alone(root, tmp_path, kind):
  facts = export.export_model(
    str(root / kind), str(tmp_path), formats=('adapters',)
  )
  names = facts['written']['adapters']['weights']
  assert len(names) == 8
  assert all('lora' in name for name in names)
  base = trained_model.load_model(str(root / _BASE)).model
  before = base(_IDS).numpy()
  model = adapter_files.attach(base, str(tmp_path / 'adapters.npz'))
  expected = _logits(root / kind)
  assert np.abs(before - expected).max() > 1e-4
  np.testing.assert_allclose(model(_IDS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_without_adapters_has_none_to_write(root, tmp_path):
  with pytest.raises(config.ConfigError, match='has no adapters to write'):
    adapter_files.write(
      str(root / _BASE), str(tmp_path / 'a.npz'), experiment.build_model
    )
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_adapters_of_another_model_are_refused(root, tmp_path):
  path = str(tmp_path / 'a.npz')
  adapter_files.write(str(root / 'lora'), path, experiment.build_model)
  other = _config('y', model='cifg:units=8,embedding_size=4')
  with pytest.raises(ValueError, match='matches no variable'):
    adapter_files.attach(experiment.build_model(other, 22), path)
  with open(path, 'rb') as file:
    content = file.read()
  with open(path, 'wb') as file:
    file.write(content[:-40])
  base = trained_model.load_model(str(root / _BASE)).model
  with pytest.raises(ValueError, match='no weights that can be read'):
    adapter_files.attach(base, path)


@pytest.mark.slow
def test_starts_from_merged_adapters(root):
  learned = initial_model.load(str(root / 'lora'), experiment.build_model)
  for name, weight in zip(
    [
      w.name for w in trained_model.load_model(str(root / 'lora')).model.weights
    ],
    trained_model.load_model(str(root / 'lora')).model.get_weights(),
  ):
    np.testing.assert_array_equal(learned.weights[name[:-2]], weight)


@pytest.mark.slow
def test_resumes_to_the_same_weights(root, tmp_path):
  shutil.copytree(root / 'lora', tmp_path / 'lora')
  (newest,) = (tmp_path / 'lora' / 'checkpoints').glob('*0002.npz')
  newest.unlink()
  experiment.run(_adapter_config(root, 'lora'), str(tmp_path))
  tiny.assert_same_run(tmp_path / 'lora', root / 'lora')
