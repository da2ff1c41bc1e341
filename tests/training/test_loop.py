from __future__ import annotations

import asyncio
import csv
import errno
import json
import math
import os
import signal
import types
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import config, files
from si_federated.privacy import Participation, PrivacyRecord, strategies
from si_federated.privacy import ledger as ledger_lib
from si_federated.privacy.ledger import Ledger
from si_federated.training import callbacks, checkpoints, loop, run_folder

_TIMINGS = {'round_secs', 'eval_secs', 'secs_total', 'clients_per_sec'}


class _State(NamedTuple):
  global_model_weights: Any
  finalizer: Any


def _state(weights, step):
  return _State(
    tff.learning.models.ModelWeights((weights,), ()), {'step': np.int32(step)}
  )


class _Process:
  """A learning process whose state shows the cohorts of all rounds."""

  def __init__(self, interrupt_in=None, nan_from=math.inf):
    self.interrupt_in = interrupt_in
    self.nan_from = nan_from
    self.rounds = []

  def initialize(self):
    return _state(np.zeros([2], np.float32), 0)

  def get_model_weights(self, state):
    return state.global_model_weights

  def next(self, state, cohort):
    step = int(state.finalizer['step']) + 1
    self.rounds.append(step)
    if step == self.interrupt_in:
      raise KeyboardInterrupt
    (weights,) = state.global_model_weights.trainable
    weights = (weights * np.float32(0.9) + np.float32(sum(cohort))).astype(
      np.float32
    )
    loss = math.nan if step >= self.nan_from else float(weights[0])
    return types.SimpleNamespace(
      state=_state(weights, step),
      metrics={
        'client_work': {
          'train': {'loss': loss, 'accuracy': 0.5, 'num_tokens': 10.0}
        }
      },
    )


def _evaluate(weights):
  loss = float(weights.trainable[0][0]) / 100
  return {
    'loss': loss,
    'accuracy': 0.1,
    'accuracy_no_oov': 0.1,
    'accuracy_no_oov_no_eos': 0.1,
    'num_tokens': 3.0,
    'perplexity': math.exp(10 - loss),
  }


class _Cohort(list):
  """Client n has the data n."""

  @property
  def clients(self):
    return list(self)


def _run(
  path,
  process=None,
  evaluate=_evaluate,
  total_rounds=10,
  sample_cohort=lambda round_num: _Cohort([round_num, 2 * round_num]),
  ledger=None,
  in_place=False,
  stop_when_diverged=False,
):
  folder = run_folder.RunFolder(path)
  folder.open(config.ExperimentConfig('x'))
  try:
    return loop.run(
      process=process or _Process(),
      sample_cohort=sample_cohort,
      evaluate=evaluate,
      folder=folder,
      total_rounds=total_rounds,
      rounds_per_eval=4,
      rounds_per_checkpoint=3,
      bytes_per_client=lambda metrics: {'up': 8, 'down': 12},
      callbacks=[] if ledger is None else [callbacks.PrivacyAccounting(ledger)],
      in_place=in_place,
      stop_when_diverged=stop_when_diverged,
    )
  finally:
    folder.close()


def _rows(path):
  with open(path / 'metrics.csv', newline='') as file:
    return [
      {key: value for key, value in row.items() if key not in _TIMINGS}
      for row in csv.DictReader(file)
    ]


def _last_weights(path):
  newest = sorted(os.listdir(path / 'checkpoints'))[-1]
  with np.load(path / 'checkpoints' / newest) as arrays:
    return newest, arrays['state/global_model_weights/trainable/0']


