"""Tests of low-rank adapters: LoRA and FFA-LoRA."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated.models import MODELS, TRANSFORMS
from si_federated.models.adapters import (
  adapters_of,
  merge_adapters,
  merge_weights,
)
from si_federated.models.transforms import stable_names

X = np.array([[7, 1, 2, 3, 4], [7, 5, 9, 0, 0]], np.int32)
Y = np.array([[1, 2, 3, 4, 8], [5, 9, 8, 0, 0]], np.int32)
KINDS = ('lora', 'ffa_lora')


def _build(name, seed=0):
  tf.keras.utils.set_random_seed(seed)
  if name.endswith('former'):
    return MODELS[name](
      12, embedding_size=8, num_heads=2, intermediate_dim=16, num_layers=1
    )
  return MODELS[name](12, units=8, embedding_size=8)


def _named(model):
  return dict(
    zip(stable_names(v.name for v in model.variables), model.variables)
  )


def _set_b(model):
  for index, item in enumerate(adapters_of(model)):
    item.b.assign(tf.random.stateless_normal(item.b.shape, [1, index]))


def _train(model, steps=2):
  loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  for _ in range(steps):
    with tf.GradientTape() as tape:
      value = loss(Y, model(X, training=True))
    variables = model.trainable_variables
    for v, g in zip(variables, tape.gradient(value, variables)):
      v.assign_sub(g)


@pytest.mark.parametrize(
  'name', ['lstm', 'cifg', 'si_gru', 'transformer', 'si_conformer']
)
def test_initially_equals_the_model_and_merges_into_it(name):
  plain = _build(name)
  before = plain(X).numpy()
  model = TRANSFORMS['lora'](_build(name), rank=2, alpha=6)
  np.testing.assert_allclose(model(X).numpy(), before, atol=1e-6)
  _set_b(model)
  variables = _named(model)
  learned = model(X).numpy()
  assert np.abs(learned - before).max() > 10 * 1e-5
  weights = {n: v.numpy() for n, v in variables.items()}
  merged = merge_weights(model, variables, weights)
  for n, variable in _named(plain).items():
    variable.assign(merged[n])
  assert set(merged) == set(_named(plain))
  np.testing.assert_allclose(plain(X).numpy(), learned, rtol=1e-4, atol=1e-5)
  merge_adapters(model)
  np.testing.assert_allclose(model(X).numpy(), learned, rtol=1e-4, atol=1e-5)
  assert not any(item.b.numpy().any() for item in adapters_of(model))


@pytest.mark.parametrize('kind', KINDS)
def test_trains_the_factors_alone(kind):
  model = TRANSFORMS[kind](_build('transformer'), rank=2)
  before = {n: v.numpy() for n, v in _named(model).items()}
  _train(model)
  changed = {
    n for n, v in _named(model).items() if (v.numpy() != before[n]).any()
  }
  factors = ('lora_a', 'lora_b') if kind == 'lora' else ('lora_b',)
  assert changed == {n for n in before if n.endswith(factors)}
  assert {n.rpartition('/')[2] for n in changed} == set(factors)


@pytest.mark.parametrize('name', ['cifg', 'transformer'])
def test_gradients_are_those_of_the_sum(name):
  model = TRANSFORMS['lora'](_build(name), rank=2, alpha=4)
  _set_b(model)  # Zeros would hide A's gradient.
  loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  with tf.GradientTape() as tape:
    value = loss(Y, model(X))
  factors = [v for item in adapters_of(model) for v in (item.a, item.b)]
  gradients = iter(tape.gradient(value, factors))
  plain = _build(name)
  weights = {n: v.numpy() for n, v in _named(model).items()}
  merged = merge_weights(model, _named(model), weights)
  for n, variable in _named(plain).items():
    variable.assign(merged[n])
  names = {id(v): n for n, v in _named(model).items()}
  with tf.GradientTape() as tape:
    value = loss(Y, plain(X))
  kernels = [_named(plain)[names[id(i.kernel)]] for i in adapters_of(model)]
  for item, whole in zip(adapters_of(model), tape.gradient(value, kernels)):
    whole = tf.reshape(whole, [item.a.shape[0], item.b.shape[1]])
    for expected in (
      2 * tf.matmul(whole, item.b, transpose_b=True),
      2 * tf.matmul(item.a, whole, transpose_a=True),
    ):
      np.testing.assert_allclose(next(gradients), expected, atol=1e-5)


def test_adapts_by_name_and_trains_others_by_name():
  model = TRANSFORMS['ffa_lora'](
    _build('transformer'),
    rank=2,
    variables='query|value',
    trained='final_norm|/bias$',
  )
  assert {n for n in _named(model) if 'lora' in n} == {
    f'block_1/attention/{part}/lora_{factor}'
    for part in ('query', 'value')
    for factor in 'ab'
  }
  trained = stable_names(v.name for v in model.trainable_variables)
  assert 'final_norm/gamma' in trained
  assert 'block_1/attention/query/kernel' not in trained
  assert 'block_1/attention/query/lora_a' not in trained


def test_adapts_keras_attention_as_a_matrix():
  x = tf.keras.Input([3, 8])
  attention = tf.keras.layers.MultiHeadAttention(2, 4, name='attention')
  model = tf.keras.Model(x, attention(x, x))
  data = np.random.default_rng(0).normal(size=[2, 3, 8]).astype(np.float32)
  before = model(data).numpy()
  TRANSFORMS['lora'](model, rank=1)
  shapes = [(tuple(i.a.shape), tuple(i.b.shape)) for i in adapters_of(model)]
  assert shapes == [((8, 1), (1, 8))] * 4
  np.testing.assert_allclose(model(data), before, atol=1e-6)
  for item in adapters_of(model):
    item.b.assign(tf.ones_like(item.b))
  learned = model(data).numpy()
  assert np.abs(learned - before).max() > 1e-2
  merge_adapters(model)
  np.testing.assert_allclose(model(data), learned, atol=1e-5)


def test_orthogonal_columns():
  model = TRANSFORMS['lora'](
    _build('transformer'), rank=3, initializer='orthogonal'
  )
  for item in adapters_of(model):
    gram = item.a.numpy().T @ item.a.numpy()
    np.testing.assert_allclose(gram, np.eye(3), atol=1e-5)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'rank': 0}, 'rank must be a positive whole number'),
    ({'rank': 400}, 'choose a smaller rank'),
    ({'alpha': 0}, 'alpha must be above 0'),
    ({'variables': 'nothing'}, 'matches no variable'),
    ({'rank': 2, 'trained': 'nothing'}, 'matches no variable'),
    ({'initializer': 'ones'}, "but it is 'ones'"),
  ],
)
def test_bad_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    TRANSFORMS['lora'](_build('transformer'), **options)


def test_adapters_on_adapters_are_refused():
  model = TRANSFORMS['lora'](_build('transformer'), rank=2)
  with pytest.raises(ValueError, match='adapters already'):
    TRANSFORMS['lora'](model, rank=2)
