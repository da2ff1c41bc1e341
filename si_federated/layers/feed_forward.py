"""The position-wise feed-forward part of Transformer and Conformer blocks."""

from __future__ import annotations

from typing import Any, Callable, Dict, Union

import tensorflow as tf

from si_federated.layers import activations, blending, tracing
from si_federated.layers.checks import check_count
from si_federated.layers.configuration import constructor_arguments
from si_federated.layers.sublayers import build_dense, build_dropout

# Activations with f(c x) = c f(x) for c > 0.
_HOMOGENEOUS = ('linear', 'relu')


def check_homogeneous(activation: Union[Callable, blending.Blend]) -> None:
  """Raises if an activation breaks scale invariance.

  Args:
    activation: An activation function, or a kind of adaptive blending unit.

  Raises:
    ValueError: If it is not positively homogeneous.
  """
  if isinstance(activation, blending.Blend):
    if not activation.is_homogeneous:
      raise ValueError(
        f'scale_invariant needs an activation that scales with its input and '
        f'not with its weights, but it is {str(activation)!r}: choose '
        'abu_normalized:relu+identity or abu_absolute:relu+identity.'
      )
    return
  name = activations.serialize(activation)
  if name not in _HOMOGENEOUS:
    raise ValueError(
      'scale_invariant needs an activation that scales with its input, but it '
      f'is {name!r}: choose {" or ".join(_HOMOGENEOUS)}.'
    )


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class FeedForward(tf.keras.layers.Layer):
  """Two dense layers with an activation between, D -> intermediate_dim -> D.

  Args:
    intermediate_dim: Features between the two.
    activation: Activation between the two; `abu` and its forms (see
      `blending.Blend`) for an adaptive blending unit.
    dropout: Fraction of the intermediate features to drop.
    use_bias: Whether the first dense layer has a bias.
    use_output_bias: Whether the second has one. Without it, and with ReLU, the
      layer is of degree 2 in its weights (Li et al., arXiv 2202.00980).
    kernel_initializer: Initializer of both kernels.
    **kwargs: The arguments of `tf.keras.layers.Layer`.

  Call arguments:
    inputs: `[..., D]`.
    training: Whether dropout is active.
  """

  is_position_wise = True

  def __init__(
    self,
    intermediate_dim: int,
    activation: Any = 'relu',
    dropout: float = 0.0,
    *,
    use_bias: bool = True,
    use_output_bias: bool = True,
    kernel_initializer: Any = 'glorot_uniform',
    **kwargs: Any,
  ) -> None:
    super().__init__(**kwargs)
    check_count('intermediate_dim', intermediate_dim)
    self.intermediate_dim = intermediate_dim
    self.activation = blending.get(activation)
    self.dropout = dropout
    self.use_bias = use_bias
    self.use_output_bias = use_output_bias
    self.kernel_initializer = tf.keras.initializers.get(kernel_initializer)
    self.supports_masking = True
    self._dropout_layer = build_dropout(dropout, self.dtype_policy)

  def build(self, input_shape: Any) -> None:
    """Creates the weights for inputs `[..., D]`."""
    size = tf.TensorShape(input_shape)[-1]
    kind = self.activation
    blends = isinstance(kind, blending.Blend)
    self.intermediate_dense = build_dense(
      self.intermediate_dim,
      size,
      name='intermediate',
      policy=self.dtype_policy,
      activation=None if blends else kind,
      use_bias=self.use_bias,
      kernel_initializer=self.kernel_initializer,
    )
    self.blending = None
    if isinstance(kind, blending.Blend):
      self.blending = kind.build('blending', self.dtype_policy)
    self.output_dense = build_dense(
      size,
      self.intermediate_dim,
      name='output',
      policy=self.dtype_policy,
      use_bias=self.use_output_bias,
      kernel_initializer=self.kernel_initializer,
    )
    super().build(input_shape)

  def call(self, inputs: tf.Tensor, training: Any = None) -> tf.Tensor:
    """Computes the two layers."""
    if tracing.is_building_in_graph(inputs):
      return tf.identity(inputs)
    x = self.intermediate_dense(inputs)
    if self.blending is not None:
      x = self.blending(x)
    return self.output_dense(self._dropout_layer(x, training=training))

  def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
    """Returns the shape of the inputs."""
    return tf.TensorShape(input_shape)

  def get_config(self) -> Dict[str, Any]:
    """Returns the constructor's arguments."""
    return {
      **super().get_config(),
      **constructor_arguments(self, FeedForward),
    }
