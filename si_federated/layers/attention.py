"""Multi-head attention with softmax or scale-invariant weights."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import tensorflow as tf

from si_federated.layers import activations, legacy_keras, tapping, tracing
from si_federated.layers.attention_weights import (
  causal_mask,
  combine_masks,
  masked_softmax,
  normalized_relu,
)
from si_federated.layers.checks import check_count
from si_federated.layers.configuration import constructor_arguments
from si_federated.layers.sublayers import build_dense, build_dropout
from si_federated.layers.token_packing import Packing


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class MultiHeadAttention(tf.keras.layers.Layer):
  """Multi-head attention as in Keras, optionally with scale-invariant weights.

  With `scale_invariant`, N(ReLU(QK^T)) replaces softmax(QK^T/√d), see
  `normalized_relu`; d cancels (Li et al. 2022, arXiv 2202.00980). If the inputs
  do not depend on the weights' scale and the output has no bias
  (`use_output_bias`), the output is then of degree 2 in the weights.

  The four projections are `Dense` layers: `query_dense` and `key_dense` with
  kernels `[D, N*H]`, `value_dense` `[D, N*V]`, `output_dense` `[N*V, O]`.

  Args:
    num_heads: N.
    key_dim: H, the size of a head's queries and keys.
    value_dim: V, the size of a head's values; H if `None`.
    dropout: Fraction of the attention weights to drop.
    use_bias: Whether the projections have biases.
    output_size: O; the feature size of the queries if `None`.
    scale_invariant: Whether to use `normalized_relu` rather than softmax.
    use_output_bias: Whether the output has a bias; `use_bias` if `None`.
    kernel_initializer: Initializer of the four kernels.
    bias_initializer: Initializer of the biases.
    kernel_regularizer: Regularizer of the kernels.
    bias_regularizer: Regularizer of the biases.
    kernel_constraint: Constraint on the kernels.
    bias_constraint: Constraint on the biases.
    **kwargs: The arguments of `tf.keras.layers.Layer`.

  Call arguments:
    query: `[B, T, D]`.
    value: `[B, S, D']`; `query` if `None`, which is self-attention.
    key: `[B, S, D'']`; `value` if `None`.
    query_mask: `[B, T]` booleans; Keras's own mask of `query` if `None`. Rows
      where it is false attend to nothing.
    value_mask: `[B, S]` booleans; Keras's own mask of `value` if `None`.
    key_mask: `[B, S]` booleans; Keras's own mask of `key` if `None`.
    attention_mask: `[B, T, S]` or `[B, N, T, S]` booleans.
    return_attention_scores: Whether to return the weights `[B, N, T, S]` too.
    training: Whether dropout is active.
    use_causal_mask: Whether queries see no later keys.
  """

  def __init__(
    self,
    num_heads: int,
    key_dim: int,
    value_dim: Optional[int] = None,
    dropout: float = 0.0,
    use_bias: bool = True,
    output_size: Optional[int] = None,
    *,
    scale_invariant: bool = False,
    use_output_bias: Optional[bool] = None,
    kernel_initializer: Any = 'glorot_uniform',
    bias_initializer: Any = 'zeros',
    kernel_regularizer: Any = None,
    bias_regularizer: Any = None,
    kernel_constraint: Any = None,
    bias_constraint: Any = None,
    **kwargs: Any,
  ) -> None:
    super().__init__(**kwargs)
    for name, value in (
      ('num_heads', num_heads),
      ('key_dim', key_dim),
      ('value_dim', value_dim),
      ('output_size', output_size),
    ):
      if value is not None:
        check_count(name, value)
    self.num_heads = num_heads
    self.key_dim = key_dim
    self.value_dim = value_dim or key_dim
    self.dropout = dropout
    self.use_bias = use_bias
    self.output_size = output_size
    self.scale_invariant = scale_invariant
    self.use_output_bias = (
      use_bias if use_output_bias is None else use_output_bias
    )
    self.kernel_initializer = tf.keras.initializers.get(kernel_initializer)
    self.bias_initializer = tf.keras.initializers.get(bias_initializer)
    self.kernel_regularizer = tf.keras.regularizers.get(kernel_regularizer)
    self.bias_regularizer = tf.keras.regularizers.get(bias_regularizer)
    self.kernel_constraint = tf.keras.constraints.get(kernel_constraint)
    self.bias_constraint = tf.keras.constraints.get(bias_constraint)
    self.supports_masking = True
    self._dropout_layer = build_dropout(dropout, self.dtype_policy)
    self._shapes: Optional[Dict[str, Any]] = None

  def build_projections(
    self, query_size: int, key_size: int, value_size: int
  ) -> None:
    """Creates the weights for the given feature sizes."""
    if self._shapes is not None:
      return
    self._shapes = {
      'query_size': query_size,
      'key_size': key_size,
      'value_size': value_size,
    }
    keys = self.num_heads * self.key_dim
    values = self.num_heads * self.value_dim

    def dense(name, size, input_size, use_bias=self.use_bias):
      return build_dense(
        size,
        input_size,
        name=name,
        policy=self.dtype_policy,
        use_bias=use_bias,
        kernel_initializer=self.kernel_initializer,
        bias_initializer=self.bias_initializer,
        kernel_regularizer=self.kernel_regularizer,
        bias_regularizer=self.bias_regularizer,
        kernel_constraint=self.kernel_constraint,
        bias_constraint=self.bias_constraint,
      )

    self.built = True
    with tracing.variable_scope():
      self.query_dense = dense('query', keys, query_size)
      self.key_dense = dense('key', keys, key_size)
      self.value_dense = dense('value', values, value_size)
      self.output_dense = dense(
        'output', self.output_size or query_size, values, self.use_output_bias
      )

  def build(
    self, query_shape: Any, value_shape: Any = None, key_shape: Any = None
  ) -> None:
    """Builds in Keras 3; in Keras 2 the first call does, with all inputs."""
    if legacy_keras.IS_KERAS_3:
      value_shape = value_shape or query_shape
      key_shape = key_shape or value_shape
      self.build_projections(query_shape[-1], key_shape[-1], value_shape[-1])
    self.built = True

  def get_build_config(self) -> Dict[str, Any]:
    """Returns the arguments of `build_projections`."""
    return dict(self._shapes or {})

  def build_from_config(self, config: Dict[str, Any]) -> None:
    """Creates the weights for the shapes that were saved."""
    if config:
      self.build_projections(**config)

  def split_heads(self, x: tf.Tensor, batch: Any, length: Any) -> tf.Tensor:
    """Turns `[B * T, N * H]` into `[B, N, T, H]`."""
    size = x.shape[-1] // self.num_heads
    x = tf.reshape(x, [batch, length, self.num_heads, size])
    return tf.transpose(x, [0, 2, 1, 3])

  def attend(
    self,
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    allowed: Optional[tf.Tensor] = None,
    training: Any = None,
  ) -> Tuple[tf.Tensor, tf.Tensor]:
    """Mixes the values of each head.

    Args:
      query: `[B, N, T, H]`.
      key: `[B, N, S, H]`.
      value: `[B, N, S, V]`.
      allowed: Booleans that broadcast to `[B, N, T, S]`.
      training: Whether dropout is active.

    Returns:
      The context `[B, T, N * V]` and the weights `[B, N, T, S]`.
    """
    if not self.scale_invariant or query.dtype == tf.float16:
      query *= tf.constant(self.key_dim**-0.5, query.dtype)
    logits = tf.matmul(query, key, transpose_b=True)
    narrow = logits.dtype.size < 4
    if narrow:
      logits = tf.cast(logits, tf.float32)
    function = normalized_relu if self.scale_invariant else masked_softmax
    weights = function(logits, allowed)
    tapping.tap('attention', weights)
    if narrow:
      weights = tf.cast(weights, query.dtype)
    used = weights
    if not tracing.is_building_in_graph(query):
      used = self._dropout_layer(weights, training=training)
    context = tf.transpose(tf.matmul(used, value), [0, 2, 1, 3])
    shape = tf.shape(context)
    size = self.num_heads * self.value_dim
    return tf.reshape(context, [shape[0], shape[1], size]), weights

  def attend_packed(
    self,
    x: tf.Tensor,
    packing: Packing,
    *,
    use_causal_mask: bool,
    training: Any = None,
  ) -> tf.Tensor:
    """Attends among the valid tokens of a batch, `[M, D]` -> `[M, O]`."""

    def heads(y):
      return self.split_heads(packing.unpack(y), packing.batch, packing.length)

    allowed = packing.mask
    if allowed is not None:
      allowed = allowed[:, tf.newaxis, tf.newaxis, :]
    if use_causal_mask:
      length = packing.length
      allowed = combine_masks(allowed, causal_mask(length, length))
    context, _ = self.attend(
      heads(self.query_dense(x)),
      heads(self.key_dense(x)),
      heads(self.value_dense(x)),
      allowed,
      training,
    )
    return self.output_dense(packing.pack(context))

  def call(
    self,
    query: tf.Tensor,
    value: Optional[tf.Tensor] = None,
    key: Optional[tf.Tensor] = None,
    query_mask: Optional[tf.Tensor] = None,
    value_mask: Optional[tf.Tensor] = None,
    key_mask: Optional[tf.Tensor] = None,
    attention_mask: Optional[tf.Tensor] = None,
    return_attention_scores: bool = False,
    training: Any = None,
    use_causal_mask: bool = False,
  ):
    """Attends; the class lists the arguments."""
    value = query if value is None else value
    key = value if key is None else key
    self.build_projections(query.shape[-1], key.shape[-1], value.shape[-1])
    query_mask = _mask_of(query, query_mask)
    value_mask = _mask_of(value, value_mask)
    key_mask = _mask_of(key, key_mask)
    allowed = attention_mask
    if allowed is not None and allowed.shape.rank == 3:
      allowed = allowed[:, tf.newaxis]
    seen = combine_masks(value_mask, key_mask)
    shape, source = tf.shape(query), tf.shape(value)
    allowed = combine_masks(
      allowed,
      None if query_mask is None else query_mask[:, tf.newaxis, :, tf.newaxis],
      None if seen is None else seen[:, tf.newaxis, tf.newaxis, :],
      causal_mask(shape[1], source[1]) if use_causal_mask else None,
    )
    context, weights = self.attend(
      self.split_heads(self.query_dense(query), shape[0], shape[1]),
      self.split_heads(self.key_dense(key), source[0], source[1]),
      self.split_heads(self.value_dense(value), source[0], source[1]),
      allowed,
      training,
    )
    context = tf.ensure_shape(context, [*query.shape[:2], context.shape[-1]])
    output = self.output_dense(context)
    return (output, weights) if return_attention_scores else output

  def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
    """Makes Keras 3 trace a call, since outputs depend on its options."""
    return super(tf.keras.layers.Layer, self).compute_output_spec(
      *args, **kwargs
    )

  def compute_output_shape(
    self, query_shape: Any, value_shape: Any = None, key_shape: Any = None
  ) -> tf.TensorShape:
    """Returns the shape of the output, without attention scores."""
    shape = tf.TensorShape(query_shape)
    return shape[:-1].concatenate(self.output_size or shape[-1])

  def compute_mask(self, query: Any, mask: Any = None) -> Any:
    """Returns the mask of the queries."""
    return tf.nest.flatten(mask)[0] if mask is not None else None

  def get_config(self) -> Dict[str, Any]:
    """Returns the constructor's arguments."""
    return {
      **super().get_config(),
      **constructor_arguments(self, MultiHeadAttention),
      # As in Keras's own layer, loading needs the projections before the first
      # call.
      'built_for': self._shapes,
    }

  @classmethod
  def from_config(cls, config: Dict[str, Any]) -> MultiHeadAttention:
    """Makes a layer from `get_config()`, with weights if that had any."""
    built_for = config.pop('built_for', None)
    layer = cls(**config)
    if built_for:
      with tf.name_scope(layer.name):
        layer.build_projections(**built_for)
    return layer


def _mask_of(x: tf.Tensor, mask: Optional[tf.Tensor]) -> Optional[tf.Tensor]:
  return getattr(x, '_keras_mask', None) if mask is None else mask
