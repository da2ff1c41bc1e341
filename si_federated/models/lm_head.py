"""Where words enter and leave a language model: embedding and logits."""

from __future__ import annotations

from typing import Any, Tuple

import tensorflow as tf

from si_federated import layers


def embed(
  vocab_size: int, size: int, *, tied: bool
) -> Tuple[Any, tf.keras.layers.Layer, Any]:
  """Begins a model.

  Args:
    vocab_size: V, the number of all ids; id 0 is padding.
    size: E, the size of the embeddings.
    tied: Whether the embedding gives the logits as well.

  Returns:
    The input of ids `[B, T]`, the embedding layer, and embeddings `[B, T, E]`.
  """
  embedding_class = layers.TiedEmbedding if tied else tf.keras.layers.Embedding
  embedding = embedding_class(
    vocab_size, size, mask_zero=True, name='embedding'
  )
  ids = tf.keras.layers.Input(shape=(None,), dtype=tf.int32, name='ids')
  return ids, embedding, embedding(ids)


def finish(
  ids: Any, embedding: tf.keras.layers.Layer, hidden: Any, *, name: str
) -> tf.keras.Model:
  """Ends a model with its logits.

  Args:
    ids: What `embed` returned, as is `embedding`.
    embedding: If tied, the logits are a product with its transpose; otherwise
      a dense layer's.
    hidden: `[B, T, E]`.
    name: The model's name.

  Returns:
    The model from ids `[B, T]` to logits `[B, T, V]`.
  """
  if isinstance(embedding, layers.TiedEmbedding):
    logits = embedding(hidden, reverse=True)
  else:
    logits = tf.keras.layers.Dense(embedding.input_dim, name='logits')(hidden)
  return tf.keras.Model(inputs=ids, outputs=logits, name=name)
