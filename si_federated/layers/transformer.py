"""The Transformer block, with softmax or scale-invariant attention."""

from __future__ import annotations

from typing import Any, Dict, Optional

import tensorflow as tf

from si_federated.layers import activations
from si_federated.layers.block import Block
from si_federated.layers.configuration import constructor_arguments
from si_federated.layers.token_packing import Packing


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class TransformerBlock(Block):
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
    super().__init__(
      intermediate_dim,
      num_heads,
      key_dim=key_dim,
      activation=activation,
      dropout=dropout,
      use_causal_mask=use_causal_mask,
      scale_invariant=scale_invariant,
      attention_only=attention_only,
      layer_norm_epsilon=layer_norm_epsilon,
      kernel_initializer=kernel_initializer,
      **kwargs,
    )
    self.normalize_first = normalize_first
    if self.homogeneous and not normalize_first:
      raise ValueError(
        'scale_invariant needs normalize_first=True: the terms of a sum after '
        'a normalisation differ in degree.'
      )

  def build(self, input_shape: Any) -> None:
    """Creates the weights for inputs `[B, T, D]`."""
    size = tf.TensorShape(input_shape)[-1]
    # Built in the order of computation, which becomes the order of the weights.
    self.attention_norm = self._build_norm('attention_norm', size)
    self.attention = self._build_attention(size)
    self.feed_forward_norm = self._build_norm('feed_forward_norm', size)
    self.feed_forward = self._build_feed_forward('feed_forward', size)
    super().build(input_shape)

  def _call_packed(
    self, x: tf.Tensor, packing: Packing, training: Any
  ) -> tf.Tensor:
    def drop(x):
      return self._dropout_layer(x, training=training)

    def attend(x):
      return self.attention.attend_packed(
        x, packing, use_causal_mask=self.use_causal_mask, training=training
      )

    def feed(x):
      return self.feed_forward(x, training=training)

    for part, norm in (
      (attend, self.attention_norm),
      (feed, self.feed_forward_norm),
    ):
      if self.normalize_first:
        x = x + drop(part(norm(x)))
      else:
        x = norm(x + drop(part(x)))
    return x

  def get_config(self) -> Dict[str, Any]:
    """Returns the constructor's arguments."""
    return {
      **super().get_config(),
      **constructor_arguments(self, TransformerBlock),
    }
