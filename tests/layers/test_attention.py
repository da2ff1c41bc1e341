"""Multi-head attention: parity with Keras, brute force, scale invariance."""

import numpy as np
import pytest
import tensorflow as tf

from si_federated import layers

SCALES = (1e-4, 2.0**-7, 0.5, 2.0, 2.0**7, 1e4)


def _normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype('float32')


def test_normalized_relu_by_hand():
  logits = [[2.0, -1.0, 6.0], [-1.0, -2.0, -3.0], [0.0, 0.5, 9.0]]
  np.testing.assert_allclose(
    layers.normalized_relu(tf.constant(logits)),
    [[0.25, 0.0, 0.75], [0.0, 0.0, 0.0], [0.0, 0.5 / 9.5, 9.0 / 9.5]],
    rtol=1e-6,
  )
  allowed = tf.constant([[True, True, False], [True] * 3, [False, True, False]])
  np.testing.assert_allclose(
    layers.normalized_relu(tf.constant(logits), allowed),
    [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
  )


def test_gradient_of_normalized_relu_is_that_of_plain_operations():
  logits = tf.constant(_normal(2, 5, 5))
  allowed = tf.linalg.band_part(tf.ones([5, 5], tf.bool), -1, 0)
  weights = _normal(2, 5, 5, seed=1)
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(logits)
    ours = tf.reduce_sum(layers.normalized_relu(logits, allowed) * weights)
    kept = tf.nn.relu(logits) * tf.cast(allowed, tf.float32)
    total = tf.reduce_sum(kept, -1, keepdims=True)
    plain = tf.reduce_sum(tf.math.divide_no_nan(kept, total) * weights)
  actual = tape.gradient(ours, logits)
  np.testing.assert_allclose(
    actual, tape.gradient(plain, logits), rtol=1e-5, atol=1e-6
  )
  dead = np.all((logits <= 0) | ~allowed, axis=-1)
  assert dead.any()
  assert not np.any(actual[dead])
  # Scale invariance makes every row orthogonal to its gradient.
  np.testing.assert_allclose(
    tf.reduce_sum(actual * kept, axis=-1), np.zeros([2, 5]), atol=1e-5
  )


@pytest.mark.parametrize('scale', SCALES)
def test_normalized_relu_ignores_the_scale(scale):
  logits = _normal(3, 6, 6)
  actual = layers.normalized_relu(tf.constant(scale * logits))
  expected = layers.normalized_relu(tf.constant(logits))
  if np.log2(scale) % 1 == 0:
    np.testing.assert_array_equal(actual, expected)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def _keras_twin(ours, query, value):
  """Returns Keras's layer with the weights of ours and nonzero biases."""
  ours(query, value)
  weights = [
    np.random.default_rng(i).normal(size=w.shape).astype('float32') / 2
    for i, w in enumerate(ours.get_weights())
  ]
  ours.set_weights(weights)
  n, h, v = ours.num_heads, ours.key_dim, ours.value_dim
  twin = tf.keras.layers.MultiHeadAttention(n, h, v)
  twin(query, value)
  by_name = {
    '/'.join(
      getattr(weight, 'path', weight.name).split(':')[0].split('/')[-2:]
    ): value
    for weight, value in zip(ours.weights, weights)
  }
  for part, size in (('query', h), ('key', h), ('value', v)):
    dense = getattr(twin, f'_{part}_dense')
    kernel = by_name[f'{part}/kernel']
    dense.set_weights(
      [
        kernel.reshape(kernel.shape[0], n, size),
        by_name[f'{part}/bias'].reshape(n, size),
      ]
    )
  kernel = by_name['output/kernel']
  twin._output_dense.set_weights(
    [kernel.reshape(n, v, kernel.shape[1]), by_name['output/bias']]
  )
  return twin


def test_symbolic_scores():
  query, value = tf.keras.Input([5, 6]), tf.keras.Input([7, 4])
  layer = layers.MultiHeadAttention(3, 2)
  outputs = layer(query, value, return_attention_scores=True)
  model = tf.keras.Model([query, value], outputs)
  output, scores = model([_normal(2, 5, 6), _normal(2, 7, 4)])
  assert output.shape == (2, 5, 6)
  np.testing.assert_allclose(
    tf.reduce_sum(scores, -1), np.ones([2, 3, 5]), rtol=1e-5
  )


@pytest.mark.parametrize('masked', ['causal', 'attention', 'value', 'none'])
def test_softmax_attention_equals_keras(masked):
  query, value = tf.constant(_normal(2, 5, 6)), tf.constant(_normal(2, 7, 4))
  ours = layers.MultiHeadAttention(3, 2, value_dim=5)
  twin = _keras_twin(ours, query, value)
  arguments = {
    'causal': {'use_causal_mask': True},
    'attention': {
      'attention_mask': tf.constant(_normal(2, 5, 7) > -0.5)
      | (tf.range(7) == 0)
    },
    'value': {},
    'none': {},
  }[masked]
  if masked == 'value':
    value._keras_mask = tf.sequence_mask([3, 7], 7)
  actual, scores = ours(query, value, return_attention_scores=True, **arguments)
  expected, expected_scores = twin(
    query, value, return_attention_scores=True, **arguments
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-6)


def test_scale_invariant_attention_by_brute_force():
  x = _normal(2, 4, 6)
  layer = layers.MultiHeadAttention(2, 3, scale_invariant=True)
  y = layer(tf.constant(x), use_causal_mask=True)
  q, qb, k, kb, v, vb, o, ob = layer.get_weights()
  expected = np.zeros((2, 4, 6))
  for b in range(2):
    for n in range(2):
      part = slice(3 * n, 3 * n + 3)
      for t in range(4):
        query = x[b, t] @ q[:, part] + qb[part]
        scores = [
          max(0.0, query @ (x[b, s] @ k[:, part] + kb[part]))
          for s in range(t + 1)
        ]
        total = sum(scores)
        for s, score in enumerate(scores):
          if total > 0:
            values = x[b, s] @ v[:, part] + vb[part]
            expected[b, t] += score / total * values @ o[part]
  np.testing.assert_allclose(y, expected + ob, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('scale_invariant', [False, True])
def test_causality_and_padding(scale_invariant):
  layer = layers.MultiHeadAttention(2, 3, scale_invariant=scale_invariant)
  x = _normal(1, 6, 4)
  before = layer(tf.constant(x), use_causal_mask=True)
  later = x.copy()
  later[:, 3:] += 5.0
  after = layer(tf.constant(later), use_causal_mask=True)
  np.testing.assert_allclose(before[:, :3], after[:, :3], atol=1e-6)
  assert np.abs(before[:, 3:] - after[:, 3:]).min() > 0
  short = layer(tf.constant(x[:, :4]))
  mask = tf.sequence_mask([4], 6)
  padded = layer(tf.constant(x), query_mask=mask, value_mask=mask)
  np.testing.assert_allclose(padded[:, :4], short, atol=1e-6)


@pytest.mark.parametrize('scale_invariant', [False, True])
def test_rows_without_allowed_keys_give_zero(scale_invariant):
  layer = layers.MultiHeadAttention(
    2, 3, use_bias=False, scale_invariant=scale_invariant
  )
  x = tf.constant(_normal(2, 3, 4))
  with tf.GradientTape() as tape:
    y, scores = layer(
      x,
      attention_mask=tf.zeros([2, 3, 3], tf.bool),
      return_attention_scores=True,
    )
    loss = tf.reduce_sum(y + y**2)
  assert not np.any(y)
  assert not np.any(scores)
  for gradient in tape.gradient(loss, layer.trainable_variables):
    assert np.all(np.isfinite(gradient))


def test_dropout_is_active_only_in_training():
  layer = layers.MultiHeadAttention(2, 3, dropout=0.5)
  x = tf.constant(_normal(2, 8, 4))
  np.testing.assert_array_equal(layer(x), layer(x))
  assert np.any(layer(x, training=True) != layer(x))


@pytest.mark.parametrize('options', [{'num_heads': 0}, {'key_dim': 1.5}])
def test_sizes_are_checked(options):
  with pytest.raises(ValueError, match='must be a positive whole number'):
    layers.MultiHeadAttention(**{'num_heads': 2, 'key_dim': 2, **options})
