"""The round loop: resuming, interrupts and divergence."""

from __future__ import annotations

import json
import math
import os
import signal

import numpy as np
import pytest

from si_federated.training import loop
from tests.tiny import read_rows
from tests.training.tiny_loop import (
  Process,
  evaluate_weights,
  last_weights,
  run_loop,
  state_after,
)


def test_an_uninterrupted_run(tmp_path):
  summary = run_loop(tmp_path)
  rows = read_rows(tmp_path)
  assert [int(row['round_num']) for row in rows] == list(range(11))
  # Before the first round, every fourth, and after the last.
  evaluated = [row['round_num'] for row in rows if row['eval/loss']]
  assert evaluated == ['0', '4', '8', '10']
  assert rows[0]['train/loss'] == ''
  assert rows[3]['train/loss'] != ''
  assert rows[1]['bytes_up_per_client'] == '8'
  # Two clients a round.
  assert [float(row['bytes_up_total']) for row in rows[1:3]] == [16, 32]
  assert [float(row['bytes_down_total']) for row in rows[1:3]] == [24, 48]
  assert summary['rounds'] == 10
  assert summary['num_parameters'] == 2
  assert summary['best']['round_num'] == 10
  assert json.loads((tmp_path / 'summary.json').read_text()) == summary
  assert os.listdir(tmp_path / 'logdir')


