"""Diagnostics of a run: their content, and no effect on training."""

from __future__ import annotations

import csv
import os
import types

import numpy as np
import pytest
import tensorflow_federated as tff
from absl import flags as absl_flags

from si_federated import config, experiment, flags, models
from si_federated.algorithms import OPTIMIZERS
from si_federated.assembly import diagnostics_stage, private_mechanism
from si_federated.diagnostics import plan as plan_lib
from si_federated.diagnostics import recorder as recorder_lib
from si_federated.diagnostics import rows_file
from si_federated.tasks import TASKS
from si_federated.training import callbacks, loop, run_folder

_SPEC = config.ComponentSpec.parse
_MODEL = (
  'transformer:embedding_size=8,num_heads=2,intermediate_dim=8,num_layers=1,'
  'activation=abu_absolute:relu+swish'
)
_CONFIG = config.ExperimentConfig(
  'x',
  task=_SPEC('synthetic:num_clients=12'),
  model=_SPEC(_MODEL),
  aggregator=_SPEC('mean:weighting=uniform,zeroing=false'),
  server_optimizer=_SPEC('sgd'),
  server_learning_rate=1.0,
  client_learning_rate=0.3,
  client_epochs_per_round=2,
  client_batch_size=4,
  max_elements_per_client=10,
  vocab_size=20,
  sequence_length=6,
  clients_per_round=3,
  num_validation_examples=24,
  diagnostics=_SPEC('evaluations:clients=3,examples=16'),
)


@pytest.fixture(name='built', scope='module')
def _built():
  return experiment.build(_CONFIG)


def _run(built, path, *, measuring=True, killed_in=None):
  """Runs four rounds, evaluated at 0, 2 and 4."""
  folder = run_folder.RunFolder(path)
  folder.open(built.config)
  recorder = diagnostics_stage.build_recorder(built, folder.path)
  assert recorder is not None

  def sample(round_num):
    if round_num == killed_in:
      raise KeyboardInterrupt
    return built.sample_cohort(round_num)

  try:
    return loop.run(
      process=built.process,
      sample_cohort=sample,
      evaluate=built.evaluate,
      folder=folder,
      total_rounds=4,
      rounds_per_eval=2,
      rounds_per_checkpoint=3,
      bytes_per_client=built.bytes_per_client,
      callbacks=[recorder] if measuring else [],
    )
  finally:
    folder.close()


@pytest.fixture(name='runs', scope='module')
def _runs(built, tmp_path_factory):
  path = tmp_path_factory.mktemp('runs')
  return path, _run(built, path / 'with')


def _table(path):
  with open(path / 'diagnostics.csv', newline='') as file:
    return {
      (int(row['round_num']), row['layer'], row['quantity']): float(
        row['value']
      )
      for row in csv.DictReader(file)
    }


def _weights(path):
  (newest, *_) = run_folder.RunFolder(path).checkpoints.newest()
  with np.load(newest) as arrays:
    return {
      name: arrays[name] for name in arrays.files if name.startswith('state/')
    }


@pytest.mark.slow
def test_training_is_the_same_to_the_bit(built, runs):
  path, summary = runs
  _run(built, path / 'without', measuring=False)
  without, measured = _weights(path / 'without'), _weights(path / 'with')
  assert without.keys() == measured.keys()
  for name, value in without.items():
    np.testing.assert_array_equal(value, measured[name])
  assert not os.path.exists(path / 'without' / 'diagnostics.csv')
  assert summary['diagnostics'] == {'file': 'diagnostics.csv'}


def test_rounds_and_quantities(runs):
  table = _table(runs[0] / 'with')
  assert {round_num for round_num, _, _ in table} == {0, 2, 4}
  of_model = {q for r, layer, q in table if r == 2 and layer == 'model'}
  assert of_model == {
    'weight_norm',
    'update_norm',
    'effective_learning_rate',
    'update_weight_cosine',
    'gradient_norm',
    'gradient_weight_cosine',
    'client_drift',
    'client_variance',
    'client_mean_update_norm',
    'attention_entropy',
  }
  # No update has been made before the first round.
  assert (0, 'model', 'weight_norm') in table
  assert (0, 'model', 'update_norm') not in table
  assert (2, 'block_1/attention/head_2', 'attention_entropy') in table