def test_an_uninterrupted_run(tmp_path):
  summary = _run(tmp_path)
  rows = _rows(tmp_path)
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
  _run(tmp_path / 'whole')
  process = _Process(interrupt_in)
  with pytest.raises(KeyboardInterrupt):
    _run(tmp_path / 'parts', process)
  resumed = _Process()
  summary = _run(tmp_path / 'parts', resumed)
  # The rounds before the interrupt were saved: no round runs twice.
  assert resumed.rounds == list(range(interrupt_in, 11))
  assert _rows(tmp_path / 'parts') == _rows(tmp_path / 'whole')
  assert summary['best']['round_num'] == 10
  name, weights = _last_weights(tmp_path / 'parts')
  expected_name, expected = _last_weights(tmp_path / 'whole')
  assert name == expected_name
  np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize('killed_in', [2, 4, 5, 9])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, killed_in):
  class Killed(BaseException):
    """Unlike an interrupt, leaves no time to save."""

  class Process(_Process):
    def next(self, state, cohort):
      if int(state.finalizer['step']) + 1 == killed_in:
        raise Killed
      return super().next(state, cohort)

  _run(tmp_path / 'whole')
  with pytest.raises(Killed):
    _run(tmp_path / 'parts', Process())
  resumed = _Process()
  _run(tmp_path / 'parts', resumed)
  assert resumed.rounds[0] == 3 * ((killed_in - 1) // 3) + 1
  assert _rows(tmp_path / 'parts') == _rows(tmp_path / 'whole')
  np.testing.assert_array_equal(
    _last_weights(tmp_path / 'parts')[1], _last_weights(tmp_path / 'whole')[1]
  )


def test_interrupted_in_an_evaluation_no_row_is_lost(tmp_path):
  _run(tmp_path / 'whole')
  calls = 0

  def evaluate(weights):
    nonlocal calls
    calls += 1
    if calls == 2:
      raise KeyboardInterrupt
    return _evaluate(weights)

  with pytest.raises(KeyboardInterrupt):
    _run(tmp_path / 'parts', evaluate=evaluate)
  _run(tmp_path / 'parts')
  assert _rows(tmp_path / 'parts') == _rows(tmp_path / 'whole')


def test_sigterm_saves_too(tmp_path):
  class Process(_Process):
    def next(self, state, cohort):
      if int(state.finalizer['step']) + 1 == 5:
        os.kill(os.getpid(), signal.SIGTERM)
      return super().next(state, cohort)

  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(KeyboardInterrupt):
    _run(tmp_path, Process())
  assert _last_weights(tmp_path)[0] == 'round_000004.npz'
  assert signal.getsignal(signal.SIGTERM) == before


def test_an_interrupt_that_surfaces_as_an_error_is_one(tmp_path):
  class Process(_Process):
    def next(self, state, cohort):
      if int(state.finalizer['step']) + 1 == 5:
        try:
          os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt as error:
          raise TypeError('a callback of TensorFlow failed') from error
      return super().next(state, cohort)

  with pytest.raises(KeyboardInterrupt):
    _run(tmp_path, Process())
  assert _last_weights(tmp_path)[0] == 'round_000004.npz'


@pytest.mark.parametrize('signals', [1, 2])
def test_in_place_an_interrupt_waits_for_the_end_of_the_round(
  tmp_path, signals
):
  class Process(_Process):
    def next(self, state, cohort):
      if int(state.finalizer['step']) + 1 == 5:
        for _ in range(signals):
          os.kill(os.getpid(), signal.SIGINT)
      return super().next(state, cohort)

  with pytest.raises(KeyboardInterrupt):
    _run(tmp_path, Process(), in_place=True)
  # The second one interrupts at once, and leaves a state that must not be
  # saved.
  expected = {1: 'round_000005.npz', 2: 'round_000003.npz'}
  assert _last_weights(tmp_path)[0] == expected[signals]


def test_a_torn_last_row_is_dropped_on_resuming(tmp_path):
  _run(tmp_path / 'whole')
  with pytest.raises(KeyboardInterrupt):
    _run(tmp_path / 'parts', _Process(interrupt_in=6))
  with open(tmp_path / 'parts' / 'metrics.csv', 'a') as file:
    file.write('6,0.12')
  _run(tmp_path / 'parts')
  assert _rows(tmp_path / 'parts') == _rows(tmp_path / 'whole')


def test_starting_a_finished_run_again_changes_nothing(tmp_path):
  _run(tmp_path)
  rows = _rows(tmp_path)
  process = _Process()
  _run(tmp_path, process)
  assert process.rounds == []
  assert _rows(tmp_path) == rows


def test_losses_that_are_not_finite_are_recorded(tmp_path):
  def evaluate(weights):
    del weights
    return {
      **_evaluate(_state([0.0], 0).global_model_weights),
      'perplexity': math.nan,
    }

  summary = _run(tmp_path, _Process(nan_from=3), evaluate)
  assert _rows(tmp_path)[5]['train/loss'] == 'nan'
  assert summary['best'] == {}
  # Strict JSON has no NaN.
  text = (tmp_path / 'summary.json').read_text()
  assert (
    json.loads(text, parse_constant=pytest.fail)['final']['eval/perplexity']
    is None
  )


def test_a_run_that_diverges_says_since_when(tmp_path, capsys):
  class _Diverging(_Process):
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
    _run(tmp_path, _Diverging())
  assert (
    json.loads((tmp_path / 'summary.json').read_text())['diverged_since'] == 6
  )
  assert len(_rows(tmp_path)) == 11
  assert 'The loss of round 6 is not finite.' in capsys.readouterr().err
  # Started again, it says the same.
  with pytest.raises(loop.DivergedError, match='since round 6 '):
    _run(tmp_path)


class _InfiniteSince(_Process):
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
    _run(tmp_path / 'whole', process, **stopping)
  assert process.rounds == [1, 2, 3, 4, 5]
  rows = _rows(tmp_path / 'whole')
  assert [row['round_num'] for row in rows if row['eval/loss']] == [
    '0', '4', '5',
  ]  # fmt: skip
  summary = json.loads((tmp_path / 'whole' / 'summary.json').read_text())
  assert summary['rounds'] == 5
  assert summary['diverged_since'] == 2
  assert summary['final']['eval/loss'] is None
  assert _last_weights(tmp_path / 'whole')[0] == 'round_000005.npz'

  # Interrupted and resumed, it stops at the same round.
  with pytest.raises(KeyboardInterrupt):
    _run(
      tmp_path / 'parts',
      _InfiniteSince(5, nan_from=2, interrupt_in=4),
      **stopping,
    )
  with pytest.raises(loop.DivergedError, match='stopped after round 5'):
    _run(tmp_path / 'parts', _InfiniteSince(5, nan_from=2), **stopping)
  assert _rows(tmp_path / 'parts') == rows

  # Started again, it says the same and trains no more; without the option it
  # goes on.
  again = _Process()
  with pytest.raises(loop.DivergedError, match='stopped after round 5'):
    _run(tmp_path / 'parts', again, **stopping)
  assert again.rounds == []
  with pytest.raises(loop.DivergedError, match=r'metrics\.csv\); train'):
    _run(tmp_path / 'parts', again)
  assert again.rounds == [6, 7, 8, 9, 10]


def test_an_evaluation_that_is_not_finite_stops_a_run(tmp_path):
  process = _Process()
  with pytest.raises(loop.DivergedError, match='stopped after round 8'):
    _run(
      tmp_path,
      process,
      lambda weights: {
        **_evaluate(weights),
        'loss': math.nan if process.rounds[-1:] >= [5] else 1.0,
      },
      stop_when_diverged=True,
    )
  assert process.rounds[-1] == 8


def test_perplexities_beyond_tensorboards_numbers_are_recorded(tmp_path):
  def evaluate(weights):
    return {**_evaluate(weights), 'perplexity': 5.5e133}

  summary = _run(tmp_path, evaluate=evaluate)
  assert summary['final']['eval/perplexity'] == 5.5e133
  assert _rows(tmp_path)[-1]['eval/perplexity'] == '5.5e+133'


def test_other_flags_are_refused_and_nothing_is_lost(tmp_path):
  _run(tmp_path)
  rows = _rows(tmp_path)
  folder = run_folder.RunFolder(tmp_path)
  with pytest.raises(config.ConfigError, match='--client_learning_rate: 9'):
    folder.open(config.ExperimentConfig('x', client_learning_rate=9.0))
  assert _rows(tmp_path) == rows


def test_without_its_rows_a_checkpoint_still_refuses_other_flags(tmp_path):
  _run(tmp_path)
  (tmp_path / 'config.json').write_text(config.ExperimentConfig('x').to_json())
  (tmp_path / 'metrics.csv').unlink()
  with pytest.raises(config.ConfigError, match='--client_learning_rate: 9'):
    run_folder.RunFolder(tmp_path).open(
      config.ExperimentConfig('x', client_learning_rate=9.0)
    )


def test_flags_may_change_until_there_is_something_to_resume(tmp_path):
  one = run_folder.RunFolder(tmp_path)
  assert not one.open(config.ExperimentConfig('x', data_dir='wrong'))
  one.close()
  other = run_folder.RunFolder(tmp_path)
  assert not other.open(config.ExperimentConfig('x', data_dir='right'))
  assert run_folder.read_config(tmp_path).data_dir == 'right'
  other.close()
  assert other.open(config.ExperimentConfig('x', data_dir='right'))


def test_runs_where_an_event_loop_is_running(tmp_path):
  """As in a notebook."""

  async def notebook():
    return _run(tmp_path, total_rounds=2)

  assert asyncio.run(notebook())['rounds'] == 2
  assert len(_rows(tmp_path)) == 3


def test_two_processes_do_not_share_a_folder(tmp_path):
  one = run_folder.RunFolder(tmp_path)
  one.open(config.ExperimentConfig('x'))
  with pytest.raises(files.LockedError, match='Another process'):
    run_folder.RunFolder(tmp_path).open(config.ExperimentConfig('x'))
  one.close()
  run_folder.RunFolder(tmp_path).open(config.ExperimentConfig('x'))


def test_a_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(config.ConfigError, match='config.json'):
    run_folder.read_config(tmp_path)
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(config.ConfigError, match='garbled'):
    run_folder.read_config(tmp_path)


def _ledger(noise_multiplier=2.0, max_participations=3, **facts):
  contract = Participation(10, max_participations, 4)
  return Ledger(
    mechanism='gaussian',
    delta=1e-5,
    contract=contract,
    record=PrivacyRecord(strategies.identity(10), noise_multiplier, contract),
    facts={'clip_norm': 1.0, **facts},
    unnoised=['train/loss'],
  )


def _five_in_turn(round_num):
  return _Cohort([round_num % 5, 100 + round_num])


def test_epsilon_is_that_of_the_participation_so_far(tmp_path):
  _run(tmp_path, sample_cohort=_five_in_turn, ledger=_ledger())
  rows = _rows(tmp_path)
  assert rows[0]['privacy/epsilon'] == '0.0'
  # One participation up to round 5, two from round 6 on, when client 1 is back.
  once, twice = (
    PrivacyRecord(
      strategies.identity(10), 2.0, Participation(10, k, 5)
    ).epsilon(1e-5)
    for k in (1, 2)
  )
  found = [float(row['privacy/epsilon']) for row in rows[1:]]
  np.testing.assert_allclose(found, [once] * 5 + [twice] * 5, rtol=1e-6)
  privacy = json.loads((tmp_path / 'privacy.json').read_text())
  assert privacy['epsilon'] == pytest.approx(twice)
  assert privacy['observed'] == {
    'rounds': 10,
    'clients': 15,
    'max_participations': 2,
    'min_separation': 5,
  }
  assert privacy['contract']['max_participations'] == 3
  assert privacy['promised']['epsilon'] > privacy['epsilon']
  assert privacy['released_without_noise'] == ['train/loss']
  assert privacy['private'] and not privacy['simulated']
  summary = json.loads((tmp_path / 'summary.json').read_text())
  assert summary['privacy']['epsilon'] == privacy['epsilon']


def test_privacy_json_is_true_at_each_checkpoint(tmp_path, monkeypatch):
  found = {}
  save = checkpoints.Checkpoints.save

  def look(self, state, round_num, facts):
    found[round_num] = json.loads((tmp_path / 'privacy.json').read_text())
    return save(self, state, round_num, facts)

  monkeypatch.setattr(checkpoints.Checkpoints, 'save', look)
  _run(tmp_path, sample_cohort=_five_in_turn, ledger=_ledger())
  assert 0 in found and max(found) == 10 and len(found) > 2
  rows = _rows(tmp_path)
  for round_num, privacy in found.items():
    assert privacy['private']
    assert privacy['observed']['rounds'] == round_num
    assert privacy['epsilon'] == pytest.approx(
      float(rows[round_num]['privacy/epsilon'])
    )
    assert ledger_lib.sentence(privacy).startswith(
      f'Privacy: epsilon {privacy["epsilon"]:.3f} at delta 1e-05'
    )


def test_privacy_json_does_not_count_a_round_that_was_not_saved(
  tmp_path, monkeypatch
):
  write = run_folder.RunFolder.write_metrics

  def interrupted(self, round_num, values):
    if round_num == 7:
      raise KeyboardInterrupt
    write(self, round_num, values)

  monkeypatch.setattr(run_folder.RunFolder, 'write_metrics', interrupted)
  with pytest.raises(KeyboardInterrupt):
    _run(tmp_path, sample_cohort=_five_in_turn, ledger=_ledger())
  privacy = json.loads((tmp_path / 'privacy.json').read_text())
  assert _last_weights(tmp_path)[0] == 'round_000006.npz'
  assert privacy['observed']['rounds'] == 6


def test_a_checkpoint_without_a_ledger_is_refused(tmp_path):
  _run(tmp_path, total_rounds=4)
  with pytest.raises(
    ValueError, match='round 4 .* does not record who took part'
  ):
    _run(tmp_path, sample_cohort=_five_in_turn, ledger=_ledger())
  # Without noise nothing is promised.
  _run(
    tmp_path, sample_cohort=_five_in_turn, ledger=_ledger(noise_multiplier=0.0)
  )


def test_a_cohort_that_breaks_the_contract_is_not_used(tmp_path):
  process = _Process()
  with pytest.raises(ValueError, match='Client 1 takes part in round 8'):
    _run(
      tmp_path,
      process,
      sample_cohort=lambda r: _Cohort([1] if r in (5, 8) else [10 + r]),
      ledger=_ledger(),
    )
  assert process.rounds[-1] == 7
  # Earlier rounds are saved, though no checkpoint was due.
  assert _last_weights(tmp_path)[0] == 'round_000007.npz'
  assert _rows(tmp_path)[-1]['round_num'] == '7'


def test_a_resumed_ledger_is_that_of_an_uninterrupted_run(tmp_path):
  _run(tmp_path / 'whole', sample_cohort=_five_in_turn, ledger=_ledger())
  with pytest.raises(KeyboardInterrupt):
    _run(
      tmp_path / 'x',
      _Process(interrupt_in=8),
      sample_cohort=_five_in_turn,
      ledger=_ledger(),
    )
  saved = int(_last_weights(tmp_path / 'x')[0][6:12])
  privacy = json.loads((tmp_path / 'x' / 'privacy.json').read_text())
  assert privacy['observed']['rounds'] == saved
  _run(tmp_path / 'x', sample_cohort=_five_in_turn, ledger=_ledger())
  assert _rows(tmp_path / 'x') == _rows(tmp_path / 'whole')
  files = [
    (tmp_path / name / 'privacy.json').read_text() for name in ('x', 'whole')
  ]
  assert files[0] == files[1]


def test_an_interrupt_in_an_evaluation_leaves_its_round_out(tmp_path):
  calls = []

  def evaluate(weights):
    calls.append(1)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return _evaluate(weights)

  with pytest.raises(KeyboardInterrupt):
    _run(
      tmp_path,
      evaluate=evaluate,
      sample_cohort=_five_in_turn,
      ledger=_ledger(),
    )
  _run(tmp_path, sample_cohort=_five_in_turn, ledger=_ledger())
  assert len(_rows(tmp_path)) == 11


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'noise_multiplier': 3.0}, 'noise_multiplier: 2.0 there, 3.0 here'),
    ({'max_participations': 2}, 'contract'),
    ({'clip_norm': 0.5}, 'clip_norm: 1.0 there, 0.5 here'),
    ({'participation': 'poisson'}, 'participation: None there, poisson here'),
  ],
)
def test_a_checkpoint_of_another_promise_is_refused(tmp_path, changed, message):
  _run(tmp_path, total_rounds=6, sample_cohort=_five_in_turn, ledger=_ledger())
  before = (tmp_path / 'metrics.csv').read_text()
  with pytest.raises(ValueError, match=message):
    _run(tmp_path, sample_cohort=_five_in_turn, ledger=_ledger(**changed))
  assert (tmp_path / 'metrics.csv').read_text() == before


