"""Initial models that were trained on the clients of a private run."""

from __future__ import annotations

import json

import pytest

from si_federated.aggregators import build_gaussian
from si_federated.assembly import earlier_training, privacy_disclosures
from tests import tiny

_TASK = 'synthetic:num_clients=30,seed=4'


def _run(folder, privacy=None, text_files=None, **changes):
  """Writes the files of a run that its privacy depends on."""
  (folder / 'checkpoints').mkdir(parents=True)
  (folder / 'config.json').write_text(
    tiny.tiny_config(**{'task': _TASK, **changes}).to_json()
  )
  if privacy:
    (folder / 'privacy.json').write_text(json.dumps(privacy))
  if text_files:
    (folder / 'pretraining.json').write_text(
      json.dumps({'text_files': text_files})
    )
  return str(folder)


def _reason(path, **changes):
  return earlier_training.reason_against(
    tiny.tiny_config(**{'task': _TASK, 'initial_model': path, **changes})
  )


def test_a_model_of_the_same_clients_undoes_the_guarantee(tmp_path):
  path = _run(tmp_path / 'a')
  assert _reason(None) is None
  found = _reason(path)
  assert found is not None
  assert 'on these clients without differential privacy' in found
  private = {'private': True, 'epsilon': 2.5, 'delta': 1e-5}
  other = _run(tmp_path / 'b', private)
  found = _reason(other)
  assert found is not None and 'an epsilon of 2.5 at delta 1e-05' in found
  # One of its checkpoints.
  checkpoint = tmp_path / 'b' / 'checkpoints' / 'round_000002.npz'
  checkpoint.write_bytes(b'')
  found = _reason(str(checkpoint))
  assert found is not None and 'an epsilon of 2.5' in found
  # Its privacy is counted.
  assert _reason(other, clip_norm_from=other) is None


def test_models_of_other_data_do_not(tmp_path):
  assert _reason(_run(tmp_path / 'a', task='synthetic:seed=5')) is None
  assert _reason(_run(tmp_path / 'b', data_dir='elsewhere')) is None
  # Pretraining with the task's vocabulary on other text.
  assert _reason(_run(tmp_path / 'c', text_files='*.txt')) is None
  (tmp_path / 'w.weights.h5').write_bytes(b'')
  assert _reason(str(tmp_path / 'w.weights.h5')) is None
  # A TensorFlow checkpoint is named without its ending.
  (tmp_path / 'ckpt.index').write_bytes(b'')
  assert _reason(str(tmp_path / 'ckpt')) is None


def test_the_models_before_it_count_too(tmp_path):
  first = _run(tmp_path / 'a')
  second = _run(tmp_path / 'b', task='synthetic:seed=5', initial_model=first)
  found = _reason(second)
  assert found is not None and f'({first})' in found
  found = _reason(second, clip_norm_from=second)
  assert found is not None and f'({first})' in found
  # Runs that start from each other don't make the search endless; a missing
  # file leaves the origin unknown.
  (tmp_path / 'a' / 'config.json').write_text(
    tiny.tiny_config(task='synthetic:seed=5', initial_model=second).to_json()
  )
  assert _reason(second) is None
  found = _reason(str(tmp_path / 'gone'))
  assert found is not None and 'it cannot be checked' in found


@pytest.mark.parametrize('noise', [1.0, 0.0])
def test_a_private_run_is_called_simulated(tmp_path, noise):
  mechanism = build_gaussian(
    clip_norm=1.0, noise_multiplier=noise, clients_per_round=2, total_rounds=2
  )
  experiment = tiny.tiny_config(
    task=_TASK,
    initial_model=_run(tmp_path / 'a'),
    aggregator='gaussian',
    clip_norm=1.0,
    noise_multiplier=noise,
  )
  found = privacy_disclosures.simulated_because(experiment, mechanism)
  assert [('on these clients' in text) for text in found] == [True] * bool(
    noise
  )
