"""The benchmark's child processes: their answers, errors and ends."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.benchmarking import (
  protocol,
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
