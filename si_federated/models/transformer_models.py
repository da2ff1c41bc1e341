"""Transformer and Conformer next-word models, with SI forms of both.

The sizes called `small` and `large` are those of Ro et al. 2022, "Scaling
Language Model Size in Cross-Device Federated Learning", arXiv 2204.09715, as
inferred from its parameter counts. Not published: heads, positions, dropout.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

import tensorflow as tf

from si_federated import layers
from si_federated.models import lm_head, sizes

_DEFAULTS: Dict[str, Optional[int]] = {
  'embedding_size': 128,
  'intermediate_dim': 512,
  'num_layers': 3,
}
TRANSFORMER_SIZES: Dict[str, Dict[str, int]] = {
  'small': {'embedding_size': 128, 'intermediate_dim': 2048, 'num_layers': 6},
  'large': {'embedding_size': 512, 'intermediate_dim': 2048, 'num_layers': 6},
}
CONFORMER_SIZES: Dict[str, Dict[str, int]] = {
  'small': {'embedding_size': 256, 'intermediate_dim': 1024, 'num_layers': 2},
  'large': {'embedding_size': 512, 'intermediate_dim': 2048, 'num_layers': 3},
}


def _attention_model(
  build_block: Callable[..., Any],
  name: str,
  vocab_size: int,
  *,
  sizes_by_name: Dict[str, Dict[str, int]],
  embedding_size: Optional[int],
  intermediate_dim: Optional[int],
  num_layers: Optional[int],
  num_heads: int,
  tied_embeddings: bool,
  size: Optional[str],
  dropout: float,
  positions: str,
  max_length: Optional[int],
  final_norm: bool,
  scale_invariant: bool = False,
  attention_only: bool = False,
  normalize_embedding: bool = False,
  **block_options: Any,
) -> tf.keras.Model:
  chosen = sizes.resolve(
    size,
    given={
      'embedding_size': embedding_size,
      'intermediate_dim': intermediate_dim,
      'num_layers': num_layers,
    },
    defaults=_DEFAULTS,
    published=sizes_by_name,
  )
  width, num_blocks = chosen['embedding_size'], chosen['num_layers']
  sizes.check_common(
    vocab_size=vocab_size, num_layers=num_blocks, dropout=dropout
  )
  homogeneous = scale_invariant and not attention_only
  ids, embedding, hidden = lm_head.embed(
    vocab_size, width, tied=tied_embeddings
  )
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
    # What blocks add is of degree 2 in the weights; so must be what they get.
    hidden = layers.Gain(2, name='gain')(hidden)
  if dropout:
    hidden = tf.keras.layers.Dropout(
      dropout, rng_type='legacy_stateful', name='dropout'
    )(hidden)
  for index in range(1, num_blocks + 1):
    hidden = build_block(
      chosen['intermediate_dim'],
      num_heads,
      dropout=dropout,
      scale_invariant=scale_invariant,
      attention_only=attention_only,
      name=f'block_{index}',
      **block_options,
    )(hidden)
  if final_norm:
    hidden = layers.LayerNormalization(
      epsilon=0.0 if homogeneous else 1e-6,
      center=not homogeneous,
      scale=not homogeneous,
      name='final_norm',
    )(hidden)
  return lm_head.finish(ids, embedding, hidden, name=name)


def transformer(
  vocab_size: int,
  *,
  embedding_size: Optional[int] = None,
  intermediate_dim: Optional[int] = None,
  num_layers: Optional[int] = None,
  num_heads: int = 8,
  tied_embeddings: bool = True,
  size: Optional[str] = None,
  activation: str = 'relu',
  dropout: float = 0.0,
  positions: str = 'sinusoidal',
  max_length: Optional[int] = None,
  normalize_embedding: bool = False,
  normalize_first: bool = True,
) -> tf.keras.Model:
  """Builds a Transformer language model: causal, pre-norm unless asked.

  Args:
    vocab_size: V, the number of all ids; id 0 is padding.
    embedding_size: D, the size of the embeddings and of the blocks; 128 by
      default.
    intermediate_dim: Features inside the feed-forward parts; 512 by default.
    num_layers: Number of blocks; 3 by default.
    num_heads: Number of attention heads, a divisor of D.
    tied_embeddings: Whether the logits are a product with the transposed
      embedding, rather than a dense layer of their own.
    size: `small` or `large`, which set the first three to published values.
    activation: Activation of the feed-forward parts, as `relu` or `gelu`, or
      adaptive blending units, as `abu` or `abu_softmax:relu+tanh` (modes and
      functions are those of `layers.AdaptiveBlendingUnit`).
    dropout: Fraction of units to drop.
    positions: `sinusoidal` or `learned`.
    max_length: Longest sequence, for learned positions.
    normalize_embedding: Whether embeddings are normalised to mean zero and
      variance one (without weights), rather than multiplied by √D.
    normalize_first: Whether each part's input is normalised, rather than the
      sum after it.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return _attention_model(
    layers.TransformerBlock,
    'transformer',
    vocab_size,
    sizes_by_name=TRANSFORMER_SIZES,
    embedding_size=embedding_size,
    intermediate_dim=intermediate_dim,
    num_layers=num_layers,
    num_heads=num_heads,
    tied_embeddings=tied_embeddings,
    size=size,
    activation=activation,
    dropout=dropout,
    positions=positions,
    max_length=max_length,
    normalize_embedding=normalize_embedding,
    normalize_first=normalize_first,
    final_norm=normalize_first,
  )


