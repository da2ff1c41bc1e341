"""The frame of every language model: embedding, body, logits."""

from __future__ import annotations

from typing import Any, Callable

import tensorflow as tf

from si_federated import layers


def language_model(
  name: str,
  vocab_size: int,
  size: int,
  body: Callable[[Any], Any],
  *,
  tied_embeddings: bool,
) -> tf.keras.Model:
  """Builds a language model around its body.

  Args:
    name: The model's name.
    vocab_size: V, the number of all ids; id 0 is padding.
    size: E, the embedding size.
    body: Maps embeddings `[B, T, E]` to hidden states `[B, T, E]`.
    tied_embeddings: Whether the logits are a product with the transposed
      embedding, rather than a dense layer of their own.

  Returns:
    The model from ids `[B, T]` to logits `[B, T, V]`.
  """
  embedding_class = (
    layers.TiedEmbedding if tied_embeddings else tf.keras.layers.Embedding
  )
  embedding = embedding_class(
    vocab_size, size, mask_zero=True, name='embedding'
  )
  ids = tf.keras.layers.Input(shape=(None,), dtype=tf.int32, name='ids')
  hidden = body(embedding(ids))
  if tied_embeddings:
    logits = embedding(hidden, reverse=True)
  else:
    logits = tf.keras.layers.Dense(vocab_size, name='logits')(hidden)
  return tf.keras.Model(inputs=ids, outputs=logits, name=name)
