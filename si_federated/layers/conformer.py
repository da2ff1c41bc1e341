"""The Conformer block, causal, with softmax or scale-invariant attention."""

from __future__ import annotations

from typing import Any, Dict, Optional

import tensorflow as tf

from si_federated.layers import activations, blending, tapping
from si_federated.layers.block import Block
from si_federated.layers.checks import check_count, check_slope
from si_federated.layers.configuration import constructor_arguments
from si_federated.layers.sublayers import build_dense
from si_federated.layers.token_packing import Packing


def causal_depthwise_convolution(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
  """Convolves every feature over time with its own kernel.

  Args:
    x: `[B, T, D]`.
    kernel: `[K, D]`; the last row multiplies the current step, the row before
      it the previous step, and so on. Steps before the first count as zero.

  Returns:
    `[B, T, D]`.
  """
  size = kernel.shape[0]
  padded = tf.pad(x, [[0, 0], [size - 1, 0], [0, 0]])
  return tf.nn.depthwise_conv2d(
    padded[:, tf.newaxis],
    kernel[tf.newaxis, :, :, tf.newaxis],
    strides=[1, 1, 1, 1],
    padding='VALID',
  )[:, 0]


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class ConformerBlock(Block):
  """Half feed-forward, self-attention, convolution, half feed-forward.

  Gulati et al. 2020, arXiv 2005.08100: x + FF(x)/2; x + attention(x);
  x + convolution(x); x + FF(x)/2, each part after a layer normalisation, and a
  normalisation at the end. The convolution part: dense D -> 2D, gated linear
  unit, causal depthwise convolution, normalisation, activation, dense D -> D.

  Differs from the paper: everything is causal, positions are absolute and added
  to the input, and layer normalisation replaces batch normalisation, whose
  statistics would have to be shared between clients.

  With `scale_invariant` every part is of degree 2 in its weights, by the rules
  of arXiv 2202.00980 and 2403.08100: as in `TransformerBlock`, with SI-σ gates,
  ReLU activations, weights only in the normalisation inside the convolution
  part, and no normalisation at the end, since the next block's does the same.

  Masked positions cost no work except that of the convolution itself; their
  outputs are zero.

  Args:
    intermediate_dim: Features inside the feed-forward parts.
    num_heads: Number of attention heads.
    kernel_size: K, the number of steps that the convolution sees.
    key_dim: Features of a head; D / num_heads if `None`.
    activation: Activation of the feed-forward and convolution parts; if `None`,
      swish, and ReLU with `scale_invariant`.
    dropout: See `TransformerBlock`.
    use_causal_mask: Whether a position attends to no later ones.
    scale_invariant: See above.
    attention_only: Whether only the attention is scale invariant.
    layer_norm_epsilon: Added to variances; 0 with `scale_invariant`.
    dead_gate_slope: Slope of the gradient of SI-σ gates that are all zero.
    kernel_initializer: Initializer of the kernels of dense layers.
    **kwargs: The arguments of `tf.keras.layers.Layer`.

  Call arguments:
    inputs: `[B, T, D]`.
    mask: `[B, T]` booleans; positions where it is false are padding.
    training: Whether dropout is active.

  Example:

  >>> layer = ConformerBlock(512, 8, kernel_size=8)
  >>> layer(tf.zeros([2, 20, 96])).shape
  TensorShape([2, 20, 96])
  """

  def __init__(
    self,
    intermediate_dim: int,
    num_heads: int,
    *,
    kernel_size: int = 32,
    key_dim: Optional[int] = None,
    activation: Any = None,
    dropout: float = 0.0,
    use_causal_mask: bool = True,
    scale_invariant: bool = False,
    attention_only: bool = False,
    layer_norm_epsilon: float = 1e-6,
    dead_gate_slope: float = 0.1,
    kernel_initializer: Any = 'glorot_uniform',
    **kwargs: Any,
  ) -> None:
    if activation is None:
      is_homogeneous = scale_invariant and not attention_only
      activation = 'relu' if is_homogeneous else 'swish'
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
    check_count('kernel_size', kernel_size)
    check_slope('dead_gate_slope', dead_gate_slope)
    self.kernel_size = kernel_size
    self.dead_gate_slope = dead_gate_slope

  def build(self, input_shape: Any) -> None:
    """Creates the weights for inputs `[B, T, D]`."""
    size = tf.TensorShape(input_shape)[-1]

    def dense(name: str, output_size: int, use_bias: bool = True):
      return build_dense(
        output_size,
        size,
        name=name,
        policy=self.dtype_policy,
        use_bias=use_bias,
        kernel_initializer=self.kernel_initializer,
      )

    self.depthwise_kernel = self.add_weight(
      name='depthwise_kernel',
      shape=(self.kernel_size, size),
      initializer=tf.keras.initializers.VarianceScaling(
        1.0, 'fan_in', 'uniform'
      ),
    )
    self.depthwise_bias = self.output_norm = None
    if not self.homogeneous:
      self.depthwise_bias = self.add_weight(
        name='depthwise_bias', shape=(size,), initializer='zeros'
      )
    # Parts are built in the order of computation, which becomes the order of
    # the weights; the layer's own weights come first.
    self.feed_forward_1_norm = self._build_norm('feed_forward_1_norm', size)
    self.feed_forward_1 = self._build_feed_forward('feed_forward_1', size)
    self.attention_norm = self._build_norm('attention_norm', size)
    self.attention = self._build_attention(size)
    self.convolution_norm = self._build_norm('convolution_norm', size)
    self.gated_dense = dense('gated', 2 * size)
    self.inner_norm = self._build_norm('inner_norm', size, affine=True)
    self.activate: Any = self.activation
    if isinstance(self.activation, blending.Blend):
      # For the convolution; each feed-forward part has its own unit.
      self.activate = self.activation.build('blending', self.dtype_policy)
    self.output_dense = dense('output', size, not self.homogeneous)
    self.feed_forward_2_norm = self._build_norm('feed_forward_2_norm', size)
    self.feed_forward_2 = self._build_feed_forward('feed_forward_2', size)
    if not self.homogeneous:
      self.output_norm = self._build_norm('output_norm', size)
    super().build(input_shape)

  def _convolve(self, x: tf.Tensor, packing: Packing) -> tf.Tensor:
    values, gate = tf.split(self.gated_dense(x), 2, axis=-1)
    if self.homogeneous:
      gate = activations.si_sigmoid(gate, dead_slope=self.dead_gate_slope)
      tapping.tap('convolution_gate', gate)
    else:
      gate = tf.sigmoid(gate)
    x = causal_depthwise_convolution(
      packing.unpack(values * gate),
      tf.cast(self.depthwise_kernel, values.dtype),
    )
    if self.depthwise_bias is not None:
      x += tf.cast(self.depthwise_bias, x.dtype)
    return self.output_dense(self.activate(self.inner_norm(packing.pack(x))))

  def _call_packed(
    self, x: tf.Tensor, packing: Packing, training: Any
  ) -> tf.Tensor:
    def drop(x):
      return self._dropout_layer(x, training=training)

    y = self.feed_forward_1(self.feed_forward_1_norm(x), training=training)
    x += 0.5 * drop(y)
    y = self.attention.attend_packed(
      self.attention_norm(x),
      packing,
      use_causal_mask=self.use_causal_mask,
      training=training,
    )
    x += drop(y)
    x += drop(self._convolve(self.convolution_norm(x), packing))
    y = self.feed_forward_2(self.feed_forward_2_norm(x), training=training)
    x += 0.5 * drop(y)
    if self.output_norm is not None:
      x = self.output_norm(x)
    return x

  def get_config(self) -> Dict[str, Any]:
    """Returns the constructor's arguments."""
    return {
      **super().get_config(),
      **constructor_arguments(self, ConformerBlock),
    }