def test_a_last_digit_refuses_no_resume(tmp_path):
  def ledger(factor):
    population = {'num_clients': 99, 'epsilon': 3.0 * factor, 'delta': 1e-6}
    return _ledger(2.0 * factor, simulated_population=population)

  _run(tmp_path, total_rounds=6, sample_cohort=_five_in_turn, ledger=ledger(1))
  with pytest.raises(ValueError, match='simulated_population'):
    _run(tmp_path, sample_cohort=_five_in_turn, ledger=ledger(1 + 1e-6))
  _run(tmp_path, sample_cohort=_five_in_turn, ledger=ledger(1 + 2e-16))


def test_a_folder_without_locks_is_used_with_a_warning(
  tmp_path, monkeypatch, caplog
):
  def fail(file, operation):
    del file, operation
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr('fcntl.flock', fail)
  assert _run(tmp_path)['rounds'] == 10
  assert f'{tmp_path} has no file locks' in caplog.text


def test_opening_a_folder_removes_what_a_killed_run_was_writing(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'checkpoints' / '.round_000003.npz.abcdefgh').write_text('')
  (tmp_path / 'metrics.csv_temp1234').write_text('')
  _run(tmp_path)
  names = {path.name for path in tmp_path.rglob('*')}
  assert '.round_000003.npz.abcdefgh' not in names
  assert 'metrics.csv_temp1234' not in names


def test_metrics_that_cannot_be_written_are_reported_in_one_sentence(
  tmp_path, monkeypatch
):
  async def fail(self, value, key):
    del self, value, key
    raise tf.errors.ResourceExhaustedError(None, None, 'm.csv; No space left')

  manager = tff.program.CSVFileReleaseManager
  monkeypatch.setattr(manager, 'release', fail)
  with pytest.raises(OSError, match='metrics.csv was not written .No space'):
    _run(tmp_path)
