"""Tests of running a sweep: skipping, failing, stopping, resuming.

A small script stands in for training: it writes the files that a run writes.
"""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from si_federated import config, sweeps
from si_federated.sweeps import runner

_ROOT = pathlib.Path(__file__).parents[2]
# Rounds take 0.02 s each. The script resumes from its metrics; like training,
# it ends after the current round upon SIGTERM.
_TRAIN = """
import os, pathlib, signal, sys, time
folder, fail_at, stop_at, config = sys.argv[1:]
folder = pathlib.Path(folder)
folder.mkdir(exist_ok=True)
(folder / 'config.json').write_text(config)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
metrics = folder / 'metrics.csv'
if not metrics.exists():
  metrics.write_text('round_num,eval/perplexity,eval/accuracy\\n')
done = len(metrics.read_text().splitlines()) - 1
for round_num in range(done + 1, 6):
  if round_num == int(fail_at):
    print('error: the loss is odd.')
    sys.exit(1)
  # No long sleep, which Python would take up again after the signal.
  for _ in range(1500 if round_num == int(stop_at) else 1):
    time.sleep(0 if stopped else 0.02)
  if stopped:
    (folder / 'saved').write_text('')
    sys.exit(130)
  with metrics.open('a') as file:
    file.write(f'{round_num},{100 - round_num},0.{round_num}\\n')
(folder / 'environment').write_text(
  os.environ['TF_NUM_INTRAOP_THREADS'] + ' '
  + str(len(os.sched_getaffinity(0))))
(folder / 'summary.json').write_text('{}')
"""


def _plan(*names, rounds=5):
  return sweeps.Plan(
    tuple(
      config.ExperimentConfig(
        name, total_rounds=rounds, client_learning_rate=rate
      )
      for rate, name in enumerate(names)
    )
  )


def _command(fail_at=0, stop_at=0):
  def command(run):
    settings = run.settings.to_json()
    numbers = [
      str(one.get(run.name, 0) if isinstance(one, dict) else one)
      for one in (fail_at, stop_at)
    ]
    return [sys.executable, '-c', _TRAIN, run.folder, *numbers, settings]

  return command


def _run(runs, command, **options):
  changes = []

  def changed(run):
    if run is not None:
      changes.append((run.name, run.state))

  given = {'num_jobs': 2, 'threads_per_run': 1, 'changed': changed, **options}
  sweeps.run_all(runs, command, **given)
  return changes


def test_each_run_has_processors_of_its_own(tmp_path):
  runs = sweeps.find_runs(_plan('a', 'b', 'c'), tmp_path)
  assert [run.state for run in runs] == [sweeps.WAITING] * 3
  changes = _run(runs, _command())
  assert [run.state for run in runs] == [sweeps.FINISHED] * 3
  assert [(run.round_num, run.perplexity, run.accuracy) for run in runs] == [
    (5, 95.0, 0.5)
  ] * 3
  assert changes[:2] == [('a', sweeps.RUNNING), ('b', sweeps.RUNNING)]
  assert len(changes) == 6
  for name in 'abc':
    assert (tmp_path / name / 'environment').read_text() == '1 1'


def test_sweeps_beside_each_other_take_other_processors(tmp_path, monkeypatch):
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
  monkeypatch.setattr('os.sched_getaffinity', lambda _: {3, 5, 6})
  with runner.take_processors(1, 1) as first:
    assert first == [{3}]
    with runner.take_processors(1, 1) as second:
      assert second == [{5}]
      # Only one is left: the other process shares one.
      with runner.take_processors(2, 1) as third:
        assert third == [{6}, {3}]
    with runner.take_processors(1, 2) as fourth:
      assert fourth == [{5, 6}]
  with runner.take_processors(2, 2) as all_of_them:
    assert all_of_them == [{3, 5}, {3, 6}]


def test_num_jobs_limits_parallel_runs(tmp_path):
  runs = sweeps.find_runs(_plan('a', 'b', 'c'), tmp_path)
  changes = _run(runs, _command(), num_jobs=1)
  states = (sweeps.RUNNING, sweeps.FINISHED)
  assert changes == [(name, state) for name in 'abc' for state in states]


def test_a_failing_run_does_not_stop_the_others_and_is_retried(tmp_path):
  plan = _plan('a', 'b', 'c')
  runs = sweeps.find_runs(plan, tmp_path)
  _run(runs, _command(fail_at={'a': 3}))
  assert [run.state for run in runs] == [
    *(sweeps.FAILED, sweeps.FINISHED, sweeps.FINISHED),
  ]
  assert runs[0].error == 'the loss is odd.'
  assert 'the loss is odd' in pathlib.Path(runs[0].log).read_text()
  assert runs[0].round_num == 2

  runs = sweeps.find_runs(plan, tmp_path)
  assert [run.state for run in runs] == [
    *(sweeps.WAITING, sweeps.FINISHED, sweeps.FINISHED),
  ]
  changes = _run(runs, _command())
  # Finished runs are not started again.
  assert changes == [('a', sweeps.RUNNING), ('a', sweeps.FINISHED)]
  assert len((tmp_path / 'a' / 'metrics.csv').read_text().split()) == 6


