"""A small Transformer text classifier of this package's own layers."""

from __future__ import annotations

import tensorflow as tf

from si_federated import layers
from si_federated.layers.checks import check_count
from si_federated.models import sizes


class _MeanOverText(tf.keras.layers.Layer):
  """Hidden `[B, T, D]` and ids `[B, T]` -> means over tokens, not padding."""

  def call(self, inputs):
    hidden, ids = inputs
    weights = tf.cast(tf.not_equal(ids, 0), hidden.dtype)[..., tf.newaxis]
    return tf.math.divide_no_nan(
      tf.reduce_sum(hidden * weights, axis=1), tf.reduce_sum(weights, axis=1)
    )


def transformer_classifier(
  vocab_size: int,
  num_classes: int,
  *,
  embedding_size: int = 64,
  intermediate_dim: int = 128,
  num_layers: int = 2,
  num_heads: int = 2,
  activation: str = 'gelu',
  dropout: float = 0.0,
) -> tf.keras.Model:
  """Builds a Transformer encoder with mean pooling; needs no other package.

  Args:
    vocab_size: V, the number of all ids; id 0 is padding.
    num_classes: C.
    embedding_size: D, the size of the embeddings and of the blocks.
    intermediate_dim: Features inside the feed-forward parts.
    num_layers: Number of blocks, pre-norm, not causal.
    num_heads: Number of attention heads, a divisor of D.
    activation: Activation of the feed-forward parts.
    dropout: Fraction of units to drop.

  Returns:
    A model from ids `[B, T]` to logits `[B, C]`.

  Raises:
    ValueError: If an option is out of range.
  """
  check_count('num_classes', num_classes)
  check_count('embedding_size', embedding_size)
  sizes.check_common(
    vocab_size=vocab_size, num_layers=num_layers, dropout=dropout
  )
  ids = tf.keras.layers.Input(shape=(None,), dtype=tf.int32, name='ids')
  hidden = tf.keras.layers.Embedding(
    vocab_size, embedding_size, mask_zero=True, name='embedding'
  )(ids)
  hidden = layers.PositionEmbedding('sinusoidal', name='position_embedding')(
    hidden
  )
  for index in range(1, num_layers + 1):
    hidden = layers.TransformerBlock(
      intermediate_dim,
      num_heads,
      activation=activation,
      dropout=dropout,
      use_causal_mask=False,
      name=f'block_{index}',
    )(hidden)
  hidden = layers.LayerNormalization(epsilon=1e-6, name='final_norm')(hidden)
  pooled = _MeanOverText(name='mean')((hidden, ids))
  logits = tf.keras.layers.Dense(num_classes, name='logits')(pooled)
  return tf.keras.Model(ids, logits, name='transformer_classifier')
