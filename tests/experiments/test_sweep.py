"""Tests of the sweep command as a user runs it."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_TINY = (
  '--task=synthetic:num_clients=12,num_words=10',
  '--vocab_size=10',
  '--sequence_length=4',
  '--model=cifg:units=4,embedding_size=4',
  '--clients_per_round=2',
  '--max_elements_per_client=4',
  '--total_rounds=2',
  '--rounds_per_eval=1',
  '--num_validation_examples=20',
)


def _run(binary, *args):
  return subprocess.run(
    [sys.executable, '-m', f'experiments.{binary}', *map(str, args)],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
  )


def _sweep(root, *args):
  return _run(
    'sweep', '--experiment_name=s', f'--root_output_dir={root}', *_TINY, *args
  )


# Stands in for Python with experiments.train.
_TRAIN = """#!/bin/sh
for argument in "$@"; do
  case $argument in
    --experiment_name=*) name=${argument#--experiment_name=} ;;
    --root_output_dir=*) root=${argument#--root_output_dir=} ;;
  esac
done
[ "$name" = transform=freeze ] && { echo 'error: no variable.'; exit 1; }
mkdir "$root/$name"
printf 'round_num,eval/perplexity\\n2,9\\n' > "$root/$name/metrics.csv"
"""
_GRID = '--grid=transform=none|freeze:variables=nothing'


def test_two_runs_one_of_which_fails(tmp_path):
  train = tmp_path / 'train'
  train.write_text(_TRAIN)
  train.chmod(0o755)
  code = (
    f'import sys; sys.executable = {str(train)!r}\n'
    'from experiments import sweep; sweep.run()'
  )

  def sweep(*args):
    flags = ['--experiment_name=s', f'--root_output_dir={tmp_path}', *_TINY]
    return subprocess.run(
      [sys.executable, '-c', code, *flags, *args],
      cwd=_ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

  done = sweep(_GRID)
  assert done.returncode == 1, done.stderr
  assert 'finished: transform=none (perplexity 9.0' in done.stdout
  assert 'failed: transform=freeze: no variable.' in done.stdout
  assert done.stderr.startswith('error: 1 of 2 runs failed')
  assert len(done.stderr.strip().splitlines()) == 1
  said = tmp_path / 's' / 'logs' / 'transform=freeze.txt'
  assert said.read_text() == 'error: no variable.\n'

  # A changed plan is refused, and nothing is run.
  done = sweep(_GRID, '--client_learning_rate=0.5')
  assert done.returncode == 2
  assert '--client_learning_rate: 1.0 in the plan, 0.5 now' in done.stderr


@pytest.mark.slow
def test_training_by_a_sweep_and_a_report(tmp_path):
  done = _sweep(tmp_path, _GRID)
  assert done.returncode == 1, done.stderr
  assert 'finished: transform=none (perplexity' in done.stdout
  folder = tmp_path / 's'
  assert (folder / 'transform=none' / 'summary.json').exists()
  said = folder / 'logs' / 'transform=freeze.txt'
  assert 'nothing' in said.read_text()
  done = _run('report', f'--runs={folder}')
  assert done.returncode == 0, done.stderr
  assert (folder / 'report' / 'report.html').exists()


def test_dry_run_prints_commands_of_train(tmp_path):
  done = _sweep(tmp_path, '--grid=client_lr=0.1,1', '--seeds=2', '--dry_run')
  assert (done.returncode, done.stderr) == (0, '')
  commands = [shlex.split(line) for line in done.stdout.splitlines()]
  assert len(commands) == 4
  assert not (tmp_path / 's').exists()
  for command in commands:
    assert command[:3] == [sys.executable, '-m', 'experiments.train']
    assert f'--root_output_dir={tmp_path / "s"}' in command
    assert '--model=cifg:units=4,embedding_size=4' in command
  assert '--experiment_name=client_lr=1-seed=1' in commands[3]
  assert {'--model_seed=1', '--client_seed=1'} <= set(commands[3])


def test_a_plan_of_which_nothing_has_run_may_be_replaced(tmp_path):
  assert _sweep(tmp_path, '--grid=client_lr=0.1,1', '--dry_run').stdout
  name = ['--experiment_name=s', f'--root_output_dir={tmp_path}']
  recipe = tmp_path / 'a.flags'
  recipe.write_text('--total_rounds=0\n')
  # Nothing has run, so the plan may still change.
  (tmp_path / 's').mkdir()
  plan = _run('sweep', *name, f'--recipes={recipe}', '--dry_run')
  assert '--experiment_name=a ' in plan.stdout


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['--grid=client_lr'], 'FLAG=VALUE'),
    (['--grid=nonsense=1'], "no flag 'nonsense'"),
    (['--grid=client_lr=1,1'], 'twice'),
    (['--recipes=nowhere.flags'], 'no such file'),
    (['--jobs=0'], '1 or more'),
    (['--random=2'], 'the flags to vary'),
    (['--grid=client_lr=log:0.1..1'], '--random=N'),
    (['--seed_flags=seed'], 'no seed'),
  ],
)
def test_mistakes_end_with_one_sentence(tmp_path, args, words):
  done = _sweep(tmp_path, *args)
  assert done.returncode == 2
  assert words in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
  assert done.stdout == ''
  assert not (tmp_path / 's').exists()


def test_help_lists_the_flags():
  done = _run('sweep', '--help')
  assert done.returncode == 0
  for words in ('--grid', '--recipes', '--seeds', '--random', '--model'):
    assert words in done.stdout


def test_a_garbled_plan_is_an_error(tmp_path):
  (tmp_path / 's').mkdir()
  (tmp_path / 's' / 'sweep.json').write_text(json.dumps({'runs': 1}))
  done = _sweep(tmp_path, '--grid=client_lr=1')
  assert done.returncode == 2
  assert 'sweep.json is not a plan of a sweep' in done.stderr
