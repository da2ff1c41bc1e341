"""Builds every part and trains a round with it."""

from __future__ import annotations

import numpy as np
import pytest

from si_federated import config, experiment

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
  return experiment.build(
    config.ExperimentConfig(
      'x',
      **{
        key: config.ComponentSpec.parse(value)
        if isinstance(value, str) and key != 'precision'
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


@pytest.mark.parametrize('name', sorted(experiment.REGISTRIES['model']))
def test_models(name):
  _train_a_round(_build(model=_small_model(name)))


@pytest.mark.parametrize('name', ['si_cifg', 'si_gru', 'si_conformer'])
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


@pytest.mark.parametrize('name', sorted(experiment.REGISTRIES['vocabulary']))
def test_vocabularies(name):
  if name != 'words':
    pytest.importorskip(name)
  _train_a_round(_build(vocabulary=name))


@pytest.mark.parametrize('name', sorted(experiment.REGISTRIES['algorithm']))
def test_algorithms(name):
  _train_a_round(_build(algorithm=name))


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
