"""The builders of private mechanisms: contracts, checks and training."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.aggregators import AGGREGATORS, is_private
from si_federated.algorithms import build_fed_avg
from si_federated.privacy import calibrate, strategies, strategy_files

_GIVEN = {
  'clip_norm': 1.0,
  'noise_multiplier': 0.5,
  'clients_per_round': 2,
  'total_rounds': 24,
  'min_separation': 6,
  'max_participations': 3,
  'noise_seed': 8,
}
_PRIVATE = sorted(set(AGGREGATORS) - {'mean'})
_ACCOUNTED = sorted(set(_PRIVATE) - {'distributed_dp'})
_SEPARATED = ['banded', 'banded_inverse', 'blt', 'dense', 'tree']


def _build(name, **options):
  builder = AGGREGATORS[name]
  known = inspect.signature(builder).parameters
  given = {key: value for key, value in _GIVEN.items() if key in known}
  if name == 'adaptive_gaussian':
    given['count_noise'] = 1.0
  return builder(**{**given, **options})


@pytest.mark.parametrize('name', _ACCOUNTED)
def test_record_and_contract_agree(name):
  mechanism = _build(name)
  assert mechanism.client_weighting == 'uniform'
  assert mechanism.record.contract == mechanism.contract
  assert mechanism.record.noise_multiplier == 0.5
  assert mechanism.factory.settings.noise_multiplier == 0.5
  assert mechanism.record.strategy is mechanism.factory.strategy
  assert mechanism.contract.rounds == 24
  assert mechanism.contract.max_participations == 3
  assert mechanism.contract.min_separation == 6
  # Only the optimal matrix assumes cycles.
  assert mechanism.contract.cyclic == (name == 'dense')
  assert 0 < mechanism.record.rho < np.inf


def test_distributed_dp_is_accounted_for_a_size_of_the_model():
  mechanism = _build('distributed_dp')
  assert mechanism.client_weighting == 'uniform'
  assert mechanism.record.contract == mechanism.contract
  with pytest.raises(ValueError, match='size of the model'):
    mechanism.record.epsilon(1e-5)
  assert 0 < mechanism.for_dimension(1000).record.epsilon(1e-5) < np.inf
  with pytest.raises(ValueError, match='another'):
    mechanism.with_record(_build('gaussian').record)


def test_builders_have_the_signature_of_their_keywords():
  for name in _PRIVATE:
    for parameter in inspect.signature(AGGREGATORS[name]).parameters.values():
      assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
  parameters = inspect.signature(AGGREGATORS['adaptive_gaussian']).parameters
  assert parameters['clip_norm'].default == 0.1
  assert parameters['noise_multiplier'].default is inspect.Parameter.empty
  assert (
    'noise_seed'
    not in inspect.signature(AGGREGATORS['distributed_dp']).parameters
  )
  with pytest.raises(TypeError, match="'clipnorm'"):
    _build('gaussian', clipnorm=1.0)
  with pytest.raises(TypeError, match="'total_rounds'"):
    AGGREGATORS['gaussian'](
      clip_norm=1.0, noise_multiplier=1.0, clients_per_round=1
    )


def test_private_aggregators_are_those_with_noise():
  assert {name for name in AGGREGATORS if is_private(name)} == set(_PRIVATE)


@pytest.mark.parametrize('name', _ACCOUNTED)
def test_calibrated_noise_is_what_is_made(name):
  mechanism = _build(name)
  record: Any = calibrate(mechanism.record, target_epsilon=5.0, delta=1e-5)
  calibrated = mechanism.with_record(record)
  assert calibrated.record.epsilon(1e-5) == pytest.approx(5.0)
  assert calibrated.factory.settings.noise_multiplier == record.noise_multiplier
  assert calibrated.factory.strategy is mechanism.factory.strategy
  with pytest.raises(ValueError, match='another strategy or contract'):
    mechanism.with_record(
      dataclasses.replace(record, strategy=strategies.identity(24))
    )


def test_gaussian_assumes_no_separation_by_default():
  contract = _build(
    'gaussian', min_separation=None, max_participations=None
  ).contract
  assert contract.participations == 24
  assert contract.min_separation == 1


@pytest.mark.parametrize('name', _SEPARATED)
def test_a_missing_separation_is_rejected(name):
  with pytest.raises(ValueError, match=f'{name} needs min_separation'):
    _build(name, min_separation=None)


@pytest.mark.parametrize('name', _SEPARATED)
def test_participations_default_to_what_fits(name):
  assert _build(name, max_participations=None).contract.participations == 4


@pytest.mark.parametrize('name', _PRIVATE)
@pytest.mark.parametrize(
  ('option', 'value'),
  [
    ('clip_norm', 0.0),
    ('clip_norm', float('nan')),
    ('noise_multiplier', -0.1),
    ('noise_multiplier', float('inf')),
    ('clients_per_round', 0),
  ],
)
def test_numbers_out_of_range_are_rejected(name, option, value):
  with pytest.raises(ValueError, match=f'{option} is {value}'):
    _build(name, **{option: value})


@pytest.mark.parametrize('name', _ACCOUNTED)
@pytest.mark.parametrize(
  'option', ['total_rounds', 'min_separation', 'max_participations']
)
def test_contracts_out_of_range_are_rejected(name, option):
  with pytest.raises(ValueError, match='needs at least 1'):
    _build(name, **{option: 0})


@pytest.mark.parametrize(
  ('name', 'options', 'problem'),
  [
    ('banded', {'bands': 7}, 'bands is 7; .* 1 to 6'),
    ('banded', {'bands': 0}, 'bands is 0'),
    ('banded', {'kind': 'diagonal'}, 'known are toeplitz and general'),
    ('banded', {'momentum': 1.0}, 'momentum is 1.0'),
    ('banded', {'cool_down': 2.0}, 'cool-down over 2.0'),
    ('banded', {'matrix': 'absent.npz'}, 'absent.npz cannot be read'),
    ('banded_inverse', {'bands': 25}, 'bands is 25; 24 rounds take 1 to 24'),
    ('banded_inverse', {'bands': 'auto'}, "bands is 'auto'.* give a number"),
    ('banded_inverse', {'kind': 'root'}, 'known are optimal and square_root'),
    (
      'banded_inverse',
      {'kind': 'square_root', 'cool_down': 0.5},
      'constant diagonals, which a cool-down',
    ),
    ('blt', {'num_buffers': 0}, 'num_buffers is 0'),
    ('adaptive_gaussian', {'target_quantile': 1.5}, 'target_quantile is 1.5'),
    ('adaptive_gaussian', {'count_noise': 0.05}, 'are too small'),
    ('distributed_dp', {'bits': 23}, 'bits is 23'),
    ('distributed_dp', {'noise': 'poisson'}, 'known are skellam and'),
    ('distributed_dp', {'rotation': 'none'}, 'known are hadamard and'),
  ],
)
def test_bad_options_are_rejected_in_a_sentence(name, options, problem):
  with pytest.raises(ValueError, match=problem) as raised:
    _build(name, **options)
  assert '\n' not in str(raised.value)


def test_a_single_participation_leaves_bands_free():
  strategy = _build('banded', bands=20, max_participations=1).record.strategy
  assert strategy.bands == 20


def test_the_options_of_banded():
  assert _build('banded').record.strategy.kind == 'banded_toeplitz'
  assert _build('banded', bands=4).record.strategy.bands == 4
  general = _build('banded', kind='general', bands=4).record.strategy
  assert general.kind == 'banded'
  assert general.bands == 4


def test_the_options_of_banded_inverse():
  def inverse(**options):
    strategy = _build('banded_inverse', **options).record.strategy
    assert strategy.kind == 'banded_inverse'
    return strategy.inverse

  # Any number of bands fits any separation.
  assert np.flatnonzero(inverse(kind='square_root')).tolist() == [*range(16)]
  root = inverse(kind='square_root', bands=3)
  np.testing.assert_allclose(root, [1, -1 / 2, -1 / 8] + [0] * 21)
  # (1 - x)^(1/2) (1 - x/2)^(1/2) = 1 - 3/4 x - x^2/32 - ...
  root = inverse(kind='square_root', bands=3, momentum=0.5)
  np.testing.assert_allclose(root, [1, -3 / 4, -1 / 32] + [0] * 21)
  assert (inverse(objective='max') != inverse()).any()


@pytest.mark.parametrize('name', ['banded', 'banded_inverse', 'blt', 'dense'])
def test_strategies_are_optimised_for_momentum_and_kept(name, tmp_path):
  plain = _build(name, cache_dir=str(tmp_path)).record.strategy
  options = {'momentum': 0.9, 'cool_down': 0.25, 'cache_dir': str(tmp_path)}
  strategy = _build(name, **options).record.strategy
  assert not np.allclose(strategy.matrix(), plain.matrix())
  kept = sorted(tmp_path.iterdir())
  assert len(kept) == 2
  again = _build(name, **options).record.strategy
  np.testing.assert_array_equal(again.matrix(), strategy.matrix())
  assert sorted(tmp_path.iterdir()) == kept
  _build(name, **{**options, 'momentum': 0.8})
  assert len(list(tmp_path.iterdir())) == 3


def test_a_matrix_from_a_file(tmp_path):
  path = str(tmp_path / 'c.npz')
  lower = np.eye(30) + 0.5 * np.eye(30, k=-1)
  np.savez(path, matrix=lower)
  mechanism = _build('banded', matrix=path)
  np.testing.assert_array_equal(mechanism.record.strategy.matrix(), lower)
  # Columns of squared norm 1.25, for three participations.
  assert mechanism.record.sensitivity.value == pytest.approx(np.sqrt(3.75))
  np.savez(path, matrix=np.tril(np.ones([30, 30])))
  with pytest.raises(ValueError, match='bands is 30'):
    _build('banded', matrix=path)
  assert _build('dense', matrix=path).record.strategy.bands == 30
  strategy_files.save(path, strategies.identity(20))
  with pytest.raises(ValueError, match='for 20 rounds; 24 are'):
    _build('banded', matrix=path)


def _model():
  return tff.learning.models.functional_model_from_keras(
    tf.keras.Sequential(
      [
        tf.keras.layers.InputLayer([2]),
        tf.keras.layers.Dense(
          3, kernel_initializer=tf.keras.initializers.Constant(0.1)
        ),
        tf.keras.layers.Dense(
          1, kernel_initializer=tf.keras.initializers.Constant(0.2)
        ),
      ]
    ),
    loss_fn=tf.keras.losses.MeanSquaredError(),
    input_spec=(
      tf.TensorSpec([None, 2], tf.float32),
      tf.TensorSpec([None, 1], tf.float32),
    ),
  )


def _client(seed):
  x = np.random.default_rng(seed).normal(size=[8, 2]).astype(np.float32)
  y = x.sum(axis=1, keepdims=True)
  return tf.data.Dataset.from_tensor_slices((x, y)).batch(4)


def _learning_process(mechanism):
  return build_fed_avg(
    model=_model(),
    client_optimizer=tff.learning.optimizers.build_sgdm(0.05),
    server_optimizer=tff.learning.optimizers.build_sgdm(1.0, 0.9),
    aggregation_factory=mechanism.factory,
    client_weighting=mechanism.client_weighting,
  )


def _train(process, rounds=3):
  with warnings.catch_warnings():
    # Our runtime warns about computations that it leaves to TFF's.
    warnings.simplefilter('error', UserWarning)
    state = process.initialize()
    for round_num in range(rounds):
      output = process.next(state, [_client(2 * round_num + i) for i in (0, 1)])
      state = output.state
  return process.get_model_weights(state).trainable, output.metrics


@pytest.mark.slow
def test_training_is_reproducible_and_noisy():
  process = _learning_process(_build('blt'))
  weights, metrics = _train(process)
  assert all(np.isfinite(weight).all() for weight in weights)
  assert metrics['aggregator']['nonfinite_updates'] == 0
  for one, other in zip(weights, _train(process)[0]):
    np.testing.assert_array_equal(one, other)
  # Without noise, training is the same for all fixed clips.
  without, others = (
    _train(_learning_process(_build(name, noise_multiplier=0.0)))[0]
    for name in ('blt', 'gaussian')
  )
  assert any(
    not np.allclose(one, other) for one, other in zip(weights, without)
  )
  for one, other in zip(without, others):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('name', _PRIVATE)
def test_measurements_without_noise_are_declared(name):
  mechanism = _build(name)
  process = mechanism.factory.create(
    tff.to_type([tff.TensorType(np.float32, [2])])
  )
  measurements = process.next.type_signature.result.measurements.member
  assert set(mechanism.unnoised_measurements) <= set(dir(measurements))
