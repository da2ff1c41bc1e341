"""The Transformer block, with softmax or scale-invariant attention."""

from __future__ import annotations

from typing import Any, Dict, Optional, Protocol

import tensorflow as tf

from si_federated.layers import activations, blending, dropout_masks, tracing
from si_federated.layers.attention import MultiHeadAttention
from si_federated.layers.checks import check_count
from si_federated.layers.configuration import constructor_arguments
from si_federated.layers.feed_forward import FeedForward, check_homogeneous
from si_federated.layers.normalization import LayerNormalization
from si_federated.layers.sublayers import build, build_dropout, build_norm
from si_federated.layers.token_packing import Packing


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class TransformerBlock(tf.keras.layers.Layer):
  """Self-attention and a feed-forward part, each with a residual connection.

  With `scale_invariant` it is an encoder layer of Li et al. 2022 (SIBERT, arXiv
  2202.00980): ReLU attention, ReLU, layer normalisation without weights and
  without epsilon before each part, and no biases at the end of a part. Inputs
  of degree 2 in the weights then give outputs of degree 2.

  With `attention_only` as well, everything except the attention is that of an
  ordinary block.

  Masked positions cost no work; their outputs are zero.

  Args:
    intermediate_dim: Features inside the feed-forward part.
    num_heads: Number of attention heads.
    key_dim: Features of a head; D / num_heads if `None`.
    activation: Activation of the feed-forward part; see `FeedForward`.
    dropout: Fraction to drop of the attention weights, of the intermediate
      features of the feed-forward part, and of each part's output.
    normalize_first: Whether each part's input is normalised (pre-norm), rather
      than the sum after it (post-norm).
    use_causal_mask: Whether a position sees no later ones.
    scale_invariant: See above.
    attention_only: Whether only the attention is scale invariant.
    layer_norm_epsilon: Added to variances; 0 with `scale_invariant`.
    kernel_initializer: Initializer of all kernels.
    **kwargs: The arguments of `tf.keras.layers.Layer`.

  Call arguments:
    inputs: `[B, T, D]`.
    mask: `[B, T]` booleans; positions where it is false are padding.
    training: Whether dropout is active.

  Example:

  >>> layer = TransformerBlock(512, 8, scale_invariant=True)
  >>> layer(tf.zeros([2, 20, 96])).shape
  TensorShape([2, 20, 96])
  """

  def __init__(
    self,
    intermediate_dim: int,
    num_heads: int,
    *,
    key_dim: Optional[int] = None,
    activation: Any = 'relu',
    dropout: float = 0.0,
    normalize_first: bool = True,
    use_causal_mask: bool = True,
    scale_invariant: bool = False,
    attention_only: bool = False,
    layer_norm_epsilon: float = 1e-6,
    kernel_initializer: Any = 'glorot_uniform',
    **kwargs: Any,
  ) -> None:
    super().__init__(**kwargs)
    check_count('num_heads', num_heads)
    self.intermediate_dim = intermediate_dim
    self.num_heads = num_heads
    self.key_dim = key_dim
    self.activation = blending.get(activation)
    self.dropout = dropout
    self.normalize_first = normalize_first
    self.use_causal_mask = use_causal_mask
    self.scale_invariant = scale_invariant
    self.attention_only = attention_only
    self.homogeneous = scale_invariant and not attention_only
    self.layer_norm_epsilon = layer_norm_epsilon
    self.kernel_initializer = tf.keras.initializers.get(kernel_initializer)
    self.supports_masking = True
    if self.homogeneous:
      check_homogeneous(self.activation)
      if not normalize_first:
        raise ValueError(
          'scale_invariant needs normalize_first=True: the terms of a sum '
          'after a normalisation differ in degree.'
        )
    self._dropout_layer = build_dropout(dropout, self.dtype_policy)

  def build(self, input_shape: Any) -> None:
    """Creates the weights for inputs `[B, T, D]`."""
    size = tf.TensorShape(input_shape)[-1]
    # Built in the order of computation, which becomes the order of the weights.
    self.attention_norm = build_block_norm(self, 'attention_norm', size)
    self.attention = build_attention(self, size)
    self.feed_forward_norm = build_block_norm(self, 'feed_forward_norm', size)
    self.feed_forward = build_feed_forward(self, 'feed_forward', size)
    super().build(input_shape)

  def call(
    self, inputs: tf.Tensor, mask: Any = None, training: Any = None
  ) -> tf.Tensor:
    """Computes the block; the class lists the arguments."""
    if tracing.is_building_in_graph(inputs):
      return tf.identity(inputs)
    packing = Packing(inputs, mask)
    with dropout_masks.of_packed_rows(packing):
      return self._call_packed(inputs, packing, training)

  def _call_packed(
    self, inputs: tf.Tensor, packing: Packing, training: Any
  ) -> tf.Tensor:
    def drop(x):
      return self._dropout_layer(x, training=training)

    def attend(x):
      return self.attention.attend_packed(
        x, packing, use_causal_mask=self.use_causal_mask, training=training
      )

    def feed(x):
      return self.feed_forward(x, training=training)

    x = packing.pack(inputs)
    for part, norm in (
      (attend, self.attention_norm),
      (feed, self.feed_forward_norm),
    ):
      if self.normalize_first:
        x = x + drop(part(norm(x)))
      else:
        x = norm(x + drop(part(x)))
    return packing.unpack(x)

  def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
    """Returns the shape of the inputs."""
    return tf.TensorShape(input_shape)

  def get_config(self) -> Dict[str, Any]:
    """Returns the constructor's arguments."""
    return {
      **super().get_config(),
      **constructor_arguments(self, TransformerBlock),
    }


