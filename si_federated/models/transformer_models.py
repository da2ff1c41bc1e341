"""Transformer and Conformer language models, plain and scale-invariant.

The sizes `small` and `large` are those of Ro et al. 2022, "Scaling Language
Model Size in Cross-Device Federated Learning", arXiv 2204.09715, as inferred
from its parameter counts. The paper does not give heads, positions or dropout.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

import tensorflow as tf

from si_federated import layers
from si_federated.models import sizes
from si_federated.models.inherited_options import inherit_options
from si_federated.models.language_model import language_model

_DEFAULTS: Dict[str, Optional[int]] = {
  'embedding_size': 128,
  'intermediate_dim': 512,
  'num_layers': 3,
}
_TRANSFORMER_SIZES: Dict[str, Dict[str, int]] = {
  'small': {'embedding_size': 128, 'intermediate_dim': 2048, 'num_layers': 6},
  'large': {'embedding_size': 512, 'intermediate_dim': 2048, 'num_layers': 6},
}
_CONFORMER_SIZES: Dict[str, Dict[str, int]] = {
  'small': {'embedding_size': 256, 'intermediate_dim': 1024, 'num_layers': 2},
  'large': {'embedding_size': 512, 'intermediate_dim': 2048, 'num_layers': 3},
}


def _attention_model(
  block_class: Callable[..., Any],
  name: str,
  vocab_size: int,
  published: Dict[str, Dict[str, int]],
  has_final_norm: bool,
  scale_invariant: bool = False,
  attention_only: bool = False,
  *,
  embedding_size: Optional[int] = None,
  intermediate_dim: Optional[int] = None,
  num_layers: Optional[int] = None,
  num_heads: int = 8,
  tied_embeddings: bool = True,
  size: Optional[str] = None,
  activation: Optional[str] = 'relu',
  dropout: float = 0.0,
  positions: str = 'sinusoidal',
  max_length: Optional[int] = None,
  normalize_embedding: bool = False,
  **block_options: Any,
) -> tf.keras.Model:
  """Builds a language model of attention blocks; see `transformer`."""
  chosen = sizes.resolve(
    size,
    given={
      'embedding_size': embedding_size,
      'intermediate_dim': intermediate_dim,
      'num_layers': num_layers,
    },
    defaults=_DEFAULTS,
    published=published,
  )
  sizes.check_common(
    vocab_size=vocab_size, num_layers=chosen['num_layers'], dropout=dropout
  )
  homogeneous = scale_invariant and not attention_only

  def body(hidden: Any) -> Any:
    if normalize_embedding:
      hidden = layers.LayerNormalization(
        center=False, scale=False, epsilon=0.0, name='embedding_norm'
      )(hidden)
    hidden = layers.PositionEmbedding(
      positions,
      max_length,
      scale_inputs=not normalize_embedding,
      normalize=normalize_embedding,
      name='position_embedding',
    )(hidden)
    if homogeneous:
      # Blocks add terms of degree 2 in the weights; their input must match.
      hidden = layers.Gain(2, name='gain')(hidden)
    if dropout:
      hidden = layers.Dropout(dropout, name='dropout')(hidden)
    for index in range(1, chosen['num_layers'] + 1):
      hidden = block_class(
        chosen['intermediate_dim'],
        num_heads,
        activation=activation,
        dropout=dropout,
        scale_invariant=scale_invariant,
        attention_only=attention_only,
        name=f'block_{index}',
        **block_options,
      )(hidden)
    if has_final_norm:
      hidden = layers.LayerNormalization(
        epsilon=0.0 if homogeneous else 1e-6,
        center=not homogeneous,
        scale=not homogeneous,
        name='final_norm',
      )(hidden)
    return hidden

  return language_model(
    name,
    vocab_size,
    chosen['embedding_size'],
    body,
    tied_embeddings=tied_embeddings,
  )


@inherit_options(_attention_model)
def transformer(
  vocab_size: int, *, normalize_first: bool = True, **options: Any
) -> tf.keras.Model:
  """Builds a causal Transformer language model, pre-norm by default.

  Args:
    vocab_size: V, the number of all ids; id 0 is padding.
    embedding_size: D, the size of the embeddings and of the blocks; 128 by
      default.
    intermediate_dim: Features inside the feed-forward parts; 512 by default.
    num_layers: Number of blocks; 3 by default.
    num_heads: Number of attention heads, a divisor of D.
    tied_embeddings: Whether the logits are a product with the transposed
      embedding, rather than a dense layer of their own.
    size: `small` or `large`, which set the first three to published values; a
      size that is also given must agree.
    activation: Activation of the feed-forward parts, such as `relu` or `gelu`,
      or adaptive blending units, as `abu` or `abu_softmax:relu+tanh` (modes and
      functions are those of `layers.AdaptiveBlendingUnit`).
    dropout: Fraction of units to drop.
    positions: `sinusoidal` or `learned`.
    max_length: Longest sequence, for learned positions.
    normalize_embedding: Whether embeddings are normalised to mean zero and
      variance one (without weights), rather than multiplied by √D.
    normalize_first: Whether each part's input is normalised, rather than the
      sum after it.
    **options: The options above.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return _attention_model(
    layers.TransformerBlock,
    'transformer',
    vocab_size,
    _TRANSFORMER_SIZES,
    has_final_norm=normalize_first,
    normalize_first=normalize_first,
    **options,
  )


