"""Experiments with many parts give the same results on each runtime."""

from __future__ import annotations

import numpy as np
import pytest
import ray

from si_federated import experiment, flags, runtime

_SMALL = (
  '--task=synthetic:num_clients=30',
  '--model=cifg:units=8,embedding_size=4',
  '--vocab_size=20',
  '--sequence_length=6',
  '--clients_per_round=3',
  '--num_validation_examples=16',
  '--rounds_per_checkpoint=2',
)
_MANY_PARTS = (
  '--algorithm=partial_training:fraction=0.4',
  '--compression=upload=uniform:bits=8,download=uniform:bits=12',
  '--server_optimizer=adamw',
  '--server_learning_rate=0.1',
  '--server_learning_rate_schedule=linear:warmup_rounds=1',
)


pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def _end_ray():
  yield
  ray.shutdown()
  runtime.set_local_context()


@pytest.fixture(name='run', scope='module')
def _run(tmp_path_factory):
  """Runs experiments that start from the model of another one."""
  root = tmp_path_factory.mktemp('runs')

  def run(name, *more):
    settings = flags.experiment_from_arguments(
      [f'--experiment_name={name}', *_SMALL, *more]
    )
    final = experiment.run(settings, str(root))['final']
    newest = sorted((root / name / 'checkpoints').glob('*.npz'))[-1]
    with np.load(newest) as arrays:
      return final, {n: arrays[n] for n in arrays.files if 'weights/' in n}

  run('source', '--total_rounds=1')
  start = f'--initial_model={root / "source"}'
  return lambda name, *more: run(name, start, '--total_rounds=2', *more)


@pytest.fixture(name='local', scope='module')
def _local(run):
  return run('local', *_MANY_PARTS)


@pytest.mark.slow
def test_ray_gives_the_bits_of_local(run, local):
  final, weights = run('ray', '--runtime=ray', *_MANY_PARTS)
  assert final == local[0]
  for name, weight in local[1].items():
    np.testing.assert_array_equal(weights[name], weight, err_msg=name)


def test_ray_draws_the_dropout_of_local(run):
  options = ('--model=cifg:units=8,embedding_size=4,dropout=0.4',)
  _, expected = run('dropout_local', *options)
  _, weights = run('dropout_ray', '--runtime=ray', *options)
  for name, weight in expected.items():
    np.testing.assert_array_equal(weights[name], weight, err_msg=name)


def test_tff_gives_what_local_gives(run, local):
  final, weights = run('tff', '--runtime=tff', *_MANY_PARTS)
  # Random choices depend only on the round and the client.
  assert final['eval/loss'] == pytest.approx(local[0]['eval/loss'], rel=1e-4)
  for name, weight in local[1].items():
    np.testing.assert_allclose(weights[name], weight, atol=1e-4, err_msg=name)


@pytest.mark.parametrize('name', ['local', 'ray', 'tff'])
def test_bfloat16_from_an_initial_model(run, name):
  options = ('--precision=bfloat16', *_MANY_PARTS)
  final, weights = run(f'bfloat16_{name}', f'--runtime={name}', *options)
  assert np.isfinite(final['eval/loss'])
  assert {w.dtype.name for w in weights.values()} == {'float32'}
