"""Degrees of homogeneity part by part: Li et al., arXiv 2202.00980, Table 2.

A part of degree (a; b) turns inputs of degree a in the weights into outputs of
degree b: part(c w, c^a x) = c^b part(w, x).
"""

from typing import Any, Callable, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from si_federated import layers, models

SCALES = (1e-4, 0.1, 2.0, 1e4)


class Part(NamedTuple):
  make: Callable[[], Any]
  degree_in: int
  degree_out: int
  inputs: str = 'real'


def _dense(**options):
  return lambda: tf.keras.layers.Dense(6, **options)


def _norm(affine):
  return lambda: layers.LayerNormalization(
    epsilon=0.0, center=affine, scale=affine
  )


def _attention():
  return layers.MultiHeadAttention(2, 3, use_bias=False, scale_invariant=True)


def _biased_attention():
  return layers.MultiHeadAttention(
    2, 3, scale_invariant=True, use_output_bias=False
  )


PARTS = {
  'layer_norm_without_weights': Part(_norm(False), 3, 0),
  'layer_norm_with_weights': Part(_norm(True), 3, 1),
  'linear_0': Part(_dense(use_bias=False), 0, 1),
  'linear_1': Part(_dense(use_bias=False), 1, 2),
  'bias': Part(_dense(), 0, 1),
  'embedding': Part(lambda: layers.TiedEmbedding(9, 6), 0, 1, 'ids'),
  'gain': Part(lambda: layers.Gain(2), 0, 2),
  'feed_forward': Part(
    lambda: layers.FeedForward(8, use_output_bias=False), 0, 2
  ),
  'attention_0': Part(_attention, 0, 2),
  'attention_1': Part(_attention, 1, 3),
  'attention_with_biases': Part(_biased_attention, 0, 2),
  'feed_forward_blending': Part(
    lambda: layers.FeedForward(
      8, 'abu_absolute:relu+identity', use_output_bias=False
    ),
    0,
    2,
  ),
  'encoder_layer': Part(
    lambda: layers.TransformerBlock(8, 2, scale_invariant=True), 2, 2
  ),
  'conformer_block': Part(
    lambda: layers.ConformerBlock(
      8, 2, kernel_size=3, scale_invariant=True, dead_gate_slope=0.0
    ),
    2,
    2,
  ),
}


def _random_weights(layer):
  generator = np.random.default_rng(3)
  return [
    generator.normal(size=w.shape).astype('float32')
    for w in layer.get_weights()
  ]


def _inputs(kind):
  if kind == 'ids':
    return np.array([[1, 4, 2, 8, 3], [5, 5, 6, 7, 1]])
  return np.random.default_rng(4).normal(size=(2, 5, 6)).astype('float32')


def _assert_equal(actual, expected):
  largest = np.abs(expected).max()
  np.testing.assert_allclose(actual, expected, atol=1e-4 * largest)


@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize('name', list(PARTS))
def test_degree(name, scale):
  part = PARTS[name]
  layer, x = part.make(), _inputs(part.inputs)
  layer(x)
  weights = _random_weights(layer)
  layer.set_weights(weights)
  expected = layer(x).numpy()
  layer.set_weights([scale * w for w in weights])
  scaled = x if part.inputs == 'ids' else (scale**part.degree_in * x)
  actual = layer(scaled).numpy() / scale**part.degree_out
  assert np.abs(expected).max() > 0
  _assert_equal(actual, expected)


def test_biases_at_the_end_break_it():
  layer = layers.FeedForward(8)
  x = _inputs('real')
  layer(x)
  weights = _random_weights(layer)
  layer.set_weights(weights)
  expected = layer(x).numpy()
  layer.set_weights([10 * w for w in weights])
  assert np.abs(layer(x).numpy() / 100 - expected).max() > 0.1


@pytest.mark.parametrize('positions', ['sinusoidal', 'learned'])
@pytest.mark.parametrize('name', ['si_transformer', 'si_conformer'])
class TestModels:
  """The body of a model is of degree 0; the embedding turns it into logits."""

  def _body(self, name, positions):
    tf.keras.utils.set_random_seed(5)
    options = {}
    if name == 'si_conformer':
      # The slope of dead gates is not part of the loss's gradient.
      options = {'kernel_size': 4, 'dead_gate_slope': 0.0}
    model = models.MODELS[name](
      11,
      embedding_size=8,
      intermediate_dim=12,
      num_layers=2,
      num_heads=2,
      positions=positions,
      max_length=6,
      **options,
    )
    body = tf.keras.Model(model.inputs, model.get_layer('final_norm').output)
    ids = np.array([[1, 4, 2, 8, 3, 0], [5, 9, 6, 7, 1, 10]])
    return body, ids

  def test_scale_invariance(self, name, positions):
    body, ids = self._body(name, positions)
    expected, weights = body(ids).numpy(), body.get_weights()
    for scale in SCALES:
      body.set_weights([scale * w for w in weights])
      np.testing.assert_allclose(body(ids), expected, atol=2e-3)

  def test_gradient_is_orthogonal_to_the_weights(self, name, positions):
    body, ids = self._body(name, positions)
    target = np.random.default_rng(6).normal(size=(2, 6, 8))
    with tf.GradientTape() as tape:
      loss = tf.reduce_mean(tf.square(body(ids, training=True) - target))
    gradients = tape.gradient(loss, body.trainable_variables)
    products = [
      float(tf.reduce_sum(tf.convert_to_tensor(g) * w))
      for g, w in zip(gradients, body.trainable_variables)
    ]
    sizes = [
      float(tf.norm(tf.convert_to_tensor(g)) * tf.norm(w))
      for g, w in zip(gradients, body.trainable_variables)
    ]
    assert max(sizes) > 1e-3
    assert abs(sum(products)) < 1e-4 * sum(sizes)
