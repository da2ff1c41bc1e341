"""Builds every part and trains a round with it."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from si_federated import config, experiment
from si_federated.algorithms import variable_selection

_CONFIG = config.ExperimentConfig
_SMALL = {
  'task': 'synthetic:num_clients=30',
  'model': 'cifg:units=8,embedding_size=4',
  'vocab_size': 20,
  'sequence_length': 6,
  'clients_per_round': 2,
  'num_validation_examples': 16,
}


def _build(**changes):
  values = {**_SMALL, **changes}
  defaults: dict[str, Any] = {
    f.name: f.default for f in dataclasses.fields(_CONFIG)
  }
  return experiment.build(
    _CONFIG(
      'x',
      **{
        key: defaults[key].parse(value)
        if hasattr(defaults[key], 'parse')
        else value
        for key, value in values.items()
      },
    )
  )


def _train_a_round(built):
  state = built.process.initialize()
  before = built.process.get_model_weights(state).trainable
  output = built.process.next(state, built.sample_cohort(1))
  after = built.process.get_model_weights(output.state).trainable
  assert np.isfinite(output.metrics['client_work']['train']['loss'])
  assert any(not np.array_equal(a, b) for a, b in zip(before, after))
  metrics = built.evaluate(built.process.get_model_weights(output.state))
  assert np.isfinite(metrics['perplexity'])
  assert built.num_parameters == sum(w.size for w in before)


def _small_model(name):
  if name.endswith('former'):
    return (
      f'{name}:embedding_size=4,num_heads=2,intermediate_dim=8,num_layers=1'
    )
  return f'{name}:units=8,embedding_size=4'


# Classifiers: tests/test_classification.py.
_LANGUAGE_MODELS = [
  name
  for name, builder in sorted(experiment.REGISTRIES['model'].items())
  if 'num_classes' not in inspect.signature(builder).parameters
]


@pytest.mark.parametrize('name', _LANGUAGE_MODELS)
def test_models(name):
  _train_a_round(_build(model=_small_model(name)))


@pytest.mark.parametrize(
  'name',
  [
    'si_cifg',
    *(
      pytest.param(n, marks=pytest.mark.slow)
      for n in ('si_gru', 'si_conformer')
    ),
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


@pytest.mark.parametrize('name', ['sentencepiece', 'words'])
def test_vocabularies(name):
  if name != 'words':
    pytest.importorskip(name)
  _train_a_round(_build(vocabulary=name))


@pytest.mark.parametrize('name', sorted(experiment.REGISTRIES['algorithm']))
def test_algorithms(name):
  _train_a_round(_build(algorithm=name))


_PRIVATE = {
  'aggregator': 'gaussian',
  'participation': 'fixed_cycles',
  'clip_norm': 0.5,
  'noise_multiplier': 0.5,
  'total_rounds': 4,
}


@pytest.mark.parametrize('name', sorted(experiment.REGISTRIES['algorithm']))
def test_algorithms_with_privacy_and_compression(name):
  built = _build(
    algorithm=name,
    compression='upload=uniform:bits=6,download=uniform:bits=12',
    **_PRIVATE,
  )
  _train_a_round(built)
  releases = 2 if name == 'mime_lite' else 1
  assert built.ledger.summary()['promised']['sensitivity'] == pytest.approx(
    releases**0.5
  )


def test_two_releases_have_noise_of_their_own():
  built = _build(
    algorithm='mime_lite',
    client_optimizer='sgdm',
    client_learning_rate=0.0,
    noise_seed=1,
    **_PRIVATE,
  )
  state = built.process.next(
    built.process.initialize(), built.sample_cohort(1)
  ).state
  aggregator, (_, gradients) = state.aggregator, state.client_work
  assert list(aggregator['seed']) != list(gradients['seed'])


def test_a_client_of_partial_training_sends_what_it_trained_alone():
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


@pytest.mark.parametrize('name', sorted(experiment.REGISTRIES['compression']))
def test_compression(name):
  built = _build(compression=f'upload={name},download={name}')
  _train_a_round(built)


def test_server_learning_rate_schedules():
  # Each by itself: tests/algorithms/test_learning_rates.py.
  built = _build(
    server_learning_rate_schedule='linear:warmup_rounds=2', total_rounds=4
  )
  _train_a_round(built)
  state = built.process.initialize()
  rates = []
  for round_num in (1, 2, 3):
    rates.append(float(state.finalizer['optimizer']['learning_rate']))
    cohort = built.sample_cohort(round_num)
    state = built.process.next(state, cohort).state
  rate = built.config.server_learning_rate
  assert rates == pytest.approx([rate / 2, rate, rate])


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
    ({'compression': 'upload=ternary,upload=uniform'}, 'stands twice'),
  ],
)
def test_what_does_not_go_together_is_refused(changes, message):
  private = {**_PRIVATE, **changes} if 'aggregator' in changes else changes
  with pytest.raises(config.ConfigError, match=message):
    _build(**private)


@pytest.mark.parametrize('weighting', ['tokens', 'examples', 'uniform'])
def test_mean(weighting):
  _train_a_round(_build(aggregator=f'mean:weighting={weighting}'))


@pytest.mark.parametrize(
  'name', sorted(set(experiment.REGISTRIES['aggregator']) - {'mean'})
)
def test_private_aggregators(name):
  built = _build(
    aggregator=name + (':count_noise=1' if name == 'adaptive_gaussian' else ''),
    participation='fixed_cycles',
    clip_norm=0.5,
    noise_multiplier=0.5,
    total_rounds=4,
  )
  _train_a_round(built)
  built.ledger.record(1, built.sample_cohort(1).clients)
  assert 0 < built.ledger.epsilon() < np.inf


@pytest.mark.parametrize('name', sorted(experiment.REGISTRIES['participation']))
def test_participation(name):
  built = _build(participation=name, min_separation=3, total_rounds=4)
  _train_a_round(built)
  contract = built.schedule.contract(4)
  assert contract.rounds == 4
  assert built.ledger.epsilon() == np.inf


@pytest.mark.parametrize('name', sorted(experiment.REGISTRIES['runtime']))
def test_runtimes(name):
  _train_a_round(_build(runtime=name))


@pytest.mark.parametrize(
  'name', sorted(experiment.REGISTRIES['server_optimizer'])
)
def test_server_optimizers(name):
  _train_a_round(_build(server_optimizer=name))


def test_server_momentum_is_used():
  one = _build(server_optimizer='sgdm', server_momentum=0.5)
  with pytest.raises(config.ConfigError, match='momentum'):
    _build(server_optimizer='sgdm:momentum=2')
  assert one.process.initialize().finalizer['momentum'] == pytest.approx(0.5)


def test_model_seed_makes_the_initial_weights():
  def first(seed):
    built = _build(model_seed=seed)
    return built.process.get_model_weights(built.process.initialize())

  for a, b in zip(first(3).trainable, first(3).trainable):
    np.testing.assert_array_equal(a, b)
  assert any(
    not np.array_equal(a, b)
    for a, b in zip(first(3).trainable, first(4).trainable)
  )


def test_more_clients_than_there_are_is_refused():
  with pytest.raises(config.ConfigError, match='--clients_per_round=100'):
    _build(clients_per_round=100)


def test_a_bad_weighting_is_refused():
  with pytest.raises(config.ConfigError, match='weighting must be'):
    _build(aggregator='mean:weighting=heavy')
