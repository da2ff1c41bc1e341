"""Builds every part and trains a round with it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from si_federated import config, experiment, runtime
from si_federated.algorithms import variable_selection
from tests import tiny

_CONFIG = config.ExperimentConfig


def _build(**changes):
  return experiment.build(tiny.tiny_config(**{'total_rounds': 100, **changes}))


def _train_a_round(built):
  before, _, metrics = tiny.train_a_round(built)
  assert np.isfinite(metrics['perplexity'])
  assert built.num_parameters == sum(w.size for w in before)


def _small_model(name):
  if name.endswith('former'):
    return (
      f'{name}:embedding_size=4,num_heads=2,intermediate_dim=8,num_layers=1'
    )
  return f'{name}:units=8,embedding_size=4'


_PRIVATE = {
  'participation': 'fixed_cycles',
  'clip_norm': 0.5,
  'noise_multiplier': 0.5,
  'total_rounds': 4,
}
# Tracing an experiment takes seconds, so each of these rounds tests many parts.
# `test_every_part_trains_a_round` keeps the table complete.
_ROUNDS: dict[str, dict[str, Any]] = {
  'lstm': {
    **_PRIVATE,
    'algorithm': 'fed_avg',
    'aggregator': 'blt',
    'participation': 'balls_in_bins',
    'compression': 'upload=uniform:bits=6,download=uniform:bits=12',
    'server_optimizer': 'sgdm',
    'server_momentum': 0.5,
    'client_optimizer': 'sgd',
  },
  'cifg': {
    **_PRIVATE,
    'algorithm': 'fed_prox',
    'aggregator': 'tree',
    'participation': 'min_separation',
    'min_separation': 3,
    'compression': 'upload=ternary,download=ternary',
    'server_optimizer': 'adam',
    'server_learning_rate_schedule': 'linear:warmup_rounds=2',
  },
  'gru': {
    **_PRIVATE,
    'algorithm': 'fed_sgd',
    'aggregator': 'banded',
    'participation': 'cyclic_poisson',
    'min_separation': 3,
    'compression': 'upload=float32,download=float32',
    'server_optimizer': 'yogi',
  },
  'si_cifg': {
    **_PRIVATE,
    'algorithm': 'mime_lite',
    'aggregator': 'gaussian',
    'participation': 'b_min_sep',
    'min_separation': 4,
    'compression': 'upload=uniform:bits=6,download=uniform:bits=12',
    'client_optimizer': 'sgdm',
    'noise_seed': 1,
    'server_optimizer': 'adagrad',
  },
  'si_lstm': {
    **_PRIVATE,
    'algorithm': 'partial_training',
    'aggregator': 'dense',
    'compression': 'upload=uniform:bits=6,download=uniform:bits=12',
    'server_optimizer': 'adamw',
  },
  'si_gru': {
    **_PRIVATE,
    'algorithm': 'expert_personalization',
    'aggregator': 'adaptive_gaussian:count_noise=1',
    'participation': 'poisson',
    'server_optimizer': 'sgd',
    # Cohorts vary in size; here the first has clients.
    'clients_per_round': 4,
  },
  'transformer': {**_PRIVATE, 'aggregator': 'distributed_dp'},
  'si_transformer': {
    'aggregator': 'mean:weighting=examples',
    'participation': 'uniform',
    'vocabulary': 'sentencepiece',
    'runtime': 'tff',
  },
  'conformer': {
    **_PRIVATE,
    'aggregator': 'scaled_gaussian',
    'participation': 'shuffled_epochs',
    'server_optimizer': 'adam',
    'vocabulary': 'words',
    'runtime': 'local',
  },
  'si_conformer': {**_PRIVATE, 'aggregator': 'banded_inverse:bands=2'},
}
# Each takes ten seconds or more, and their parts have fast tests of their own
# in tests/aggregators, tests/algorithms and tests/personalization.
_SLOW = {'conformer', 'gru', 'si_conformer', 'si_gru', 'si_lstm'}
# Tested elsewhere: classifiers by tests/test_classification.py, transforms by
# tests/models, schedules by tests/algorithms, Ray and JAX by tests/runtime,
# diagnostics by tests/diagnostics, data and vocabularies by tests/tasks.
_ELSEWHERE = {
  'task': set(experiment.REGISTRIES['task']) - {'synthetic'},
  'model': {'bert', 'albert', 'distilbert', 'transformer_classifier'},
  'transform': set(experiment.REGISTRIES['transform']),
  'vocabulary': {'pretrained'},
  'runtime': {'jax', 'ray'},
  'server_learning_rate_schedule': set(
    experiment.REGISTRIES['server_learning_rate_schedule']
  ),
  'diagnostics': set(experiment.REGISTRIES['diagnostics']),
}


def test_every_part_trains_a_round():
  for flag, registry in experiment.REGISTRIES.items():
    if flag == 'client_optimizer':  # The registry of server optimizers.
      continue
    used = ' '.join(str(_ROUNDS[m].get(flag, '')) for m in _ROUNDS)
    used += ' '.join([*_ROUNDS, 'synthetic'])
    trained = {name for name in registry if re.search(rf'\b{name}\b', used)}
    assert trained | _ELSEWHERE.get(flag, set()) == set(registry), flag


@pytest.mark.parametrize(
  'model',
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name in _SLOW))
    for name in _ROUNDS
  ],
)
def test_rounds(model):
  if 'vocabulary' in _ROUNDS[model]:
    pytest.importorskip('sentencepiece')
  built = _build(**{'model': _small_model(model), **_ROUNDS[model]})
  try:
    _train_a_round(built)
    if 'clip_norm' in _ROUNDS[model]:
      promised = built.ledger.summary()['promised']
      assert 0 < promised['epsilon'] < np.inf
      built.ledger.record(1, built.sample_cohort(1).clients)
      assert 0 < built.ledger.epsilon() < np.inf
    else:
      assert built.ledger.epsilon() == np.inf
    if 'total_rounds' in _ROUNDS[model]:
      assert built.schedule.contract(4).rounds == 4
    _SPECIAL.get(model, lambda _: None)(built)
  finally:
    runtime.set_local_context()


def _check_momentum(built):
  momentum = built.process.initialize().finalizer['momentum']
  assert momentum == pytest.approx(0.5)


def _check_releases(built):
  # Two releases, each with its own noise.
  sensitivity = built.ledger.summary()['promised']['sensitivity']
  assert sensitivity == pytest.approx(2**0.5)
  state = built.process.next(
    built.process.initialize(), built.sample_cohort(1)
  ).state
  aggregator, (_, gradients) = state.aggregator, state.client_work
  assert list(aggregator['inner']['seed']) != list(gradients['seed'])


def _check_warm_up(built):
  state = built.process.initialize()
  rates = []
  for round_num in (1, 2, 3):
    rates.append(float(state.finalizer['optimizer']['learning_rate']))
    cohort = built.sample_cohort(round_num)
    state = built.process.next(state, cohort).state
  rate = built.config.server_learning_rate
  assert rates == pytest.approx([rate / 2, rate, rate])


def _check_download(built):
  # The model and its scales, in float32.
  assert built.bytes_per_client({})['down'] == 8 * built.num_parameters


_SPECIAL = {
  'cifg': _check_warm_up,
  'conformer': _check_download,
  'lstm': _check_momentum,
  'si_cifg': _check_releases,
}


@pytest.mark.slow
def test_ray():
  _train_a_round(_build(runtime='ray'))


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(experiment.REGISTRIES['algorithm']))
def test_algorithms_without_privacy(name):
  _train_a_round(_build(algorithm=name))


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(n, marks=pytest.mark.slow)
    for n in ('si_cifg', 'si_gru', 'si_conformer')
  ],
)
def test_models_in_bfloat16(name):
  model = _small_model(name)
  exact, half = (
    _build(model=model, precision=p) for p in ('float32', 'bfloat16')
  )
  _train_a_round(half)
  weights = [
    b.process.get_model_weights(b.process.initialize()) for b in (exact, half)
  ]
  for one, other in zip(weights[0].trainable, weights[1].trainable):
    np.testing.assert_array_equal(one, other)
  assert other.dtype == np.float32
  losses = [b.evaluate(w)['loss'] for b, w in zip((exact, half), weights)]
  # Rounded to 8 bits somewhere, so near but not equal.
  assert losses[0] != losses[1]
  assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.slow
def test_a_client_of_partial_training_only_sends_what_it_trained():
  built = _build(algorithm='partial_training:fraction=0.5')
  state = built.process.initialize()
  output = built.process.next(state, built.sample_cohort(1))
  model = experiment.build_model(built.config, built.task.vocabulary.size)
  weights = built.process.get_model_weights(state).trainable
  selection = variable_selection.Selection(
    [w.shape for w in weights],
    [v.name for v in model.trainable_variables],
    fraction=0.5,
    by='variable',
    per='client',
    seed=built.config.client_seed,
  )
  sent = []
  for client in built.sample_cohort(1).clients:
    trained = selection(tf.constant(0, tf.int64), tf.constant(client, tf.int64))
    # A byte of bits says which of up to eight variables follow.
    sent.append(
      1 + sum(4 * w.size for w, is_sent in zip(weights, trained) if is_sent)
    )
  whole = 4 * sum(w.size for w in weights)
  assert min(sent) < whole
  traffic = built.bytes_per_client(output.metrics)
  assert traffic == {'up': np.mean(sent), 'down': whole}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'compression': 'ternary', 'aggregator': 'distributed_dp'},
      'secure aggregation adds up',
    ),
    (
      {'algorithm': 'mime_lite', 'aggregator': 'distributed_dp'},
      'has no accounting',
    ),
    (
      {'algorithm': 'fed_sgd', 'client_epochs_per_round': 2},
      'leave out --client_epochs_per_round',
    ),
    ({'compression': 'ternery'}, "did you mean 'ternary'"),
    ({'compression': 'upload=uniform:bit=8'}, "did you mean 'bits'"),
    ({'compression': 'upload=ternary,upload=uniform'}, 'occurs twice'),
  ],
)
def test_parts_that_exclude_each_other_are_refused(changes, message):
  private = {**_PRIVATE, **changes} if 'aggregator' in changes else changes
  with pytest.raises(config.ConfigError, match=message):
    _build(**private)


def test_too_many_clients_per_round_are_refused():
  with pytest.raises(config.ConfigError, match='--clients_per_round=100'):
    _build(clients_per_round=100)


def test_wrong_momentum_is_refused():
  with pytest.raises(config.ConfigError, match='momentum'):
    _build(server_optimizer='sgdm:momentum=2')


def test_model_seed_makes_the_initial_weights():
  def weights(seed):
    settings = _CONFIG('x', model_seed=seed)
    return experiment.build_model(settings, 20).get_weights()

  for a, b in zip(weights(3), weights(3)):
    np.testing.assert_array_equal(a, b)
  assert any(not np.array_equal(a, b) for a, b in zip(weights(3), weights(4)))


def test_a_bad_weighting_is_refused():
  with pytest.raises(config.ConfigError, match='weighting must be'):
    _build(aggregator='mean:weighting=heavy')