@inherit_options(_attention_model, normalize_embedding=True)
def si_transformer(
  vocab_size: int, *, attention_only: bool = False, **options: Any
) -> tf.keras.Model:
  """Builds a scale-invariant Transformer (arXiv 2403.08100, 2202.00980).

  Multiplying all weights by one positive number leaves the output of the last
  block unchanged, and multiplies the logits by it, through the embedding.

  Differs from the paper: embeddings are normalised and multiplied by squared
  gains, so that all terms of the residual sum are of degree 2 in the weights.

  Args:
    vocab_size: See `transformer`, also for all options not listed here.
    attention_only: Whether only the attention is scale invariant, the rest
      being that of `transformer`.
    **options: Further options.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return _attention_model(
    layers.TransformerBlock,
    'si_transformer',
    vocab_size,
    _TRANSFORMER_SIZES,
    has_final_norm=True,
    scale_invariant=True,
    attention_only=attention_only,
    **options,
  )


@inherit_options(_attention_model, activation='swish')
def conformer(
  vocab_size: int, *, kernel_size: int = 32, **options: Any
) -> tf.keras.Model:
  """Builds a Conformer language model, causal throughout.

  Args:
    vocab_size: See `transformer`, also for all options not listed here.
    activation: Activation of the feed-forward parts and convolutions.
    kernel_size: Number of steps that a convolution sees; 32 is the size of
      arXiv 2005.08100, assumed for the published language models.
    **options: Further options.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return _attention_model(
    layers.ConformerBlock,
    'conformer',
    vocab_size,
    _CONFORMER_SIZES,
    has_final_norm=False,
    kernel_size=kernel_size,
    **options,
  )


@inherit_options(_attention_model, activation=None, normalize_embedding=True)
def si_conformer(
  vocab_size: int,
  *,
  kernel_size: int = 32,
  attention_only: bool = False,
  dead_gate_slope: float = 0.1,
  **options: Any,
) -> tf.keras.Model:
  """Builds a scale-invariant Conformer, by the rules of `si_transformer`.

  Args:
    vocab_size: See `transformer`, also for all options not listed here.
    activation: Activation of the feed-forward parts and convolutions; ReLU
      by default, and swish with `attention_only`.
    kernel_size: Number of steps that a convolution sees.
    attention_only: Whether only the attention is scale invariant, the rest
      being that of `conformer`.
    dead_gate_slope: Slope of the gradient of gates that are all zero.
    **options: Further options.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return _attention_model(
    layers.ConformerBlock,
    'si_conformer',
    vocab_size,
    _CONFORMER_SIZES,
    has_final_norm=not attention_only,
    scale_invariant=True,
    attention_only=attention_only,
    kernel_size=kernel_size,
    dead_gate_slope=dead_gate_slope,
    **options,
  )