def test_clients_trained_on_the_side_are_those_of_the_round(runs):
  """Their mean is the server's step, since its rate is one."""
  table = _table(runs[0] / 'with')
  layers = {layer for _, layer, q in table if q == 'client_drift'}
  assert len(layers) > 8
  for round_num in (2, 4):
    for layer in layers:
      step = table[round_num, layer, 'update_norm']
      mean = table[round_num, layer, 'client_mean_update_norm']
      assert mean == pytest.approx(step, rel=2e-3, abs=1e-6)
      drift = table[round_num, layer, 'client_drift']
      variance = table[round_num, layer, 'client_variance']
      # There are three clients.
      assert drift**2 == pytest.approx(mean**2 + 2 / 3 * variance, rel=1e-4)


def test_the_weights_are_those_of_the_checkpoint(runs):
  path = runs[0] / 'with'
  weights = [
    value for name, value in _weights(path).items() if 'trainable' in name
  ]
  norm = np.sqrt(sum(np.sum(np.square(w.astype(float))) for w in weights))
  assert _table(path)[4, 'model', 'weight_norm'] == pytest.approx(norm, 1e-5)


def test_blending_weights_are_trained_and_recorded(runs):
  table = _table(runs[0] / 'with')
  unit = 'block_1/feed_forward/blending'
  for function in ('relu', 'swish'):
    assert table[0, unit, f'blending_{function}'] == 0.5
    assert table[4, unit, f'blending_{function}'] != 0.5
  assert table[0, unit, 'swish_beta'] == 1
  assert table[4, unit, 'swish_beta'] != 1
  total = sum(abs(table[4, unit, f'blending_{f}']) for f in ('relu', 'swish'))
  assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize('killed_in', [3])
def test_interrupted_and_resumed_gives_the_same_file(
  built, runs, tmp_path, killed_in
):
  with pytest.raises(KeyboardInterrupt):
    _run(built, tmp_path, killed_in=killed_in)
  # A killed run can leave rounds that no checkpoint has.
  with open(tmp_path / 'diagnostics.csv', 'a') as file:
    file.write(f'{killed_in},model,weight_norm,1\n{killed_in},mod')
  _run(built, tmp_path)
  whole = (runs[0] / 'with' / 'diagnostics.csv').read_bytes()
  assert (tmp_path / 'diagnostics.csv').read_bytes() == whole


def _recorder(path, plan, **options):
  task = TASKS['synthetic'](vocab_size=20, sequence_length=6, num_clients=12)
  return recorder_lib.Recorder(
    str(path),
    plan=plan,
    build_keras_model=lambda: models.MODELS['si_cifg'](
      task.vocabulary.size, units=16, embedding_size=3
    ),
    client_optimizer=OPTIMIZERS['sgd'](learning_rate=0.1),
    loss=task.loss,
    examples=task.validation.sample_examples(10, seed=0),
    seed=0,
    **options,
  )


def _initial():
  task = TASKS['synthetic'](vocab_size=20, sequence_length=6, num_clients=12)
  model = models.MODELS['si_cifg'](
    task.vocabulary.size, units=16, embedding_size=3
  )
  return tff.learning.models.ModelWeights(
    tuple(w.numpy() for w in model.trainable_variables), ()
  )


