"""Transformer and Conformer blocks against stock Keras and plain numpy."""

from typing import Any, Callable, Dict

import numpy as np
import pytest
import tensorflow as tf

from si_federated import layers

BLOCKS: Dict[str, Callable[..., Any]] = {
  'transformer': lambda **options: layers.TransformerBlock(8, 2, **options),
  'conformer': lambda **options: layers.ConformerBlock(
    8, 2, kernel_size=3, **options
  ),
}


def _normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype('float32')


def _randomize(layer):
  for index, weight in enumerate(layer.weights):
    weight.assign(_normal(*weight.shape, seed=100 + index) / 2)


@pytest.mark.parametrize('normalize_first', [True, False])
def test_transformer_block_is_that_of_stock_keras_layers(normalize_first):
  x = tf.constant(_normal(2, 5, 6))
  block = layers.TransformerBlock(
    8, 2, activation='gelu', normalize_first=normalize_first
  )
  block(x)
  _randomize(block)
  attention = tf.keras.layers.MultiHeadAttention(2, 3)
  attention(x, x)
  ours = block.attention
  for twin, dense in (
    (attention._query_dense, ours.query_dense),
    (attention._key_dense, ours.key_dense),
    (attention._value_dense, ours.value_dense),
    (attention._output_dense, ours.output_dense),
  ):
    twin.set_weights(
      [w.reshape(v.shape) for w, v in zip(dense.get_weights(), twin.weights)]
    )
  norms = []
  for norm in (block.attention_norm, block.feed_forward_norm):
    twin = tf.keras.layers.LayerNormalization(epsilon=1e-6)
    twin.build((None, None, 6))
    twin.set_weights(norm.get_weights())
    norms.append(twin)

  def attend(y):
    return attention(y, y, use_causal_mask=True)

  def feed(y):
    inner, outer = (
      block.feed_forward.intermediate_dense,
      block.feed_forward.output_dense,
    )
    y = tf.nn.gelu(y @ inner.kernel + inner.bias)
    return y @ outer.kernel + outer.bias

  expected = x
  for part, norm in zip((attend, feed), norms):
    if normalize_first:
      expected += part(norm(expected))
    else:
      expected = norm(expected + part(expected))
  np.testing.assert_allclose(block(x), expected, rtol=1e-4, atol=1e-4)


def test_conformer_block_by_numpy():
  x = _normal(2, 5, 6)
  block = layers.ConformerBlock(8, 2, kernel_size=3, layer_norm_epsilon=1e-6)
  block(tf.constant(x))
  _randomize(block)

  def norm(layer, y):
    gamma, beta = layer.get_weights()
    mean, variance = y.mean(-1, keepdims=True), y.var(-1, keepdims=True)
    return (y - mean) / np.sqrt(variance + 1e-6) * gamma + beta

  def sigmoid(y):
    return 1 / (1 + np.exp(-y))

  def dense(layer, y):
    kernel, bias = layer.get_weights()
    return y @ kernel + bias

  def feed(layer, y):
    y = dense(layer.intermediate_dense, y)
    return dense(layer.output_dense, y * sigmoid(y))

  y = x + feed(block.feed_forward_1, norm(block.feed_forward_1_norm, x)) / 2
  attended = block.attention(
    tf.constant(norm(block.attention_norm, y)), use_causal_mask=True
  )
  y = y + np.asarray(attended)
  gated = dense(block.gated_dense, norm(block.convolution_norm, y))
  gated = gated[..., :6] * sigmoid(gated[..., 6:])
  kernel = block.depthwise_kernel.numpy()
  convolved = np.tile(np.asarray(block.depthwise_bias), (2, 5, 1))
  for t in range(5):
    for back in range(3):
      if t - back >= 0:
        convolved[:, t] += kernel[2 - back] * gated[:, t - back]
  z = norm(block.inner_norm, convolved)
  y = y + dense(block.output_dense, z * sigmoid(z))
  y = y + feed(block.feed_forward_2, norm(block.feed_forward_2_norm, y)) / 2
  expected = norm(block.output_norm, y)
  np.testing.assert_allclose(
    block(tf.constant(x)), expected, rtol=1e-3, atol=1e-4
  )


@pytest.mark.parametrize('scale_invariant', [False, True])
@pytest.mark.parametrize('name', list(BLOCKS))
def test_later_positions_have_no_effect(name, scale_invariant):
  block = BLOCKS[name](scale_invariant=scale_invariant)
  x = _normal(2, 7, 6)
  later = x.copy()
  later[:, 4:] = _normal(2, 3, 6, seed=1)
  before, after = block(tf.constant(x)), block(tf.constant(later))
  np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-5)
  assert np.abs(before[:, 4:] - after[:, 4:]).min() > 0


