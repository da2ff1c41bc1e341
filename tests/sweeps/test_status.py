"""Tests of the progress display: lines, and the rows of the live table."""

from __future__ import annotations

import io

import pytest

from si_federated import config, sweeps
from si_federated.sweeps import status


class _Clock:
  now = 0.0

  def __call__(self):
    return self.now


def _runs(*states):
  return [
    sweeps.Run(
      config.ExperimentConfig(f'r{number}', total_rounds=10),
      folder=f'r{number}',
      log=f'logs/r{number}.txt',
      state=state,
    )
    for number, state in enumerate(states)
  ]


def test_lines_report_starts_ends_and_failures():
  runs = _runs(sweeps.WAITING, sweeps.WAITING)
  clock, stream = _Clock(), io.StringIO()
  with sweeps.Lines(runs, stream, clock=clock) as shown:
    runs[0].state = sweeps.RUNNING
    shown.changed(runs[0])
    runs[0].round_num, runs[0].perplexity = 5, 123.456
    clock.now = 50.0
    shown.changed(None)  # Too early for another line.
    clock.now = 100.0
    shown.changed(None)
    runs[0].round_num, runs[0].secs = 10, 190.0
    runs[0].state = sweeps.FINISHED
    shown.changed(runs[0])
    runs[1].round_num, runs[1].state = 3, sweeps.RUNNING
    shown.changed(runs[1])
    runs[1].state, runs[1].error = sweeps.FAILED, 'no data.'
    shown.changed(runs[1])
  assert stream.getvalue().splitlines() == [
    '0 of 2 runs finished, 2 waiting',
    'started: r0',
    '0 of 2 runs finished, 1 running, 1 waiting, about 5m00s left: r0 5/10',
    'finished: r0 (perplexity 123.5, 3m10s)',
    'started: r1, from round 3',
    'failed: r1: no data. (full output: logs/r1.txt)',
    '1 of 2 runs finished, 1 failed',
  ]


def test_active_runs_come_first_and_hidden_ones_are_counted():
  runs = _runs(*[sweeps.FINISHED] * 3, sweeps.WAITING, sweeps.RUNNING)
  runs[0].state = sweeps.FAILED
  runs[4].round_num, runs[4].perplexity, runs[4].secs = 4, 2e7, 3700.0
  # A classifier's.
  runs[1].accuracy = 0.345
  rows, hidden = status.table_rows(runs, 3)
  assert rows == [
    ('r4', 'running', '4/10', 'perplexity 2e+07', '1h01m'),
    ('r0', 'failed', '0/10', '', ''),
    ('r1', 'finished', '0/10', 'accuracy 34.5%', ''),
  ]
  assert hidden == '... and 2 more'
  assert status.table_rows(runs, 5)[1] == ''


def test_plain_lines_off_a_terminal(capsys):
  with sweeps.show(_runs(sweeps.FINISHED)) as shown:
    assert isinstance(shown, sweeps.Lines)
  assert capsys.readouterr().out == '1 of 1 runs finished\n' * 2


def test_the_live_table_shows_runs_and_failures(capsys):
  pytest.importorskip('rich')
  runs = _runs(sweeps.RUNNING, sweeps.FAILED)
  runs[1].error = 'no data.'
  with sweeps.Live(runs) as shown:
    runs[0].state = sweeps.FINISHED
    shown.changed(runs[0])
  out = capsys.readouterr().out
  assert '1 of 2 runs finished, 1 failed' in out and 'result' in out
  assert 'failed: r1: no data.' in out
