"""Experiments with clients on JAX equal those of the local runtime."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import tensorflow_federated as tff

from si_federated import config, experiment, layers, runtime
from si_federated.runtime import jax_programs
from tests import tiny
from tests.runtime import jax_runs

pytestmark = pytest.mark.filterwarnings('error:A computation goes to TFF')

_SLOW = pytest.mark.slow
_PRIVATE = {
  'clip_norm': 0.1,
  'noise_multiplier': 0.0,
  'min_separation': 1,
  'max_participations': 3,
}
_CYCLES = {
  'clip_norm': 0.1,
  'noise_multiplier': 0.0,
  'participation': 'fixed_cycles',
}


@pytest.fixture(autouse=True)
def _local_again():
  """Restores the tests' own runtime for other tests."""
  yield
  runtime.set_local_context()


def test_a_round_equals_that_of_the_local_runtime():
  options = {'rounds': 1, 'clients_per_round': 3}
  jax_runs.assert_close(
    jax_runs.run('jax', **options), jax_runs.run('local', **options)
  )


@_SLOW
def test_two_runs_are_equal_to_the_bit():
  got = jax_runs.run('jax:clients_per_group=2')
  jax_runs.assert_close(got, jax_runs.run('local'))
  again = jax_runs.run('jax:clients_per_group=2')
  for one, other in zip(got[0], again[0]):
    np.testing.assert_array_equal(one, other)


@_SLOW
@pytest.mark.parametrize(
  'options',
  [
    {'algorithm': 'fed_prox'},
    {'algorithm': 'fed_sgd', 'aggregator': 'mean:weighting=tokens'},
    {'algorithm': 'mime_lite'},
    {'client_optimizer': 'adam'},
    {'algorithm': 'partial_training'},
    {
      'algorithm': 'partial_training',
      'model': 'cifg:units=8,embedding_size=4,dropout=0.3',
    },
    {
      'algorithm': 'partial_training:by=block,fraction=0.5',
      'client_optimizer': 'sgd:gradient_clip_norm=0.05',
    },
    {'client_optimizer': 'sgd:gradient_clip_norm=0.1,weight_decay=0.01'},
    {'client_epochs_per_round': 2},
    {'transform': 'lora:rank=2'},
    {'transform': 'freeze:variables=embedding'},
    {'aggregator': 'mean:weighting=uniform'},
    {'aggregator': 'blt', **_PRIVATE},
    {'aggregator': 'tree', **_PRIVATE},
    {'aggregator': 'gaussian', **_PRIVATE},
    {'aggregator': 'adaptive_gaussian', **_PRIVATE},
    {'aggregator': 'banded:bands=2', **_CYCLES},
    {'aggregator': 'dense', **_CYCLES},
    {'client_optimizer': 'sgdm'},
    {'client_optimizer': 'adamw'},
    {'client_optimizer': 'yogi'},
    {'client_optimizer': 'adagrad'},
    {'compression': config.CompressionSpec.parse('upload=float32')},
    {'compression': config.CompressionSpec.parse('download=uniform:bits=8')},
  ],
  ids=lambda options: '-'.join(map(str, options.values())),
)
def test_other_parts(options):
  jax_runs.assert_close(
    jax_runs.run('jax', **options), jax_runs.run('local', **options)
  )


@pytest.mark.slow
def test_static_shapes_change_no_result_elsewhere():
  expected = jax_runs.run('local', rounds=1)
  with layers.static_shapes():
    got = jax_runs.run('local', rounds=1)
  jax_runs.assert_close(got, expected)


@_SLOW
def test_programs_hold_no_frozen_weights(monkeypatch):
  sizes = []
  export = jax_programs.ClientPrograms.export

  def exported(self, broadcast, *args, **options):
    program = export(self, broadcast, *args, **options)
    sizes.append((len(program), sum(array.nbytes for array in broadcast)))
    return program

  monkeypatch.setattr(jax_programs.ClientPrograms, 'export', exported)
  jax_runs.run(
    'jax',
    rounds=1,
    clients_per_round=1,
    vocab_size=20,
    model='cifg:units=256,embedding_size=64',
    transform='lora:rank=1',
  )
  assert sizes
  for program, weights in sizes:
    assert weights > 2**20
    assert program < weights / 4


@_SLOW
def test_a_killed_process_in_a_round_loses_no_round(tmp_path, monkeypatch):
  experiment_of = tiny.tiny_config(
    'killed',
    runtime='jax',
    total_rounds=3,
    rounds_per_checkpoint=1,
    clients_per_round=2,
  )
  experiment.run(experiment_of, str(tmp_path / 'whole'))
  add = jax_programs.ClientPrograms.export
  calls = []

  def killing(self, *args, **options):
    calls.append(self)
    if len(calls) == 2:
      context = tff.framework.get_context_stack().current
      os.kill(context.worker_pid, signal.SIGKILL)
    return add(self, *args, **options)

  with monkeypatch.context() as patch:
    patch.setattr(jax_programs.ClientPrograms, 'export', killing)
    with pytest.raises(ValueError, match='process has ended.*saved'):
      experiment.run(experiment_of, str(tmp_path / 'cut'))
  experiment.run(experiment_of, str(tmp_path / 'cut'))
  tiny.assert_same_run(
    tmp_path / 'whole' / 'killed', tmp_path / 'cut' / 'killed'
  )
