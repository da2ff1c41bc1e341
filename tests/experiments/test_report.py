"""Tests of the report command as a user runs it."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[2]


def _report(*args):
  """Runs it in a process of its own."""
  return subprocess.run(
    [sys.executable, '-m', 'experiments.report', *map(str, args)],
    env={**os.environ, 'PYTHONPATH': str(_ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture
def runs(tmp_path):
  """Two small run folders in `tmp_path/runs`."""
  for name in ('cifg', 'si_cifg'):
    folder = tmp_path / 'runs' / name
    folder.mkdir(parents=True)
    config = {'experiment_name': name, 'model': name, 'total_rounds': 2}
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'metrics.csv').write_text(
      'round_num,train/loss,eval/perplexity,secs_total\n'
      '0,,900,0\n1,6.5,,3\n2,6.1,400,5\n'
    )
  return tmp_path / 'runs'


def test_prints_the_tables_and_then_the_paths(runs):
  done = _report('--runs', runs)
  assert (done.returncode, done.stderr) == (0, '')
  lines = done.stdout.splitlines()
  assert lines[0].split()[:3] == ['run', 'model', 'rounds']
  assert lines[2].split() == [
    *('cifg', 'cifg', '2', '400.0', '400.0', '2', '5', 's'),
    *('unfinished,', '2', 'of', '2', 'rounds'),
  ]
  paths = lines[lines.index('') + 1 :]
  assert str(runs / 'report' / 'report.html') in paths
  assert all(pathlib.Path(path).stat().st_size for path in paths)
  assert {path.name for path in (runs / 'report').iterdir()} == {
    pathlib.Path(path).name for path in paths
  }


def test_runs_by_name_output_and_title(runs, tmp_path, run_binary, monkeypatch):
  shutil.copytree(runs / 'cifg', runs / 'more')
  monkeypatch.chdir(runs)
  for args in (
    ['--runs=cifg,si_cifg'],
    ['--runs=cifg', '--runs', 'more', 'si_cifg'],
  ):
    out = tmp_path / str(len(list(tmp_path.iterdir())))
    code, output, errors = run_binary(
      'report', *args, f'--output={out}', '--title=My runs'
    )
    assert (code, errors) == (0, '')
    assert '\nsi_cifg' in output
    text = (out / 'report.md').read_text(encoding='utf-8')
    assert text.startswith('# My runs\n')
  assert not (runs / 'report').exists()


@pytest.mark.parametrize(
  ('args', 'code', 'message'),
  [
    ([], 2, 'Flag --runs is missing'),
    (['--runs=nowhere'], 1, 'There is no folder nowhere;'),
    (['--runs=.', '--output=a/b', '--nonsense=1'], 2, "flag 'nonsense'"),
    (['--runs=empty'], 1, 'has a metrics.csv'),
    (['--runs=.', '--output=cifg/metrics.csv'], 1, 'cifg/metrics.csv'),
  ],
)
def test_mistakes_end_with_one_sentence(
  runs, args, code, message, run_binary, monkeypatch
):
  (runs / 'empty').mkdir()
  monkeypatch.chdir(runs)
  returned, output, errors = run_binary('report', *args)
  assert returned == code
  assert message in errors
  assert len(errors.strip().splitlines()) == 1
  assert output == ''


def test_corrupt_run_keeps_the_old_report(runs, run_binary):
  (runs / 'report').mkdir()
  (runs / 'report' / 'report.html').write_text('old')
  (runs / 'cifg' / 'metrics.csv').write_text('')
  code, _, errors = run_binary('report', '--runs', str(runs))
  assert code == 1
  assert 'metrics.csv is empty' in errors
  assert 'Traceback' not in errors
  assert 'Traceback' in _report('--runs', runs, '-v=1').stderr
  assert (runs / 'report' / 'report.html').read_text() == 'old'


def test_help_lists_the_flags():
  # In a process of its own, whose docstring it is.
  done = _report('--help')
  assert done.returncode == 0
  for words in ('--runs', '--output', '--title', 'Makes a report'):
    assert words in done.stdout


def test_report_needs_neither_tensorflow_nor_tff():
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      'import sys, experiments.report; print(sorted(m for m in sys.modules '
      "if m in ('tensorflow', 'tensorflow_federated')))",
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == '[]\n'