def test_error_of_a_killed_run(tmp_path):
  runs = sweeps.find_runs(_plan('a'), tmp_path)
  _run(
    runs,
    lambda run: ['sh', '-c', 'echo three rounds; kill -9 $$'],
  )
  assert runs[0].state == sweeps.FAILED
  assert 'signal 9' in runs[0].error and 'three rounds' in runs[0].error


def test_a_silent_failure_does_not_repeat_an_earlier_error(tmp_path):
  runs = sweeps.find_runs(_plan('a'), tmp_path)
  _run(runs, lambda run: ['sh', '-c', 'echo error: old; exit 1'])
  assert runs[0].error == 'old'
  runs[0].state = sweeps.WAITING
  _run(runs, lambda run: ['sh', '-c', 'exit 3'])
  assert runs[0].error == 'it ended with exit code 3'


def test_another_experiment_in_the_folder_does_not_count_as_finished(tmp_path):
  _run(sweeps.find_runs(_plan('a'), tmp_path), _command())
  (other,) = sweeps.find_runs(_plan('a', rounds=9), tmp_path)
  assert other.state == sweeps.WAITING


@pytest.mark.parametrize('content', ['', '{', 'round_num\nx\n'])
def test_garbled_files_of_a_run_are_ignored(tmp_path, content):
  (tmp_path / 'a').mkdir()
  for name in ('metrics.csv', 'summary.json', 'config.json'):
    (tmp_path / 'a' / name).write_text(content)
  (run,) = sweeps.find_runs(_plan('a'), tmp_path)
  assert (run.state, run.round_num, run.perplexity) == (sweeps.WAITING, 0, None)


def test_an_interrupted_sweep_continues_where_it_stopped(tmp_path):
  plan = _plan('a', 'b', 'c')
  runs = sweeps.find_runs(plan, tmp_path)

  def changed(run):
    # Both runs wait in their third round.
    if run is None and all(one.round_num == 2 for one in runs[:2]):
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    _run(runs, _command(stop_at=3), changed=changed)
  assert (tmp_path / 'a' / 'saved').exists()
  assert (tmp_path / 'b' / 'saved').exists()
  assert not (tmp_path / 'c').exists()
  assert [run.state for run in runs] == [sweeps.WAITING] * 3

  runs = sweeps.find_runs(plan, tmp_path)
  assert [run.round_num for run in runs] == [2, 2, 0]
  _run(runs, _command())
  assert [run.state for run in runs] == [sweeps.FINISHED] * 3
  lines = (tmp_path / 'a' / 'metrics.csv').read_text().split()
  assert [line[:4] for line in lines[1:]] == [
    '1,99',
    '2,98',
    '3,97',
    '4,96',
    '5,95',
  ]


def _eventually(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.05)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_runs_save_and_end_if_the_sweep_is_killed(tmp_path, number):
  program = f"""
import sys, json
sys.path.insert(0, {str(_ROOT)!r})
from si_federated import config, sweeps
from si_federated.sweeps import runner
plan = sweeps.Plan((config.ExperimentConfig('a'),))
runs = sweeps.find_runs(plan, {str(tmp_path)!r})
sweeps.run_all(
  runs,
  lambda run: [sys.executable, '-c', {_TRAIN!r}, run.folder, '0', '3', '{{}}'],
  num_jobs=1, threads_per_run=1, changed=lambda run: None)
"""
  process = subprocess.Popen(
    [sys.executable, '-c', program], stderr=subprocess.DEVNULL
  )
  metrics = tmp_path / 'a' / 'metrics.csv'
  _eventually(
    lambda: metrics.exists() and len(metrics.read_text().split()) == 3
  )
  time.sleep(0.1)
  os.kill(process.pid, number)
  assert process.wait(60) != 0
  _eventually((tmp_path / 'a' / 'saved').exists)


def test_a_run_that_diverged_is_finished(tmp_path):
  plan = _plan('a')
  runs = sweeps.find_runs(plan, tmp_path)
  script = _TRAIN.replace("'{}'", '\'{"diverged_since": 4}\'')

  def command(run):
    settings = run.settings.to_json()
    code = script + '\nsys.exit(1)'
    return [sys.executable, '-c', code, run.folder, '0', '0', settings]

  _run(runs, command)
  assert [run.state for run in runs] == [sweeps.FINISHED]
