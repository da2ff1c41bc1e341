"""Adaptive blending units against hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from si_federated import layers, models
from si_federated.layers import blending

X = np.array([-2.0, -0.5, 0.0, 0.25, 3.0])
BETA = 0.7
ALPHA = np.array([0.5, -0.3, 0.8, 0.2, 0.1])
FUNCTIONS = {
  'relu': lambda x: max(x, 0.0),
  'elu': lambda x: x if x > 0 else math.exp(x) - 1,
  'tanh': math.tanh,
  'swish': lambda x: x / (1 + math.exp(-BETA * x)),
  'identity': lambda x: x,
}
# The weights for ALPHA, by hand. Its sum is 1.3, that of the magnitudes 1.9,
# and with 1e-4 in place of -0.3 it is 1.6001.
EXPECTED = {
  'unrestricted': ALPHA,
  'normalized': ALPHA / 1.3,
  'absolute': ALPHA / 1.9,
  'softmax': np.exp(ALPHA) / sum(math.exp(a) for a in ALPHA),
  'positive': np.array([0.5, 1e-4, 0.8, 0.2, 0.1]) / 1.6001,
}


def _unit(mode, functions=tuple(FUNCTIONS), alpha=ALPHA, beta=BETA):
  layer = layers.AdaptiveBlendingUnit(mode, functions, dtype='float64')
  layer.build(None)
  layer.blending_weights.assign(alpha)
  if layer.swish_beta is not None:
    layer.swish_beta.assign(beta)
  return layer


@pytest.mark.parametrize('mode', list(EXPECTED))
def test_modes_equal_hand_computation(mode):
  layer = _unit(mode)
  np.testing.assert_allclose(layer.blend(), EXPECTED[mode], rtol=1e-12)
  expected = [
    sum(a * f(x) for a, f in zip(EXPECTED[mode], FUNCTIONS.values())) for x in X
  ]
  np.testing.assert_allclose(layer(tf.constant(X)), expected, rtol=1e-12)


@pytest.mark.parametrize('mode', list(EXPECTED))
def test_all_functions_start_with_equal_weights(mode):
  layer = layers.AdaptiveBlendingUnit(mode)
  layer.build(None)
  np.testing.assert_allclose(layer.blending_weights, [0.2] * 5)
  np.testing.assert_allclose(layer.blend(), [0.2] * 5, rtol=1e-6)
  assert layer.swish_beta is not None
  assert layer.swish_beta.numpy() == 1.0


@pytest.mark.parametrize('mode', list(EXPECTED))
def test_gradients_equal_finite_differences(mode):
  weights = np.array([1.0, -0.6, 0.3, 0.9, 2.0])

  def value(alpha, beta, x):
    layer = _unit(mode, alpha=alpha, beta=beta)
    return float(tf.reduce_sum(weights * layer(tf.constant(x))))

  layer, x = _unit(mode), tf.constant(X + 0.01)
  with tf.GradientTape() as tape:
    tape.watch(x)
    total = tf.reduce_sum(weights * layer(x))
  by_alpha, by_beta, by_x = tape.gradient(
    total, [layer.blending_weights, layer.swish_beta, x]
  )
  step = 1e-6

  def slope(at):
    return (at(step) - at(-step)) / (2 * step)

  def expected(size, at):
    return [slope(lambda e, i=i: at(e * np.eye(size)[i])) for i in range(size)]

  points = x.numpy()
  np.testing.assert_allclose(
    by_alpha,
    expected(5, lambda e: value(ALPHA + e, BETA, points)),
    rtol=1e-6,
    atol=1e-8,
  )
  np.testing.assert_allclose(
    by_x, expected(5, lambda e: value(ALPHA, BETA, points + e)), rtol=1e-6
  )
  np.testing.assert_allclose(
    by_beta, slope(lambda e: value(ALPHA, BETA + e, points)), rtol=1e-6
  )


@pytest.mark.parametrize('name', list(FUNCTIONS))
def test_one_function_is_adaptive_scaling(name):
  layer = _unit('unrestricted', [name], alpha=[1.7])
  expected = [1.7 * FUNCTIONS[name](x) for x in X]
  np.testing.assert_allclose(layer(tf.constant(X)), expected, rtol=1e-12)
  assert len(layer.weights) == (2 if name == 'swish' else 1)


@pytest.mark.parametrize(
  ('text', 'mode', 'functions'),
  [
    ('abu', 'unrestricted', tuple(FUNCTIONS)),
    ('abu_softmax', 'softmax', tuple(FUNCTIONS)),
    ('abu:relu', 'unrestricted', ('relu',)),
    ('abu_positive:relu+tanh', 'positive', ('relu', 'tanh')),
  ],
)
def test_text_form_of_kinds(text, mode, functions):
  kind = blending.get(text)
  assert isinstance(kind, blending.Blend)
  assert (kind.mode, kind.functions) == (mode, functions)
  assert str(kind) == blending.serialize(kind) == text
  unit = layers.AdaptiveBlendingUnit(mode, functions)
  assert blending.get(unit) == kind
  layer = layers.FeedForward(6, activation=text)
  assert layer.get_config()['activation'] == text


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('abu_soft', "no mode 'soft'.*softmax"),
    ('abu:relu+gelu', "no function 'gelu'.*swish"),
    ('abu:relu+relu', 'one or more distinct functions'),
    ('abu:', "no function ''"),
  ],
)
def test_wrong_kinds_are_refused(text, message):
  with pytest.raises(ValueError, match=message):
    layers.FeedForward(6, activation=text)


@pytest.mark.parametrize(
  ('text', 'fits'),
  [
    ('abu_normalized:relu+identity', True),
    ('abu_absolute:relu', True),
    ('abu_absolute:relu+tanh', False),
    # Their weights would raise the degree, or their scale would matter.
    ('abu:relu+identity', False),
    ('abu_softmax:relu+identity', False),
    ('abu_positive:relu+identity', False),
  ],
)
def test_scale_invariant_blocks_accept_homogeneous_activations(text, fits):
  def build():
    return layers.TransformerBlock(8, 2, activation=text, scale_invariant=True)

  if not fits:
    with pytest.raises(ValueError, match='abu_normalized:relu'):
      build()
    return
  block = build()
  generator = np.random.default_rng(0)
  x = generator.normal(size=[2, 3, 4]).astype('float32')
  block(x)
  weights = [
    generator.uniform(0.1, 1.0, w.shape).astype('float32')
    for w in block.get_weights()
  ]
  block.set_weights(weights)
  expected = block(x)
  block.set_weights([3 * w for w in weights])
  # The output has degree 2 in the weights if the input has.
  np.testing.assert_allclose(block(9 * x), 9 * expected, rtol=1e-4)


def test_each_place_has_a_unit_of_its_own():
  model = models.MODELS['conformer'](
    20,
    embedding_size=8,
    num_heads=2,
    intermediate_dim=8,
    num_layers=2,
    activation='abu_softmax:relu+tanh',
  )
  names = [
    getattr(w, 'path', w.name).split(':')[0]
    for w in model.weights
    if 'blending_weights' in w.name
  ]
  # Each block has two feed-forward parts and a convolution.
  assert len(set(names)) == 6
  assert 'block_1/feed_forward_1/blending/blending_weights' in names