@pytest.mark.parametrize('interrupt_in', [1, 2, 5, 7, 10])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, interrupt_in):
  run_loop(tmp_path / 'whole')
  process = Process(interrupt_in)
  with pytest.raises(KeyboardInterrupt):
    run_loop(tmp_path / 'parts', process)
  resumed = Process()
  summary = run_loop(tmp_path / 'parts', resumed)
  # The rounds before the interrupt were saved: no round runs twice.
  assert resumed.rounds == list(range(interrupt_in, 11))
  assert read_rows(tmp_path / 'parts') == read_rows(tmp_path / 'whole')
  assert summary['best']['round_num'] == 10
  name, weights = last_weights(tmp_path / 'parts')
  expected_name, expected = last_weights(tmp_path / 'whole')
  assert name == expected_name
  np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize('killed_in', [2, 4, 5, 9])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, killed_in):
  class Killed(BaseException):
    """Unlike an interrupt, leaves no time to save."""

  class KilledProcess(Process):
    def next(self, state, cohort):
      if int(state.finalizer['step']) + 1 == killed_in:
        raise Killed
      return super().next(state, cohort)

  run_loop(tmp_path / 'whole')
  with pytest.raises(Killed):
    run_loop(tmp_path / 'parts', KilledProcess())
  resumed = Process()
  run_loop(tmp_path / 'parts', resumed)
  assert resumed.rounds[0] == 3 * ((killed_in - 1) // 3) + 1
  assert read_rows(tmp_path / 'parts') == read_rows(tmp_path / 'whole')
  np.testing.assert_array_equal(
    last_weights(tmp_path / 'parts')[1], last_weights(tmp_path / 'whole')[1]
  )


def test_interrupted_in_an_evaluation_no_row_is_lost(tmp_path):
  run_loop(tmp_path / 'whole')
  calls = 0

  def evaluate(weights):
    nonlocal calls
    calls += 1
    if calls == 2:
      raise KeyboardInterrupt
    return evaluate_weights(weights)

  with pytest.raises(KeyboardInterrupt):
    run_loop(tmp_path / 'parts', evaluate=evaluate)
  run_loop(tmp_path / 'parts')
  assert read_rows(tmp_path / 'parts') == read_rows(tmp_path / 'whole')


def test_sigterm_saves_too(tmp_path):
  class SignalledProcess(Process):
    def next(self, state, cohort):
      if int(state.finalizer['step']) + 1 == 5:
        os.kill(os.getpid(), signal.SIGTERM)
      return super().next(state, cohort)

  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(KeyboardInterrupt):
    run_loop(tmp_path, SignalledProcess())
  assert last_weights(tmp_path)[0] == 'round_000004.npz'
  assert signal.getsignal(signal.SIGTERM) == before


def test_an_interrupt_that_surfaces_as_an_error_is_one(tmp_path):
  class SignalledProcess(Process):
    def next(self, state, cohort):
      if int(state.finalizer['step']) + 1 == 5:
        try:
          os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt as error:
          raise TypeError('a callback of TensorFlow failed') from error
      return super().next(state, cohort)

  with pytest.raises(KeyboardInterrupt):
    run_loop(tmp_path, SignalledProcess())
  assert last_weights(tmp_path)[0] == 'round_000004.npz'


@pytest.mark.parametrize('signals', [1, 2])
def test_in_place_an_interrupt_waits_for_the_end_of_the_round(
  tmp_path, signals
):
  class SignalledProcess(Process):
    def next(self, state, cohort):
      if int(state.finalizer['step']) + 1 == 5:
        for _ in range(signals):
          os.kill(os.getpid(), signal.SIGINT)
      return super().next(state, cohort)

  with pytest.raises(KeyboardInterrupt):
    run_loop(tmp_path, SignalledProcess(), in_place=True)
  # The second one interrupts at once, and leaves a state that must not be
  # saved.
  expected = {1: 'round_000005.npz', 2: 'round_000003.npz'}
  assert last_weights(tmp_path)[0] == expected[signals]


def test_starting_a_finished_run_again_changes_nothing(tmp_path):
  run_loop(tmp_path)
  rows = read_rows(tmp_path)
  process = Process()
  run_loop(tmp_path, process)
  assert process.rounds == []
  assert read_rows(tmp_path) == rows


def test_losses_that_are_not_finite_are_recorded(tmp_path):
  def evaluate(weights):
    del weights
    return {
      **evaluate_weights(state_after([0.0], 0).global_model_weights),
      'perplexity': math.nan,
    }

  summary = run_loop(tmp_path, Process(nan_from=3), evaluate)
  assert read_rows(tmp_path)[5]['train/loss'] == 'nan'
  assert summary['best'] == {}
  # Strict JSON has no NaN.
  text = (tmp_path / 'summary.json').read_text()
  assert (
    json.loads(text, parse_constant=pytest.fail)['final']['eval/perplexity']
    is None
  )


def test_a_run_that_diverges_says_since_when(tmp_path, capsys):
  class _Diverging(Process):
    def next(self, state, cohort):
      output = super().next(state, cohort)
      step = len(self.rounds)
      # A loss that is NaN once, in round 3, is not divergence.
      if step in (3, 6, 7, 8, 9, 10):
        output.metrics['client_work']['train']['loss'] = math.nan
      if step >= 7:
        output.state.global_model_weights.trainable[0][:] = np.inf
      return output

  with pytest.raises(loop.DivergedError, match='since round 6 .*metrics.csv'):
    run_loop(tmp_path, _Diverging())
  assert (
    json.loads((tmp_path / 'summary.json').read_text())['diverged_since'] == 6
  )
  assert len(read_rows(tmp_path)) == 11
  assert 'The loss of round 6 is not finite.' in capsys.readouterr().err
  # Started again, it says the same.
  with pytest.raises(loop.DivergedError, match='since round 6 '):
    run_loop(tmp_path)


class _InfiniteSince(Process):
  """Its weights are infinite after one round and all later ones."""

  def __init__(self, first, **options):
    super().__init__(**options)
    self._first = first

  def next(self, state, cohort):
    output = super().next(state, cohort)
    if int(output.state.finalizer['step']) >= self._first:
      output.state.global_model_weights.trainable[0][:] = np.inf
    return output


def test_a_diverged_run_stops_early_if_told_to(tmp_path):
  stopping = {'stop_when_diverged': True}
  # A training loss that is NaN from round 2 on is not divergence.
  process = _InfiniteSince(5, nan_from=2)
  with pytest.raises(
    loop.DivergedError, match=r'since round 2 .*, and it stopped after round 5;'
  ):
    run_loop(tmp_path / 'whole', process, **stopping)
  assert process.rounds == [1, 2, 3, 4, 5]
  rows = read_rows(tmp_path / 'whole')
  assert [row['round_num'] for row in rows if row['eval/loss']] == [
    '0', '4', '5',
  ]  # fmt: skip
  summary = json.loads((tmp_path / 'whole' / 'summary.json').read_text())
  assert summary['rounds'] == 5
  assert summary['diverged_since'] == 2
  assert summary['final']['eval/loss'] is None
  assert last_weights(tmp_path / 'whole')[0] == 'round_000005.npz'

  # Interrupted and resumed, it stops at the same round.
  with pytest.raises(KeyboardInterrupt):
    run_loop(
      tmp_path / 'parts',
      _InfiniteSince(5, nan_from=2, interrupt_in=4),
      **stopping,
    )
  with pytest.raises(loop.DivergedError, match='stopped after round 5'):
    run_loop(tmp_path / 'parts', _InfiniteSince(5, nan_from=2), **stopping)
  assert read_rows(tmp_path / 'parts') == rows

  # Started again, it says the same and trains no more; without the option it
  # goes on.
  again = Process()
  with pytest.raises(loop.DivergedError, match='stopped after round 5'):
    run_loop(tmp_path / 'parts', again, **stopping)
  assert again.rounds == []
  with pytest.raises(loop.DivergedError, match=r'metrics\.csv\); train'):
    run_loop(tmp_path / 'parts', again)
  assert again.rounds == [6, 7, 8, 9, 10]


def test_an_evaluation_that_is_not_finite_stops_a_run(tmp_path):
  process = Process()
  with pytest.raises(loop.DivergedError, match='stopped after round 8'):
    run_loop(
      tmp_path,
      process,
      lambda weights: {
        **evaluate_weights(weights),
        'loss': math.nan if process.rounds[-1:] >= [5] else 1.0,
      },
      stop_when_diverged=True,
    )
  assert process.rounds[-1] == 8