def test_every_so_many_rounds(tmp_path):
  recorder = _recorder(tmp_path, plan_lib.rounds(every=2, clients=0))
  recorder.begin(-1, {}, run_folder.RunFolder(tmp_path))
  for round_num in range(4):
    evaluated = {'eval/loss': 1.0} if round_num == 1 else {}
    recorder.after_round(
      callbacks.Round(
        round_num,
        {'train/clip_fraction': 0.25, **evaluated},
        has_row=True,
        is_last=round_num == 3,
        cohort=None,
        weights=_initial,
        weights_before=None,
      )
    )
  table = _table(tmp_path)
  assert {round_num for round_num, _, _ in table} == {0, 2, 3}
  assert table[2, 'model', 'clip_fraction'] == 0.25
  # SI gates, and orthogonality, which scale invariance implies unless a row of
  # gates is dead.
  assert 0 < table[2, 'recurrent_1/forget_gate', 'dead_gates'] < 1
  cells = [k for k in table if 'cell' in k[1] and 'gradient_weight' in k[2]]
  assert cells and all(abs(table[k]) < 1e-3 for k in cells)


def test_weights_that_are_not_finite_are_recorded(tmp_path):
  recorder = _recorder(tmp_path, plan_lib.evaluations(clients=0))
  recorder.begin(-1, {}, run_folder.RunFolder(tmp_path))
  weights = tff.learning.models.ModelWeights(
    tuple(w * np.float32('nan') for w in _initial().trainable), ()
  )
  recorder.record(0, after=weights, measured={})
  assert np.isnan(_table(tmp_path)[0, 'model', 'weight_norm'])


def test_private_runs_say_what_is_not_protected(tmp_path):
  private = config.ExperimentConfig(
    'x',
    aggregator=_SPEC('gaussian'),
    clip_norm=1.0,
    noise_multiplier=1.0,
    diagnostics=_SPEC('evaluations'),
    client_similarity=0.5,
  )
  ledger = private_mechanism.build_ledger(
    private,
    private_mechanism.build_mechanism(private),
    train_metrics=['loss'],
    num_clients=100,
  )
  summary = ledger.summary()
  assert 'diagnostics.csv: client_drift' in summary['released_without_noise']
  assert summary['simulated']
  assert any('client_similarity=0.5' in w for w in summary['not_covered'])
  recorder = _recorder(tmp_path, plan_lib.evaluations(), is_private=True)
  summary = recorder.summary(run_folder.RunFolder(tmp_path))
  said = summary['diagnostics']['outside_the_guarantee']
  assert 'client_variance' in said and 'clip_fraction' in said


@pytest.mark.parametrize(
  ('argument', 'expected'),
  [
    ([], 'none'),
    (['--diagnostics'], 'evaluations'),
    (['--nodiagnostics'], 'none'),
    (['--diagnostics=rounds:every=5'], 'rounds:every=5'),
  ],
)
def test_the_flag_may_stand_alone(argument, expected):
  values = absl_flags.FlagValues()
  flags.define_config_flags(['diagnostics'], values)
  values(['x', *argument])
  assert str(values.diagnostics) == expected


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('rounds:every=0', 'every must be'),
    ('evaluations:clients=-1', 'clients must be'),
    ('evaluation', "did you mean 'evaluations'"),
  ],
)
def test_wrong_options_are_refused(text, message):
  with pytest.raises(config.ConfigError, match=message):
    _SPEC(text).build(plan_lib.DIAGNOSTICS, 'diagnostics')


def test_other_tasks_are_refused(built, tmp_path):
  other = types.SimpleNamespace(
    config=built.config, model=built.model, task=object()
  )
  with pytest.raises(config.ConfigError, match='language models'):
    diagnostics_stage.build_recorder(other, str(tmp_path))  # type: ignore


def test_a_last_line_that_may_be_a_part_does_not_stay(tmp_path):
  file = rows_file.DiagnosticsFile(tmp_path)
  file.open(-1)
  file.write(0, [('cell', 'weight_norm', 2.0)])
  file.write(1, [('cell', 'weight_norm', 1.25)])
  path = tmp_path / 'diagnostics.csv'
  path.write_text(path.read_text()[:-2])
  file.open(1)
  assert path.read_text().splitlines() == [
    'round_num,layer,quantity,value',
    '0,cell,weight_norm,2',
  ]