def si_transformer(
  vocab_size: int,
  *,
  embedding_size: Optional[int] = None,
  intermediate_dim: Optional[int] = None,
  num_layers: Optional[int] = None,
  num_heads: int = 8,
  tied_embeddings: bool = True,
  size: Optional[str] = None,
  activation: str = 'relu',
  dropout: float = 0.0,
  positions: str = 'sinusoidal',
  max_length: Optional[int] = None,
  normalize_embedding: bool = True,
  attention_only: bool = False,
) -> tf.keras.Model:
  """Builds a scale-invariant Transformer (arXiv 2403.08100, 2202.00980).

  What the last block gives is unchanged if all weights are multiplied by one
  positive number; the logits then are multiplied by it, through the embedding.

  Differs from the paper: embeddings are normalised and multiplied by squared
  gains, so that all that is added up is of degree 2 in the weights.

  Args:
    vocab_size: See `transformer`, as for all options not named here.
    embedding_size: D, 128 by default.
    intermediate_dim: Features inside the feed-forward parts.
    num_layers: Number of blocks.
    num_heads: Number of attention heads.
    tied_embeddings: Whether the logits use the embedding.
    size: `small` or `large`: the published sizes.
    activation: Activation of the feed-forward parts.
    dropout: Fraction of units to drop.
    positions: `sinusoidal` or `learned`.
    max_length: Longest sequence of learned positions.
    normalize_embedding: Whether embeddings are normalised.
    attention_only: Whether only the attention is scale invariant, the rest
      being that of `transformer`.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return _attention_model(
    layers.TransformerBlock,
    'si_transformer',
    vocab_size,
    sizes_by_name=TRANSFORMER_SIZES,
    embedding_size=embedding_size,
    intermediate_dim=intermediate_dim,
    num_layers=num_layers,
    num_heads=num_heads,
    tied_embeddings=tied_embeddings,
    size=size,
    activation=activation,
    dropout=dropout,
    positions=positions,
    max_length=max_length,
    normalize_embedding=normalize_embedding,
    attention_only=attention_only,
    scale_invariant=True,
    final_norm=True,
  )


def conformer(
  vocab_size: int,
  *,
  embedding_size: Optional[int] = None,
  intermediate_dim: Optional[int] = None,
  num_layers: Optional[int] = None,
  num_heads: int = 8,
  tied_embeddings: bool = True,
  size: Optional[str] = None,
  activation: str = 'swish',
  dropout: float = 0.0,
  positions: str = 'sinusoidal',
  max_length: Optional[int] = None,
  normalize_embedding: bool = False,
  kernel_size: int = 32,
) -> tf.keras.Model:
  """Builds a Conformer language model, causal throughout.

  Args:
    vocab_size: See `transformer`, as for all options not named here.
    embedding_size: D, 128 by default.
    intermediate_dim: Features inside the feed-forward parts.
    num_layers: Number of blocks.
    num_heads: Number of attention heads.
    tied_embeddings: Whether the logits use the embedding.
    size: `small` or `large`: the published sizes.
    activation: Activation of the feed-forward parts and convolutions.
    dropout: Fraction of units to drop.
    positions: `sinusoidal` or `learned`.
    max_length: Longest sequence of learned positions.
    normalize_embedding: Whether embeddings are normalised.
    kernel_size: How many steps a convolution sees; 32 is the size of
      arXiv 2005.08100, assumed for the published language models.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return _attention_model(
    layers.ConformerBlock,
    'conformer',
    vocab_size,
    sizes_by_name=CONFORMER_SIZES,
    embedding_size=embedding_size,
    intermediate_dim=intermediate_dim,
    num_layers=num_layers,
    num_heads=num_heads,
    tied_embeddings=tied_embeddings,
    size=size,
    activation=activation,
    dropout=dropout,
    positions=positions,
    max_length=max_length,
    normalize_embedding=normalize_embedding,
    kernel_size=kernel_size,
    final_norm=False,
  )


