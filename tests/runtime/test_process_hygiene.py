"""Tests that no process outlives a program, however it ends."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time
import uuid

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_MARK = 'SI_FEDERATED_HYGIENE_TEST'
_RUNTIMES = ('local', 'tff', 'ray')


def _cases(endings, fast):
  """Pairs runtimes with endings; the program's start takes seconds each."""
  no_ray = pytest.mark.skipif(
    importlib.util.find_spec('ray') is None, reason='needs Ray'
  )
  return [
    pytest.param(
      name,
      ending,
      marks=[no_ray] * (name == 'ray')
      + [pytest.mark.slow] * ((name, ending) not in fast),
    )
    for name in _RUNTIMES
    for ending in endings
  ]


# The client of round 1 never ends unless the process does.
_PROGRAM = """
import sys
import threading
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from si_federated import runtime

name, ending = sys.argv[1:]
if name == 'tff':
  # The kernel reports a parent's death when its thread ends.
  thread = threading.Thread(target=runtime.RUNTIMES[name])
  thread.start()
  thread.join()
assert 'ray' not in sys.modules
if name == 'ray':
  runtime.set_ray_context(num_actors=1)
else:
  runtime.RUNTIMES[name]()

@tff.tensorflow.computation(tff.SequenceType(np.int64), np.int64)
def work(data, add):
  return data.reduce(add, lambda a, b: a + b)

@tff.tensorflow.computation(np.int64, np.int64)
def add(a, b):
  return a + b

@tff.federated_computation(
  tff.FederatedType(np.int64, tff.SERVER),
  tff.FederatedType(tff.SequenceType(np.int64), tff.CLIENTS),
)
def step(state, data):
  sums = tff.federated_map(work, (data, tff.federated_broadcast(state)))
  total = tff.federated_sum(sums)
  return tff.federated_map(add, (state, total)), total

numbers = tf.data.Dataset.range(4)
state, _ = step(0, [numbers] * 3)
assert state == 18, state
print('ready', flush=True)
if ending == 'error':
  raise ValueError('on purpose')
if ending == 'round':
  # Ray takes data with an end: there a Python loop never ends.
  endless = (
    (i for i in iter(int, 1)) if name == 'ray' else numbers.repeat(10**12)
  )
  step(state, [numbers, endless, numbers])
print('done', flush=True)
"""


def _living(mark: str) -> list[str]:
  """Names the processes with a mark in their environment, at any depth."""
  found = []
  for folder in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      if mark.encode() in (folder / 'environ').read_bytes():
        command = (folder / 'cmdline').read_bytes().replace(b'\0', b' ')
        found.append(f'{folder.name}: {command[:120]!r}')
    except OSError:
      continue
  return found


def _session(leader: int) -> list[int]:
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      # The fields after the name in parentheses, which may contain anything.
      fields = path.read_text().rpartition(')')[2].split()
    except OSError:
      continue
    if int(fields[3]) == leader and fields[0] != 'Z':
      found.append(int(path.parent.name))
  return found


def _assert_nothing_is_left(process, mark):
  # Ray's agents look for their node only now and then.
  deadline = time.monotonic() + 45
  while time.monotonic() < deadline:
    left = _living(mark), _session(process.pid)
    if not any(left):
      return
    time.sleep(0.1)
  pytest.fail(f'still there: {left}')


@pytest.fixture
def start():
  started = []

  def start_(*command, **options):
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
      command,
      cwd=_ROOT,
      env={
        **os.environ,
        _MARK: mark,
        'PYTHONPATH': str(_ROOT),
        'PYTHONUNBUFFERED': '1',
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,
      **options,
    )
    started.append((process, mark))
    return process, mark

  yield start_
  for process, mark in started:
    for line in _living(mark):
      os.kill(int(line.partition(':')[0]), signal.SIGKILL)
    process.communicate()


def _await_ready(process):
  lines = []
  for line in process.stdout:
    lines.append(line)
    if 'ready' in line:
      return
  pytest.fail(f'ended too early: {"".join(lines)}')


@pytest.mark.parametrize(
  ('name', 'ending'),
  _cases(('success', 'error'), {('tff', 'success'), ('local', 'error')}),
)
def test_a_program_that_ends(start, name, ending):
  """Its output goes through `tee`, which ends with its last writer."""
  process, mark = start(
    'bash',
    '-c',
    'set -o pipefail; "$@" 2>&1 | tee /dev/null',
    'bash',
    sys.executable,
    '-c',
    _PROGRAM,
    name,
    ending,
  )
  output, _ = process.communicate(timeout=240)
  assert process.returncode == (ending == 'error'), output
  assert ('done' in output) == (ending == 'success')
  assert ('ValueError: on purpose' in output) == (ending == 'error')
  _assert_nothing_is_left(process, mark)


@pytest.mark.parametrize(
  ('name', 'how'),
  _cases(
    (signal.SIGINT, signal.SIGTERM, signal.SIGKILL),
    {('local', signal.SIGINT), ('tff', signal.SIGKILL)},
  ),
)
def test_a_program_interrupted_in_a_round(start, name, how):
  if name == 'ray' and how == signal.SIGKILL:
    pytest.skip("two of Ray's own processes take longer to notice it")
  process, mark = start(sys.executable, '-c', _PROGRAM, name, 'round')
  _await_ready(process)
  time.sleep(1)
  assert process.poll() is None
  # Like a terminal, sends Ctrl-C to the program and all processes it started.
  if how == signal.SIGINT:
    os.killpg(process.pid, how)
  else:
    os.kill(process.pid, how)
  output, _ = process.communicate(timeout=30)
  if how == signal.SIGINT:
    assert process.returncode in (1, 130, -signal.SIGINT), output
    assert 'KeyboardInterrupt' in output
  else:
    assert process.returncode in (-how, 128 + how), output
  assert 'done\n' not in output
  _assert_nothing_is_left(process, mark)


@pytest.mark.slow
@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training(start, tmp_path, how):
  """Tests of the training binary cover the local runtime."""
  process, mark = start(
    sys.executable,
    '-m',
    'experiments.train',
    '--task=synthetic:num_clients=30',
    '--vocab_size=20',
    '--sequence_length=8',
    '--model=si_cifg:units=16,embedding_size=8',
    '--clients_per_round=3',
    '--total_rounds=10000',
    '--num_validation_examples=64',
    f'--root_output_dir={tmp_path}',
    '--experiment_name=x',
    '--runtime=tff',
  )
  metrics = tmp_path / 'x' / 'metrics.csv'
  deadline = time.monotonic() + 240
  while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)
  os.killpg(process.pid, how)
  output, _ = process.communicate(timeout=30)
  assert process.returncode == 130, output
  assert 'is saved' in output
  assert 'Traceback' not in output
  _assert_nothing_is_left(process, mark)