@pytest.mark.parametrize('scale_invariant', [False, True])
@pytest.mark.parametrize('name', list(BLOCKS))
def test_padding_changes_nothing(name, scale_invariant):
  """Outputs and weight gradients are those of the unpadded sentences."""
  block = BLOCKS[name](scale_invariant=scale_invariant)
  x, lengths = _normal(3, 6, 6), [6, 2, 0]
  target = _normal(3, 6, 6, seed=1)
  mask = tf.sequence_mask(lengths, 6)
  with tf.GradientTape() as tape:
    y = block(tf.constant(x), mask=mask)
    loss = tf.reduce_sum(y * target)
  gradients = tape.gradient(loss, block.trainable_variables)
  assert not np.any(tf.boolean_mask(y, ~mask))
  with tf.GradientTape() as tape:
    alone = [
      block(tf.constant(x[i : i + 1, :n])) for i, n in enumerate(lengths) if n
    ]
    loss = sum(
      tf.reduce_sum(part * target[i : i + 1, : part.shape[1]])
      for i, part in enumerate(alone)
    )
  for i, part in enumerate(alone):
    np.testing.assert_allclose(y[i, : lengths[i]], part[0], atol=1e-5)
  for actual, expected in zip(
    gradients, tape.gradient(loss, block.trainable_variables)
  ):
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', list(BLOCKS))
def test_attention_only_leaves_the_rest_unchanged(name):
  x = tf.constant(_normal(2, 5, 6))
  plain, attention_only = (
    BLOCKS[name](**options)
    for options in ({}, {'scale_invariant': True, 'attention_only': True})
  )
  for block in (plain, attention_only):
    block(x)
  assert [w.shape for w in plain.weights] == [
    w.shape for w in attention_only.weights
  ]
  attention_only.set_weights(plain.get_weights())
  assert np.abs(plain(x) - attention_only(x)).max() > 1e-3
  # With one position both attend only to it, if the score is positive.
  for block in (plain, attention_only):
    block.attention.key_dense.set_weights(
      block.attention.query_dense.get_weights()
    )
  np.testing.assert_allclose(
    plain(x[:, :1]), attention_only(x[:, :1]), atol=1e-5
  )


@pytest.mark.parametrize('name', list(BLOCKS))
def test_dropout_is_active_only_in_training(name):
  block = BLOCKS[name](dropout=0.5)
  x = tf.constant(_normal(2, 5, 6))
  np.testing.assert_array_equal(block(x), block(x))
  assert np.any(block(x, training=True) != block(x))


def test_settings_that_break_scale_invariance_are_refused():
  with pytest.raises(ValueError, match='needs an activation that scales'):
    layers.TransformerBlock(8, 2, activation='gelu', scale_invariant=True)
  with pytest.raises(ValueError, match='normalize_first'):
    layers.TransformerBlock(8, 2, normalize_first=False, scale_invariant=True)
  with pytest.raises(ValueError, match='needs an activation that scales'):
    layers.ConformerBlock(8, 2, activation='swish', scale_invariant=True)


def test_sizes_are_checked():
  with pytest.raises(ValueError, match='not a multiple of num_heads=4'):
    layers.TransformerBlock(8, 4)(tf.zeros([1, 2, 6]))
  for block in BLOCKS.values():
    with pytest.raises(ValueError, match='not a multiple of num_heads=2'):
      block()(tf.zeros([1, 2, 5]))
  with pytest.raises(ValueError, match='num_heads must be a positive'):
    layers.TransformerBlock(8, 0)
  with pytest.raises(ValueError, match='num_heads must be a positive'):
    layers.ConformerBlock(8, 0)
  with pytest.raises(ValueError, match='kernel_size'):
    layers.ConformerBlock(8, 2, kernel_size=0)
  with pytest.raises(ValueError, match='intermediate_dim'):
    layers.FeedForward(0)


def test_sinusoids_by_hand():
  layer = layers.PositionEmbedding()
  y = layer(tf.ones([1, 3, 4]))
  expected = [
    [
      np.sin(t) + 1,
      np.cos(t) + 1,
      np.sin(t / 100) + 1,
      np.cos(t / 100) + 1,
    ]
    for t in range(3)
  ]
  np.testing.assert_allclose(y[0], expected, atol=1e-6)
  scaled = layers.PositionEmbedding(scale_inputs=True)(tf.ones([1, 3, 4]))
  np.testing.assert_allclose(scaled, y + 1, atol=1e-6)


def test_learned_positions():
  layer = layers.PositionEmbedding('learned', max_length=4)
  y = layer(tf.zeros([2, 3, 5]))
  np.testing.assert_allclose(y[1], layer.embeddings[:3])
  with pytest.raises(ValueError, match='longer than max_length=4'):
    layer(tf.zeros([2, 5, 5]))
  with pytest.raises(ValueError, match='need max_length'):
    layers.PositionEmbedding('learned')
  with pytest.raises(ValueError, match='must be sinusoidal or learned'):
    layers.PositionEmbedding('rotary')


class TestLayerNormalization:
  def test_equals_keras(self):
    x = tf.constant(3 * _normal(2, 5, 6) + 1)
    ours = layers.LayerNormalization(epsilon=1e-3)
    twin = tf.keras.layers.LayerNormalization(epsilon=1e-3)
    for layer in (ours, twin):
      layer(x)
      _randomize(layer)
    results = []
    for layer in (ours, twin):
      with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(y**3)
      results.append([y, *tape.gradient(loss, [x, *layer.weights])])
    for actual, expected in zip(*results):
      np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)

  def test_constant_rows_without_epsilon(self):
    x = tf.constant([[3.0, 3.0, 3.0], [1.0, 2.0, 4.0]])
    layer = layers.LayerNormalization(epsilon=0.0)
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = layer(x)
    gradient = tape.gradient(y, x)
    np.testing.assert_array_equal(y[0], [0, 0, 0])
    np.testing.assert_array_equal(gradient[0], [0, 0, 0])
    assert np.all(np.isfinite(gradient))

  @pytest.mark.parametrize('scale', [1e-30, 1e-4, 1e4, 1e30])
  def test_scale_invariance_without_epsilon(self, scale):
    x = _normal(4, 6)
    layer = layers.LayerNormalization(epsilon=0.0)
    np.testing.assert_allclose(
      layer(tf.constant(np.float32(scale) * x)), layer(x), rtol=1e-4, atol=1e-6
    )

  def test_other_axes_are_refused(self):
    with pytest.raises(ValueError, match='over the last axis'):
      layers.LayerNormalization(axis=1)(tf.zeros([2, 3, 4]))
