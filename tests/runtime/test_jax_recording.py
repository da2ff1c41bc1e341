"""Recorded rounds of clients, replayed with JAX and NumPy only."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import runtime
from si_federated.runtime import jax_replay
from tests.runtime import jax_runs

_ALONE = """
import runpy, sys
for name in (
  'flatbuffers', 'si_federated', 'tensorflow', 'tensorflow_federated', 'tf2jax'
):
  sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture(autouse=True)
def _local_again():
  """Restores the tests' own runtime for other tests."""
  yield
  runtime.set_local_context()


def _total(server, data):
  return data.reduce(tf.zeros([2]), lambda total, pair: total + server * pair)


def _clients():
  """Returns three clients of 1, 2 and 1 elements."""
  return [
    tf.data.Dataset.from_tensor_slices(np.array(rows, np.float32))
    for rows in ([[1, 2]], [[3, 4], [5, 6]], [[7, 8]])
  ]


def _replay(folder, *arguments):
  return subprocess.run(
    [
      *(sys.executable, '-I', '-c', _ALONE, str(folder / 'replay.py')),
      *('--repetitions=1', *arguments),
    ],
    capture_output=True,
    text=True,
    check=False,
    cwd='/',
  )


def _recorded(tmp_path):
  folder = tmp_path / 'recording'
  context = runtime.set_jax_context(record=str(folder), device='cpu')
  next_round = jax_runs.round_of_sums(
    _total, tff.SequenceType(tff.TensorType(np.float32, [2]))
  )
  _, total = next_round(10.0, _clients())
  np.testing.assert_array_equal(total, [160, 200])
  return folder, context, next_round


def test_a_recording_is_replayed_by_jax_alone(tmp_path):
  folder, context, next_round = _recorded(tmp_path)
  next_round(10.0, _clients())  # only the first round is recorded
  context.record_next({'model': 'sums'}, num_checked=2)
  _, total = next_round(10.0, _clients())
  np.testing.assert_array_equal(total, [90, 120])
  before = sorted(folder.rglob('*'))
  done = _replay(folder, '--json')
  assert done.returncode == 0, done.stderr
  device, first, second = map(json.loads, done.stdout.splitlines())
  assert device['device'].startswith('cpu')
  assert (first['model'], second['model']) == ('computation 1', 'sums')
  for row in (first, second):
    assert (row['num_clients'], row['num_steps']) == (3, 4)
    assert row['deviation'] == 0 and row['agrees']
  assert sorted(folder.rglob('*')) == before
  assert not [path for path in before if path.name.startswith('.')]
  table = _replay(folder).stdout.splitlines()
  assert table[0] == f'# {device["device"]}'
  assert [line.split(' | ')[0] for line in table[4:]] == [
    '| computation 1',
    '| sums',
  ]


def test_a_jax_that_cannot_read_programs_is_reported(tmp_path):
  folder, _, _ = _recorded(tmp_path)
  index = folder / 'recording.json'
  recorded = json.loads(index.read_text())
  for group in recorded['rounds'][0]['groups']:
    for platform, name in group['programs'].items():
      header = (folder / name).read_bytes().partition(b'\n')[0]
      # This is how a module of another version looks to JAX.
      content = header + b'\nMLIR of the future'
      digest = hashlib.sha256(content).hexdigest()[: jax_replay.DIGITS]
      group['programs'][platform] = f'contents/{digest}.bin'
      (folder / group['programs'][platform]).write_bytes(content)
  index.write_text(json.dumps(recorded))
  done = _replay(folder)
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  assert re.search(
    r'ERROR: JAX [\d.]+ cannot read .*install jax [\d.]+', done.stderr
  )


def test_sums_that_differ_are_reported(tmp_path):
  folder, _, _ = _recorded(tmp_path)
  index = json.loads((folder / 'recording.json').read_text())
  # The server's value instead of the sums over no clients.
  index['rounds'][0]['zeros'] = index['rounds'][0]['sums']
  (folder / 'recording.json').write_text(json.dumps(index))
  done = _replay(folder, '--json')
  assert done.returncode == 1
  assert 'differ from the recorded ones' in done.stderr
  assert json.loads(done.stdout.splitlines()[1])['deviation'] == 1


def test_damaged_recordings_are_reported(tmp_path):
  folder, _, _ = _recorded(tmp_path)
  reader = jax_replay.Reader(str(folder))
  (entry,) = reader.rounds
  assert all(set(g['programs']) == {'cpu', 'cuda'} for g in entry['groups'])
  name = entry['broadcast'][0]
  path = folder / name
  content = path.read_bytes()
  path.write_bytes(content[:-1])
  with pytest.raises(jax_replay.RecordingError, match='cut short: copy'):
    reader.arrays([name])
  path.unlink()
  done = _replay(folder)
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  assert re.search(r'ERROR: .*\.npy of the recording cannot', done.stderr)
  index = folder / 'recording.json'
  text = index.read_text()
  index.write_text(text[: len(text) // 2])
  with pytest.raises(jax_replay.RecordingError, match=r'recording\.json.*cut'):
    jax_replay.Reader(str(folder))
  index.write_text(json.dumps({'version': 99, 'rounds': []}))
  with pytest.raises(jax_replay.RecordingError, match='has version 99, not'):
    jax_replay.Reader(str(folder))


def test_a_recording_leaves_other_files_alone(tmp_path):
  (tmp_path / 'notes.txt').write_text('mine')
  with pytest.raises(ValueError, match='not empty: record into a new folder'):
    runtime.set_jax_context(record=str(tmp_path))
  assert [p.name for p in pathlib.Path(tmp_path).iterdir()] == ['notes.txt']


@pytest.mark.parametrize(
  ('got', 'expected', 'deviation'),
  [
    ([[1.0, 2.0]], [[1.0, 4.0]], 0.5),
    ([[np.nan, 2.0]], [[np.nan, 2.0]], 0.0),
    ([[np.nan]], [[1.0]], np.inf),
    ([[0.25], 3], [[0.0], 3], 0.25),
    ([[1.0]], [[1.0, 1.0]], np.inf),
    ([[]], [[]], 0.0),
    # A zero, up to rounding.
    ([[1e-9], [1.0]], [[2e-9], [1.0]], 1e-9),
    # A number has its own scale.
    ([3.0, [1e6]], [2.0, [1e6]], 0.5),
  ],
)
def test_relative_deviations(got, expected, deviation):
  assert jax_replay.deviation(got, expected) == pytest.approx(deviation)
