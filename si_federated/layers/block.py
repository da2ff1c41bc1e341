"""The base of Transformer and Conformer blocks."""

from __future__ import annotations

from typing import Any, Optional

import tensorflow as tf

from si_federated.layers import blending, dropout_masks, tracing
from si_federated.layers.attention import MultiHeadAttention
from si_federated.layers.checks import check_count
from si_federated.layers.feed_forward import FeedForward, check_homogeneous
from si_federated.layers.normalization import LayerNormalization
from si_federated.layers.sublayers import build, build_dropout, build_norm
from si_federated.layers.token_packing import Packing


class Block(tf.keras.layers.Layer):
  """Parts with residual connections, on the valid tokens of a batch.

  Subclasses build their parts in `build`, and compute them in `_call_packed`.
  `TransformerBlock` lists the arguments, and those of a call.
  """

  def __init__(
    self,
    intermediate_dim: int,
    num_heads: int,
    *,
    key_dim: Optional[int],
    activation: Any,
    dropout: float,
    use_causal_mask: bool,
    scale_invariant: bool,
    attention_only: bool,
    layer_norm_epsilon: float,
    kernel_initializer: Any,
    **kwargs: Any,
  ) -> None:
    super().__init__(**kwargs)
    check_count('num_heads', num_heads)
    self.intermediate_dim = intermediate_dim
    self.num_heads = num_heads
    self.key_dim = key_dim
    self.activation = blending.get(activation)
    self.dropout = dropout
    self.use_causal_mask = use_causal_mask
    self.scale_invariant = scale_invariant
    self.attention_only = attention_only
    self.homogeneous = scale_invariant and not attention_only
    self.layer_norm_epsilon = layer_norm_epsilon
    self.kernel_initializer = tf.keras.initializers.get(kernel_initializer)
    self.supports_masking = True
    if self.homogeneous:
      check_homogeneous(self.activation)
    self._dropout_layer = build_dropout(dropout, self.dtype_policy)

  def _build_norm(
    self, name: str, size: int, *, affine: Optional[bool] = None
  ) -> LayerNormalization:
    """Builds a normalisation of D features.

    Args:
      name: The name of the layer.
      size: D.
      affine: Whether it has weights; if `None`, unless the block is
        homogeneous.
    """
    return build_norm(
      name,
      size,
      policy=self.dtype_policy,
      epsilon=0.0 if self.homogeneous else self.layer_norm_epsilon,
      affine=not self.homogeneous if affine is None else affine,
    )

  def _build_feed_forward(self, name: str, size: int) -> FeedForward:
    """Builds a feed-forward part of D features."""
    layer = FeedForward(
      self.intermediate_dim,
      activation=self.activation,
      dropout=self.dropout,
      use_output_bias=not self.homogeneous,
      kernel_initializer=self.kernel_initializer,
      dtype=self.dtype_policy,
      name=name,
    )
    return build(layer, size)

  def _build_attention(self, size: int) -> MultiHeadAttention:
    """Builds the self-attention of D features."""
    if self.key_dim is None and size % self.num_heads:
      raise ValueError(
        f'The {size} features of the input are not a multiple of num_heads='
        f'{self.num_heads}: choose another number of heads or give key_dim.'
      )
    layer = MultiHeadAttention(
      self.num_heads,
      self.key_dim or size // self.num_heads,
      dropout=self.dropout,
      scale_invariant=self.scale_invariant,
      use_output_bias=not self.homogeneous,
      kernel_initializer=self.kernel_initializer,
      dtype=self.dtype_policy,
      name='attention',
    )
    build(layer, size)  # In Keras 3 this makes the weights.
    with tf.name_scope(layer.name):
      layer.build_projections(size, size, size)
    return layer

  def call(
    self, inputs: tf.Tensor, mask: Any = None, training: Any = None
  ) -> tf.Tensor:
    """Computes the block; the class lists the arguments."""
    if tracing.is_building_in_graph(inputs):
      return tf.identity(inputs)
    packing = Packing(inputs, mask)
    with dropout_masks.of_packed_rows(packing):
      x = self._call_packed(packing.pack(inputs), packing, training)
    return packing.unpack(x)

  def _call_packed(
    self, x: tf.Tensor, packing: Packing, training: Any
  ) -> tf.Tensor:
    """Computes the valid tokens, `[M, D]`."""
    raise NotImplementedError

  def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
    """Returns the shape of the inputs."""
    return tf.TensorShape(input_shape)
