"""Tests of the benchmark's section on noise."""

from __future__ import annotations

import pytest

from experiments.benchmarking import (
  noise,
  plan,
  protocol,
  workload,
)


def test_noise_of_unmeasured_rounds_is_extrapolated():
  # A row takes 2 s, and the rest of a round 1 s.
  mean, worst = noise.extrapolate([1, 8], [3.0, 17.0], 4.5, 100)
  assert mean == pytest.approx(10) and worst == pytest.approx(201)
  assert noise.extrapolate([1], [3.0], 1.0, 1) == (3.0, 3.0)


@pytest.mark.slow
def test_noise_measures_state_and_rows_of_each_mechanism(tmp_path):
  buffers = 3
  blt = f'blt:num_buffers={buffers}'
  made = plan.Plan(
    workload.Settings(folder=str(tmp_path)),
    repetitions=2,
    noise_models=('cifg:units=64,embedding_size=32',),
    noise_mechanisms=('tree:keep_rows=false', blt),
    noise_vocab_size=50,
    noise_rounds=8,
  )
  lines = noise.measure_noise(made)
  tree, blt_found = made.found('noise')
  # Embedding, two kernels and bias of three gates, projection.
  assert tree['parameters'] == (
    50 * 32 + 32 * 192 + 64 * 192 + 192 + 64 * 32 + 32
  )
  model_bytes = 4 * tree['parameters']
  # The seed, the round's number and the clip norm are not of model size.
  assert tree['state_bytes'] < 100
  assert 0 <= blt_found['state_bytes'] - buffers * model_bytes < 100
  assert blt_found['state_model_sizes'] <= buffers + 2
  assert blt_found['measured_rows'] == [1] and blt_found['most_rows'] == 1
  # The eighth round completes the root, and leaves the nodes of seven rounds.
  assert tree['most_rows'] == 15
  assert tree['measured_rows'][0] == 1 < tree['measured_rows'][1] <= 8
  for entry in (tree, blt_found):
    measured = len(entry['measured_rounds'])
    assert [len(times) for times in entry['round_seconds']] == [2] * measured
    assert len(entry['reference_seconds']) == 2 * measured
  assert not made.found('noise_failed') and len(lines) == 4


class _FakeChild:
  """Answers like a child process of the section on noise."""

  def __init__(self, name, module, settings, **_):
    assert module == 'experiments.benchmarking.noise_child'
    self._name, self._rounds = name, settings['rounds']

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def about(self):
    if self._name == 'dense':
      raise protocol.ChildError('dense ended with code -9: Killed')
    return {
      'parameters': 25,
      'mean_rows': 4.0,
      'most_rows': self._rounds,
      'measured_rounds': [0, 2],
      'measured_rows': [1, 3],
    }

  def ask(self, command, round_num=None):
    reference = self._name == noise.REFERENCE
    if command == 'memory':
      return {
        'state_bytes': 0 if reference else 350,
        'peak_bytes': 600 if reference else 1600,
      }
    return {'seconds': 1.0 if reference else 3.0 + round_num}


def test_noise_is_what_a_mechanism_adds_to_the_reference(monkeypatch):
  monkeypatch.setattr(protocol, 'Child', _FakeChild)
  made = plan.Plan(
    workload.Settings(folder=''),
    noise_models=('cifg',),
    noise_mechanisms=('banded', 'dense'),
    noise_rounds=16,
  )
  lines = noise.measure_noise(made)
  (entry,) = made.found('noise')
  # Rounds of 1 and of 3 rows add 2 s and 4 s.
  assert entry['added_seconds'] == pytest.approx(5)
  assert entry['added_seconds_worst'] == pytest.approx(17)
  assert entry['state_model_sizes'] == pytest.approx(3.5)
  assert entry['added_peak_model_sizes'] == pytest.approx(10)
  assert '| 5000 ' in lines[2] and '| 17000 ' in lines[2]
  (failed,) = made.found('noise_failed')
  assert failed['mechanism'] == 'dense' and 'Killed' in failed['error']
  assert 'dense ' in lines[3] and 'could not be measured' in lines[3]
  assert any('code -9' in text for text in made.notes)