def si_conformer(
  vocab_size: int,
  *,
  embedding_size: Optional[int] = None,
  intermediate_dim: Optional[int] = None,
  num_layers: Optional[int] = None,
  num_heads: int = 8,
  tied_embeddings: bool = True,
  size: Optional[str] = None,
  activation: Optional[str] = None,
  dropout: float = 0.0,
  positions: str = 'sinusoidal',
  max_length: Optional[int] = None,
  normalize_embedding: bool = True,
  kernel_size: int = 32,
  attention_only: bool = False,
  dead_gate_slope: float = 0.1,
) -> tf.keras.Model:
  """Builds a scale-invariant Conformer, by the rules of `si_transformer`.

  Args:
    vocab_size: See `transformer`, as for all options not named here.
    embedding_size: D, 128 by default.
    intermediate_dim: Features inside the feed-forward parts.
    num_layers: Number of blocks.
    num_heads: Number of attention heads.
    tied_embeddings: Whether the logits use the embedding.
    size: `small` or `large`: the published sizes.
    activation: Activation of the feed-forward parts and convolutions; ReLU
      by default, and swish with `attention_only`.
    dropout: Fraction of units to drop.
    positions: `sinusoidal` or `learned`.
    max_length: Longest sequence of learned positions.
    normalize_embedding: Whether embeddings are normalised.
    kernel_size: How many steps a convolution sees.
    attention_only: Whether only the attention is scale invariant, the rest
      being that of `conformer`.
    dead_gate_slope: Slope of the gradient of gates that are all zero.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return _attention_model(
    layers.ConformerBlock,
    'si_conformer',
    vocab_size,
    sizes_by_name=CONFORMER_SIZES,
    embedding_size=embedding_size,
    intermediate_dim=intermediate_dim,
    num_layers=num_layers,
    num_heads=num_heads,
    tied_embeddings=tied_embeddings,
    size=size,
    activation=activation,
    dropout=dropout,
    positions=positions,
    max_length=max_length,
    normalize_embedding=normalize_embedding,
    kernel_size=kernel_size,
    attention_only=attention_only,
    dead_gate_slope=dead_gate_slope,
    scale_invariant=True,
    final_norm=not attention_only,
  )