class Block(Protocol):
  """The attributes of a block that the functions below build parts from."""

  intermediate_dim: int
  num_heads: int
  key_dim: Optional[int]
  activation: Any
  dropout: float
  scale_invariant: bool
  homogeneous: bool
  layer_norm_epsilon: float
  kernel_initializer: Any
  dtype_policy: Any


def build_block_norm(
  block: Block, name: str, size: int, *, affine: Optional[bool] = None
) -> LayerNormalization:
  """Builds a normalisation of a Transformer or Conformer block.

  Args:
    block: The block.
    name: The name of the layer.
    size: D.
    affine: Whether it has weights; if `None`, unless the block is homogeneous.

  Returns:
    The layer with its weights.
  """
  return build_norm(
    name,
    size,
    policy=block.dtype_policy,
    epsilon=0.0 if block.homogeneous else block.layer_norm_epsilon,
    affine=not block.homogeneous if affine is None else affine,
  )


def build_feed_forward(block: Block, name: str, size: int) -> FeedForward:
  """Builds a feed-forward part of a Transformer or Conformer block.

  Args:
    block: The block.
    name: The name of the layer.
    size: D.

  Returns:
    The layer with its weights.
  """
  layer = FeedForward(
    block.intermediate_dim,
    activation=block.activation,
    dropout=block.dropout,
    use_output_bias=not block.homogeneous,
    kernel_initializer=block.kernel_initializer,
    dtype=block.dtype_policy,
    name=name,
  )
  return build(layer, size)


def build_attention(block: Block, size: int) -> MultiHeadAttention:
  """Builds the self-attention of a Transformer or Conformer block.

  Args:
    block: The block.
    size: D.

  Returns:
    The layer with its weights.

  Raises:
    ValueError: If D is not a multiple of the number of heads.
  """
  if block.key_dim is None and size % block.num_heads:
    raise ValueError(
      f'The {size} features of the input are not a multiple of num_heads='
      f'{block.num_heads}: choose another number of heads or give key_dim.'
    )
  layer = MultiHeadAttention(
    block.num_heads,
    block.key_dim or size // block.num_heads,
    dropout=block.dropout,
    scale_invariant=block.scale_invariant,
    use_output_bias=not block.homogeneous,
    kernel_initializer=block.kernel_initializer,
    dtype=block.dtype_policy,
    name='attention',
  )
  build(layer, size)  # In Keras 3 this makes the weights.
  with tf.name_scope(layer.name):
    layer.build_projections(size, size, size)
  return layer
