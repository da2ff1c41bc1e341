"""Recurrent next-word models: embedding, recurrence, projection, logits.

The sizes called `small` and `large` are those of Ro et al. 2022, "Scaling
Language Model Size in Cross-Device Federated Learning", arXiv 2204.09715, as
inferred from its parameter counts; they are sizes of a CIFG.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

import tensorflow as tf

from si_federated import layers
from si_federated.models import lm_head, sizes

DEFAULTS: Dict[str, Optional[int]] = {
  'embedding_size': 96,
  'units': 670,
  'projection_units': None,
}
PUBLISHED: Dict[str, Dict[str, int]] = {
  'small': {'embedding_size': 256, 'units': 2048, 'projection_units': 256},
  'large': {'embedding_size': 1024, 'units': 2048, 'projection_units': 1024},
}


def build(
  layer_class: Callable[..., Any],
  name: str,
  vocab_size: int,
  *,
  embedding_size: Optional[int],
  units: Optional[int],
  projection_units: Optional[int],
  num_layers: int,
  tied_embeddings: bool,
  size: Optional[str],
  normalize_embedding: bool,
  dropout: float,
  **layer_options: Any,
) -> tf.keras.Model:
  """Builds a language model around a recurrent layer.

  Args:
    layer_class: One of our recurrent layers.
    name: The model's name.
    vocab_size: See `lstm`, as for all the options down to `dropout`.
    embedding_size: Size of the embeddings.
    units: Hidden units of a recurrent layer.
    projection_units: Size of a projection inside the recurrence.
    num_layers: Number of recurrent layers.
    tied_embeddings: Whether the logits use the embedding.
    size: `small` or `large`: the published sizes.
    normalize_embedding: Whether embeddings are normalised.
    dropout: Fraction of the inputs of each recurrent layer to drop.
    **layer_options: Further arguments of the layer.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  sizes.check_common(
    vocab_size=vocab_size, num_layers=num_layers, dropout=dropout
  )
  resolved = sizes.resolve(
    size,
    given={
      'embedding_size': embedding_size,
      'units': units,
      'projection_units': projection_units,
    },
    defaults=DEFAULTS,
    published=PUBLISHED,
  )
  width, projected = resolved['embedding_size'], resolved['projection_units']
  if tied_embeddings and projected not in (None, width):
    raise ValueError(
      f'projection_units={projected} must equal embedding_size={width} with '
      'tied embeddings: make them equal or set tied_embeddings=False.'
    )

  ids, embedding, hidden = lm_head.embed(
    vocab_size, width, tied=tied_embeddings
  )
  if normalize_embedding:
    # Freshly drawn embeddings have a variance below Keras's default epsilon.
    hidden = tf.keras.layers.LayerNormalization(
      center=False, scale=False, epsilon=1e-6, name='normalization'
    )(hidden)
  for index in range(1, num_layers + 1):
    hidden = layer_class(
      resolved['units'],
      projection_units=projected,
      return_sequences=True,
      dropout=dropout,
      name=f'recurrent_{index}',
      **layer_options,
    )(hidden)
    if projected is None:
      hidden = tf.keras.layers.Dense(width, name=f'projection_{index}')(hidden)
  return lm_head.finish(ids, embedding, hidden, name=name)


def lstm(
  vocab_size: int,
  *,
  embedding_size: Optional[int] = None,
  units: Optional[int] = None,
  projection_units: Optional[int] = None,
  num_layers: int = 1,
  tied_embeddings: bool = True,
  size: Optional[str] = None,
  normalize_embedding: bool = False,
  dropout: float = 0.0,
) -> tf.keras.Model:
  """Builds an LSTM language model.

  With `tied_embeddings=False` it is the Stack Overflow baseline of TensorFlow
  Federated.

  Args:
    vocab_size: V, the number of all ids; id 0 is padding.
    embedding_size: E, the size of the embeddings; 96 if `None`.
    units: H, the hidden units of a recurrent layer; 670 if `None`.
    projection_units: Size of a projection inside the recurrence. If `None`,
      each recurrent layer is followed by a dense layer to E units instead.
    num_layers: Number of recurrent layers.
    tied_embeddings: Whether the logits are a product with the transposed
      embedding, rather than a dense layer of their own.
    size: `small` or `large`, which set the three sizes to published ones; a
      size given as well must not differ.
    normalize_embedding: Whether embeddings are normalised to mean zero and
      variance one (without weights) before the recurrence.
    dropout: Fraction of the inputs of each recurrent layer to drop.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return build(
    layers.LSTM,
    'lstm',
    vocab_size,
    embedding_size=embedding_size,
    units=units,
    projection_units=projection_units,
    num_layers=num_layers,
    tied_embeddings=tied_embeddings,
    size=size,
    normalize_embedding=normalize_embedding,
    dropout=dropout,
  )


def cifg(
  vocab_size: int,
  *,
  embedding_size: Optional[int] = None,
  units: Optional[int] = None,
  projection_units: Optional[int] = None,
  num_layers: int = 1,
  tied_embeddings: bool = True,
  size: Optional[str] = None,
  normalize_embedding: bool = False,
  dropout: float = 0.0,
) -> tf.keras.Model:
  """Builds a CIFG language model.

  Arguments, result and errors are those of `lstm`.
  """
  return build(
    layers.CIFG,
    'cifg',
    vocab_size,
    embedding_size=embedding_size,
    units=units,
    projection_units=projection_units,
    num_layers=num_layers,
    tied_embeddings=tied_embeddings,
    size=size,
    normalize_embedding=normalize_embedding,
    dropout=dropout,
  )


def gru(
  vocab_size: int,
  *,
  embedding_size: Optional[int] = None,
  units: Optional[int] = None,
  projection_units: Optional[int] = None,
  num_layers: int = 1,
  tied_embeddings: bool = True,
  size: Optional[str] = None,
  normalize_embedding: bool = False,
  dropout: float = 0.0,
) -> tf.keras.Model:
  """Builds a GRU language model.

  Arguments, result and errors are those of `lstm`.
  """
  return build(
    layers.GRU,
    'gru',
    vocab_size,
    embedding_size=embedding_size,
    units=units,
    projection_units=projection_units,
    num_layers=num_layers,
    tied_embeddings=tied_embeddings,
    size=size,
    normalize_embedding=normalize_embedding,
    dropout=dropout,
  )
