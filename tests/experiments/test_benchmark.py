"""Tests of the benchmark: its parts, and the command as a user runs it."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.benchmarking import (
  flops,
  noise,
  plan,
  protocol,
  steps,
  table,
  workload,
)

_ROOT = pathlib.Path(__file__).parents[2]
_ECHO = 'tests_echo_child'
_ECHO_CODE = """
import os, subprocess, sys
from experiments.benchmarking import protocol

def start(settings):
  print('a library prints this', flush=True)
  if settings.get('fail'):
    raise ValueError('no such thing')
  sleeper = subprocess.Popen(['sleep', '600'])
  def die():
    os._exit(3)
  def fail():
    raise KeyError('gone')
  return {
    'about': {'pid': os.getpid(), 'sleeper': sleeper.pid, **settings},
    'twice': lambda number: {'result': 2 * number},
    'fail': fail,
    'die': die,
  }

protocol.serve(start)
"""


def _alive(pid):
  try:
    with open(f'/proc/{pid}/stat', encoding='utf-8') as file:
      return file.read().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def _wait_until_gone(*pids):
  deadline = time.monotonic() + 20
  while any(map(_alive, pids)) and time.monotonic() < deadline:
    time.sleep(0.05)
  return [pid for pid in pids if _alive(pid)]


@pytest.fixture
def child(tmp_path):
  """Makes children that echo; they are closed at the end."""
  (tmp_path / f'{_ECHO}.py').write_text(_ECHO_CODE)
  children = []

  def make(**settings):
    children.append(
      protocol.Child(
        'echo',
        _ECHO,
        settings,
        log=str(tmp_path / 'log'),
        environment={'PYTHONPATH': f'{_ROOT}:{tmp_path}'},
      )
    )
    return children[-1]

  yield make
  for made in children:
    made.close(at_once=True)


def test_child_answers_and_ends_with_its_descendants(child):
  with child(word='x') as made:
    about = made.about()
    assert about['word'] == 'x'
    assert made.ask('twice', number=4) == {'result': 8}
    assert made.about() == about
    assert _alive(about['pid']) and _alive(about['sleeper'])
  assert not _wait_until_gone(about['pid'], about['sleeper'])


def test_child_errors_are_reported(child, tmp_path):
  with pytest.raises(protocol.ChildError, match='echo: ValueError: no such'):
    child(fail=True).about()
  made = child()
  with pytest.raises(protocol.ChildError, match="echo: KeyError: 'gone'"):
    made.ask('fail')
  assert made.ask('twice', number=1) == {'result': 2}
  with pytest.raises(protocol.ChildError, match='echo ended with code 3'):
    made.ask('die')
  assert 'a library prints this' in (tmp_path / 'log').read_text()


@pytest.mark.skipif(sys.platform != 'linux', reason='needs prctl')
def test_child_is_killed_with_its_parent(child, tmp_path):
  child()
  code = (
    'import sys; from experiments.benchmarking import protocol\n'
    f'c = protocol.Child("echo", {_ECHO!r}, {{}}, log={str(tmp_path / "l")!r},'
    f' environment={{"PYTHONPATH": {f"{_ROOT}:{tmp_path}"!r}}})\n'
    'print(c.about()["pid"], flush=True); sys.stdin.read()'
  )
  parent = subprocess.Popen(
    [sys.executable, '-c', code],
    cwd=_ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  with parent:
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert _alive(pid)
    parent.kill()
  assert not _wait_until_gone(pid)


def test_step_flops_are_those_of_the_formula():
  settings = workload.Settings(folder='')
  lstm = flops.step_flops(settings, 'lstm')
  tokens, vocabulary = 16 * 20, 10_004
  assert lstm == 6 * tokens * (
    96 * 4 * 670 + 670 * 4 * 670 + 670 * 96 + 96 * vocabulary
  )
  assert lstm == pytest.approx(5.9e9, rel=0.01)
  gate = 6 * tokens * 670 * (96 + 670)
  assert lstm - flops.step_flops(settings, 'cifg') == gate
  assert flops.step_flops(settings, 'si_cifg') == lstm - gate


def test_full_sentences_have_no_padding_and_depend_on_the_seed():
  settings = workload.Settings(folder='', num_words=30, sequence_length=5)
  ids = workload.full_sentences(settings, 200)
  assert ids.shape == (200, 6) and ids.dtype == np.int32
  assert set(ids[:, 0]) == {32}
  assert ids[:, 1:].min() == 1 and ids[:, 1:].max() == 30
  assert np.array_equal(ids, workload.full_sentences(settings, 200))
  counts = np.bincount(ids[:, 1:].ravel())
  assert counts[1] > 3 * counts[10]


def test_cohorts_and_weights_are_saved_and_loaded(tmp_path):
  settings = workload.Settings(folder=str(tmp_path), batch_size=2)
  clients = [
    np.array([[9, 1, 2], [9, 3, 0]]),
    np.array([[9, 4, 5], [9, 6, 7], [9, 8, 0]]),
  ]
  workload.save_cohort(settings, 'uneven', clients)
  loaded = workload.load_cohort(settings, 'uneven')
  assert [client.tolist() for client in loaded] == [
    client.tolist() for client in clients
  ]
  assert workload.num_steps(settings, loaded) == 1 + 2
  assert workload.num_tokens(loaded) == 3 + 5
  path = str(tmp_path / 'weights.npz')
  weights = [np.full([i + 1], float(i)) for i in range(12)]
  workload.save_weights(path, weights)
  assert [w.tolist() for w in workload.load_weights(path)] == [
    w.tolist() for w in weights
  ]
  assert (
    workload.Settings.from_json({**settings.as_json(), 'more': 1}) == settings
  )


def test_disagreement_is_relative_to_the_update():
  initial = [np.zeros([2]), np.ones([1])]
  reference = [np.array([3.0, 0.0]), np.array([5.0])]
  other = [np.array([3.0, 0.0]), np.array([5.5])]
  assert workload.disagreement(other, reference, initial) == pytest.approx(0.1)
  assert workload.disagreement(reference, reference, initial) == 0


def test_plan_finds_records_and_leaves_out():
  made = plan.Plan(workload.Settings(folder=''), contestants=['local', 'pfl'])
  made.record('round', contestant='local', seconds=1)
  made.record('round', contestant='pfl', seconds=2)
  assert [r['seconds'] for r in made.found('round', contestant='pfl')] == [2]
  made.leave_out('pfl', 'none')
  assert made.present(['pfl', 'local']) == ['local']
  assert made.notes == ['pfl is left out: none']


def test_table_is_aligned():
  assert table.table([{'a': 'ccc'}, {'a': 'd', 'bb': 'e'}]) == [
    '| a   | bb |',
    '|-----|----|',
    '| ccc |    |',
    '| d   | e  |',
  ]


def test_our_cohorts_have_the_same_batches():
  from experiments.benchmarking import ours

  settings = workload.Settings(
    folder='', num_words=5, sequence_length=3, batch_size=2
  )
  # Words 1..5, unknown 6, beginning 7, end 8.
  clients = [
    np.array([[7, 1, 6, 5], [7, 2, 8, 0], [7, 3, 4, 8]]),
    np.array([[7, 8, 0, 0]]),
  ]
  for cohort in (
    ours.cohort(settings, clients),
    ours.tff_cohort(settings, clients),
  ):
    for client, dataset in zip(clients, cohort):
      batches = list(dataset.as_numpy_iterator())
      assert max(len(x) for x, _ in batches) <= 2
      x, y = (np.concatenate(part) for part in zip(*batches))
      # Batches may be cut to their longest sentence.
      width = x.shape[1]
      assert x.tolist() == client[:, :-1][:, :width].tolist()
      assert y.tolist() == client[:, 1:][:, :width].tolist()
      assert not client[:, 1:][:, width:].any()


def _benchmark(*args, **options):
  return subprocess.run(
    [sys.executable, '-m', 'experiments.benchmark', *map(str, args)],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
    **options,
  )


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--contestants=local,flower', "--contestants has 'flower'; choose from"),
    ('--sections=', '--sections is empty'),
    ('--pfl_python=nowhere/python', '--pfl_python=nowhere/python does not'),
    ('--repetitions=0', 'repetitions'),
    ('--accelerator_clients=ten', '--accelerator_clients=ten must be numbers'),
    ('--record=experiments', '--record=experiments is not empty'),
  ],
)
def test_wrong_flags_end_with_a_sentence(tmp_path, flag, message):
  done = _benchmark(flag, f'--output_dir={tmp_path / "out"}')
  assert done.returncode == 2, done.stderr
  assert message in done.stderr and 'Traceback' not in done.stderr
  assert not (tmp_path / 'out').exists()


class _FakeContestant:
  """Answers like a child process of the section on steps."""

  def __init__(self, name, module, settings, **unused_options):
    self._name, self._settings = name, settings
    self._seconds = iter((9.0, 3.0, 5.0, 1.0))

  def __enter__(self):
    return self

  def __exit__(self, *unused_error):
    pass

  def close(self, *, at_once):
    assert at_once

  def about(self):
    if self._name == 'ray':
      raise protocol.ChildError('ray ended with code 1: no ray')
    if self._name != 'workload':
      return {'how': 'somehow'}
    settings = workload.Settings.from_json(self._settings)
    path = workload.weights_file(settings, 'cifg')
    workload.save_weights(path, [np.zeros([2])])
    numbers = {'clients': 3, 'steps': 4, 'tokens': 60, 'sentences': 12}
    return {'clients': dict.fromkeys(self._settings['kinds'], numbers)}

  def ask(self, command, *, path=None, **unused_fields):
    if command == 'update':
      workload.save_weights(path, [np.array([3.0, 4.0])])
      return {}
    return {'seconds': next(self._seconds)}


def test_steps_are_medians_of_rounds(monkeypatch, tmp_path):
  monkeypatch.setattr(protocol, 'Child', _FakeContestant)
  made = plan.Plan(
    workload.Settings(folder=str(tmp_path)),
    contestants=('local', 'ray'),
    models=('cifg',),
    kinds=('single', 'uneven'),
    repetitions=2,
  )
  lines = steps.measure_steps(made)
  rounds = made.found('round')
  # The kinds take turns.
  assert [(r['kind'], r['seconds']) for r in rounds] == [
    *(('single', 9.0), ('uneven', 3.0), ('single', 5.0), ('uneven', 1.0)),
  ]
  single, uneven = made.found('steps')
  assert single['round_seconds'] == 7.0 and uneven['round_seconds'] == 2.0
  assert uneven['steps_per_second'] == pytest.approx(4 / 2)
  assert steps.seconds_a_step(made, 'local', 'cifg', 'single') == 7 / 4
  assert steps.seconds_a_step(made, 'ray', 'cifg', 'single') is None
  assert 'ray is left out: ray ended with code 1: no ray' in made.notes
  assert '| cifg  | single  | local ' in lines[2] and '(reference)' in lines[2]


def _records(folder):
  text = (folder / 'benchmark.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_quick_run_measures_steps(tmp_path):
  out = tmp_path / 'out'
  done = _benchmark(
    '--quick',
    '--contestants=local',
    '--models=cifg',
    '--client_kinds=single,uneven',
    '--sections=steps',
    f'--output_dir={out}',
  )
  assert done.returncode == 0, done.stderr
  assert sorted(path.name for path in out.iterdir()) == [
    'benchmark.jsonl',
    'machine.json',
    'table.md',
  ]
  records = _records(out)
  rounds = [r for r in records if r['record'] == 'round']
  assert [(r['kind'], r['repetition']) for r in rounds] == [
    ('single', 0),
    ('uneven', 0),
    ('single', 1),
    ('uneven', 1),
  ]
  (single,) = [
    r for r in records if r['record'] == 'steps' and r['kind'] == 'single'
  ]
  median = np.median([r['seconds'] for r in rounds if r['kind'] == 'single'])
  assert single['round_seconds'] == pytest.approx(median)
  assert single['steps_per_second'] == pytest.approx(3 / median)
  machine = json.loads((out / 'machine.json').read_text())
  assert machine['cores'] == len(os.sched_getaffinity(0))
  table_text = (out / 'table.md').read_text()
  assert '| cifg  | single  | local ' in table_text
  assert 'figures mean nothing' in table_text


def test_terminated_run_leaves_no_process_and_no_folder(tmp_path):
  environment = {**os.environ, 'TMPDIR': str(tmp_path)}
  run = subprocess.Popen(
    [
      *(sys.executable, '-m', 'experiments.benchmark', '--quick'),
      *('--contestants=local', f'--output_dir={tmp_path / "out"}'),
    ],
    cwd=_ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  with run:
    assert run.stderr is not None
    for line in run.stderr:
      if line.startswith('Making the clients'):
        break
    deadline = time.monotonic() + 30
    while not (children := _children(run.pid)):
      assert time.monotonic() < deadline
      time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=30)
  assert run.returncode == 143
  assert not _wait_until_gone(*children)
  assert not list(tmp_path.glob('si_federated_benchmark*'))


def _children(pid):
  path = pathlib.Path(f'/proc/{pid}/task/{pid}/children')
  return [int(child) for child in path.read_text().split()]


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


@pytest.mark.slow
def test_every_section_with_tff(tmp_path):
  out = tmp_path / 'out'
  done = _benchmark(
    '--quick',
    '--contestants=local,tff',
    '--models=lstm',
    f'--output_dir={out}',
  )
  assert done.returncode == 0, done.stderr
  records = _records(out)
  agreements = [r for r in records if r['record'] == 'agreement']
  assert {r['kind'] for r in agreements} == set(workload.KINDS)
  assert all(r['same_work'] for r in agreements)
  ways = [r['way'] for r in records if r.get('name') == 'square']
  assert ways == ['one product on all cores', 'a product a core']
  (limit,) = [r for r in records if r['record'] == 'limit']
  square = max(
    r['flops_per_second'] for r in records if r.get('name') == 'square'
  )
  assert limit['limit_seconds'] == pytest.approx(limit['step_flops'] / square)
  memory = [r for r in records if r['record'] == 'peak_memory']
  assert [r['clients'] for r in memory] == [2, 4]
  assert all(100e6 < r['bytes'] < 20e9 for r in memory)
  for record in ('start_up', 'empty_client'):
    assert {r['contestant'] for r in records if r['record'] == record} == {
      'local',
      'tff',
    }
