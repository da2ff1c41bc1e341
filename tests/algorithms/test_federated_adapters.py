"""Effects of averaging and noise on the product that adapters learn.

These are the claims of Sun et al., arXiv 2403.12313, tested on the server's
result.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.aggregators import build_gaussian
from si_federated.algorithms import ALGORITHMS, OPTIMIZERS
from si_federated.algorithms.frozen_variables import functional_model_from_keras
from si_federated.models import TRANSFORMS
from si_federated.runtime import set_local_context

_IN, _OUT, _RANK, _ALPHA = 6, 5, 2, 3.0
_KINDS = ('lora', 'ffa_lora')


@pytest.fixture(autouse=True, scope='module')
def _runtime():
  set_local_context()


def _keras_model(kind):
  tf.keras.utils.set_random_seed(0)
  model = tf.keras.Sequential(
    [tf.keras.Input([_IN]), tf.keras.layers.Dense(_OUT, use_bias=False)]
  )
  return TRANSFORMS[kind](model, rank=_RANK, alpha=_ALPHA)


@functools.cache
def _functional_model(kind):
  return functional_model_from_keras(
    lambda: _keras_model(kind),
    tf.keras.losses.MeanSquaredError(),
    (
      tf.TensorSpec([None, _IN], tf.float32),
      tf.TensorSpec([None, _OUT], tf.float32),
    ),
  )


def _process(kind, factory, client_rate=0.5):
  return ALGORITHMS['fed_avg'](
    model=_functional_model(kind),
    client_optimizer=OPTIMIZERS['sgd'](learning_rate=client_rate),
    server_optimizer=OPTIMIZERS['sgd'](learning_rate=1.0),
    aggregation_factory=factory,
  )


def _client(index):
  generator = np.random.default_rng(index)
  x = generator.normal(size=[8, _IN]).astype(np.float32)
  y = generator.normal(size=[8, _OUT]).astype(np.float32)
  return tf.data.Dataset.from_tensor_slices((x, y)).batch(4).repeat(4)


def _product(kind, weights):
  """Returns alpha / rank * A B, which is added to the kernel."""
  factors = list(weights.trainable)
  if kind == 'ffa_lora':
    (b,) = factors
    (a,) = (w for w in weights.non_trainable if w.shape == (_IN, _RANK))
  else:
    a, b = factors
  return _ALPHA / _RANK * np.asarray(a, np.float64) @ np.asarray(b, np.float64)


@pytest.fixture(scope='module', params=_KINDS)
def trained(request):
  """Returns a kind, three clients' products, and that of their average."""
  kind = request.param
  process = _process(kind, tff.aggregators.MeanFactory())
  state = process.initialize()
  # With B zero, the first step would be the same for both kinds.
  state = process.next(state, [_client(9)]).state

  def after(clients):
    new = process.next(state, [_client(i) for i in clients]).state
    return _product(kind, process.get_model_weights(new))

  return kind, [after([i]) for i in range(3)], after(range(3))


def test_average_of_products(trained):
  kind, products, product_of_averages = trained
  gap = np.abs(np.mean(products, axis=0) - product_of_averages).max()
  apart = np.abs(products[0] - products[1]).max()
  assert apart > 0.1
  if kind == 'ffa_lora':
    assert gap < 1e-6
  else:
    assert gap > 1e-3


def _noisy_products(kind, noise_multipliers):
  """Products after a round without a client's update, but with its noise."""
  found = []
  for multiplier in noise_multipliers:
    mechanism = build_gaussian(
      clip_norm=1.0,
      noise_multiplier=multiplier,
      clients_per_round=1,
      total_rounds=2,
      noise_seed=7,
    )
    process = _process(kind, mechanism.factory, client_rate=1e-30)
    state = process.next(process.initialize(), [_client(0)]).state
    found.append(_product(kind, process.get_model_weights(state)))
  return found


@pytest.mark.parametrize('kind', _KINDS)
def test_noise_on_the_product(kind):
  # The seed is fixed, so the noise differs only in size. B is zero, so the
  # error is A xi_B, plus xi_A xi_B with noise on both.
  one, two, four = _noisy_products(kind, (1.0, 2.0, 4.0))
  linear = 2 * one - two / 2  # The squares cancel.
  quadratic = two / 2 - one
  np.testing.assert_allclose(four, 4 * linear + 16 * quadratic, atol=1e-4)
  if kind == 'ffa_lora':
    assert np.abs(quadratic).max() < 1e-5
    np.testing.assert_allclose(two, 2 * one, atol=1e-5)
  else:
    assert np.linalg.norm(quadratic) > 0.5 * np.linalg.norm(linear)


def test_only_factors_are_sent():
  sent = {
    kind: sum(w.size for w in _functional_model(kind).initial_weights[0])
    for kind in _KINDS
  }
  assert sent == {'lora': _RANK * (_IN + _OUT), 'ffa_lora': _RANK * _OUT}
