"""Recurrent next-word models: embedding, recurrence, projection, logits.

The sizes called `small` and `large` are those of Ro et al. 2022, "Scaling
Language Model Size in Cross-Device Federated Learning", arXiv 2204.09715, as
inferred from its parameter counts.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

import tensorflow as tf

from si_federated import layers

DEFAULT_EMBEDDING_SIZE = 96
DEFAULT_UNITS = 670
SIZES: Dict[str, Dict[str, int]] = {
  'small': {'embedding_size': 256, 'units': 2048, 'projection_units': 256},
  'large': {'embedding_size': 1024, 'units': 2048, 'projection_units': 1024},
}


def _resolve_size(
  size: Optional[str],
  embedding_size: int,
  units: int,
  projection_units: Optional[int],
) -> Dict[str, Optional[int]]:
  """Checks the sizes and returns them, the published ones if `size` is set."""
  given: Dict[str, Optional[int]] = {
    'embedding_size': embedding_size,
    'units': units,
    'projection_units': projection_units,
  }
  for name, value in given.items():
    if value is not None and (int(value) != value or value < 1):
      raise ValueError(
        f'{name} must be a positive whole number, but it is {value!r}: give '
        'the number of units.'
      )
  if size is None:
    return given
  if size not in SIZES:
    raise ValueError(
      f'size must be one of {", ".join(SIZES)}, but it is {size!r}: choose one '
      'of these or give embedding_size, units and projection_units.'
    )
  published = SIZES[size]
  defaults = {
    'embedding_size': DEFAULT_EMBEDDING_SIZE,
    'units': DEFAULT_UNITS,
    'projection_units': None,
  }
  for name, value in given.items():
    if value not in (defaults[name], published[name]):
      raise ValueError(
        f'size={size!r} sets {name}={published[name]}, but {name}={value!r} is '
        'given as well: leave one of them out.'
      )
  return dict(published)


def _recurrent_model(
  layer_class: Callable[..., Any],
  name: str,
  vocab_size: int,
  *,
  embedding_size: int,
  units: int,
  projection_units: Optional[int],
  num_layers: int,
  tied_embeddings: bool,
  size: Optional[str],
  normalize_embedding: bool,
  dropout: float,
  **layer_options: Any,
) -> tf.keras.Model:
  sizes = _resolve_size(size, embedding_size, units, projection_units)
  for option, value in (('vocab_size', vocab_size), ('num_layers', num_layers)):
    if int(value) != value or value < 1:
      raise ValueError(
        f'{option} must be a positive whole number, but it is {value!r}: give '
        'a number from 1 up.'
      )
  if not 0 <= dropout < 1:
    raise ValueError(
      f'dropout must be at least 0 and below 1, but it is {dropout!r}: give '
      'the fraction of units to drop.'
    )
  width, projected = sizes['embedding_size'], sizes['projection_units']
  if tied_embeddings and projected not in (None, width):
    raise ValueError(
      f'projection_units={projected} must equal embedding_size={width} with '
      'tied embeddings: make them equal or set tied_embeddings=False.'
    )

  embedding_class = (
    layers.TiedEmbedding if tied_embeddings else tf.keras.layers.Embedding
  )
  embedding = embedding_class(
    vocab_size, width, mask_zero=True, name='embedding'
  )
  ids = tf.keras.layers.Input(shape=(None,), dtype=tf.int32, name='ids')
  hidden = embedding(ids)
  if normalize_embedding:
    # Freshly drawn embeddings have a variance below Keras's default epsilon.
    hidden = tf.keras.layers.LayerNormalization(
      center=False, scale=False, epsilon=1e-6, name='normalization'
    )(hidden)
  for index in range(1, num_layers + 1):
    hidden = layer_class(
      sizes['units'],
      projection_units=projected,
      return_sequences=True,
      dropout=dropout,
      name=f'recurrent_{index}',
      **layer_options,
    )(hidden)
    if projected is None:
      hidden = tf.keras.layers.Dense(width, name=f'projection_{index}')(hidden)
  if tied_embeddings:
    logits = embedding(hidden, reverse=True)
  else:
    logits = tf.keras.layers.Dense(vocab_size, name='logits')(hidden)
  return tf.keras.Model(inputs=ids, outputs=logits, name=name)


def lstm(
  vocab_size: int,
  *,
  embedding_size: int = DEFAULT_EMBEDDING_SIZE,
  units: int = DEFAULT_UNITS,
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
    embedding_size: E, the size of the embeddings.
    units: H, the hidden units of a recurrent layer.
    projection_units: Size of a projection inside the recurrence. If `None`,
      each recurrent layer is followed by a dense layer to E units instead.
    num_layers: Number of recurrent layers.
    tied_embeddings: Whether the logits are a product with the transposed
      embedding, rather than a dense layer of their own.
    size: `small` or `large`, which set the three sizes to published ones.
    normalize_embedding: Whether embeddings are normalised to mean zero and
      variance one (without weights) before the recurrence.
    dropout: Fraction of the inputs of each recurrent layer to drop.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return _recurrent_model(
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
  embedding_size: int = DEFAULT_EMBEDDING_SIZE,
  units: int = DEFAULT_UNITS,
  projection_units: Optional[int] = None,
  num_layers: int = 1,
  tied_embeddings: bool = True,
  size: Optional[str] = None,
  normalize_embedding: bool = False,
  dropout: float = 0.0,
) -> tf.keras.Model:
  """Builds a CIFG language model.

  Args:
    vocab_size: See `lstm`, as for all the options.
    embedding_size: Size of the embeddings.
    units: Hidden units of a recurrent layer.
    projection_units: Size of a projection inside the recurrence.
    num_layers: Number of recurrent layers.
    tied_embeddings: Whether the logits use the embedding.
    size: `small` or `large`: the published sizes.
    normalize_embedding: Whether embeddings are normalised.
    dropout: Fraction of the inputs of each recurrent layer to drop.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return _recurrent_model(
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


def si_cifg(
  vocab_size: int,
  *,
  embedding_size: int = DEFAULT_EMBEDDING_SIZE,
  units: int = DEFAULT_UNITS,
  projection_units: Optional[int] = None,
  num_layers: int = 1,
  tied_embeddings: bool = True,
  size: Optional[str] = None,
  normalize_embedding: bool = True,
  dropout: float = 0.0,
  unit_forget_bias: bool = False,
  scale_invariant_output: bool = True,
  dead_gate_slope: float = 0.1,
) -> tf.keras.Model:
  """Builds a scale-invariant CIFG language model (arXiv 2403.08100).

  Embeddings are normalised by default, unlike those of `lstm` and `cifg`: the
  recurrent state is of size one after max-normalisation, and fresh embeddings
  would drown beside it. What the paper does is not known.

  Args:
    vocab_size: See `lstm`, as for all the options down to `dropout`.
    embedding_size: Size of the embeddings.
    units: Hidden units of a recurrent layer.
    projection_units: Size of a projection inside the recurrence.
    num_layers: Number of recurrent layers.
    tied_embeddings: Whether the logits use the embedding.
    size: `small` or `large`: the published sizes.
    normalize_embedding: Whether embeddings are normalised.
    dropout: Fraction of the inputs of each recurrent layer to drop.
    unit_forget_bias: See `SICIFGCell`, as for the rest.
    scale_invariant_output: Whether the output uses SI-tanh rather than tanh.
    dead_gate_slope: Slope of the gradient of gates that are all zero.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return _recurrent_model(
    layers.SICIFG,
    'si_cifg',
    vocab_size,
    embedding_size=embedding_size,
    units=units,
    projection_units=projection_units,
    num_layers=num_layers,
    tied_embeddings=tied_embeddings,
    size=size,
    normalize_embedding=normalize_embedding,
    dropout=dropout,
    unit_forget_bias=unit_forget_bias,
    scale_invariant_output=scale_invariant_output,
    dead_gate_slope=dead_gate_slope,
  )
