"""An embedding whose transpose also gives the logits."""

from __future__ import annotations

from typing import Any, Optional

import tensorflow as tf

from si_federated.layers import activations


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class TiedEmbedding(tf.keras.layers.Embedding):
  """An embedding that also computes logits, when called with `reverse`.

  It is one layer with one variable, so that cloned and saved models stay tied.

  Args:
    input_dim: V, the number of ids.
    output_dim: E, the size of an embedding.
    **kwargs: The arguments of `tf.keras.layers.Embedding`.

  Call arguments:
    inputs: Whole-number ids `[B, T]`, or with `reverse` vectors `[B, T, E]`.
    reverse: Whether to multiply by the transposed embedding.

  Example:

  >>> layer = TiedEmbedding(10, 4)
  >>> layer(layer(tf.constant([[1, 2]])), reverse=True).shape
  TensorShape([1, 2, 10])
  """

  # Like dense layers, it treats each position independently.
  is_position_wise = True

  def call(self, inputs: tf.Tensor, reverse: bool = False) -> tf.Tensor:
    """Looks up ids, or maps vectors to logits."""
    if not reverse:
      return super().call(inputs)
    inputs = tf.cast(inputs, self.compute_dtype)
    shape = tf.shape(inputs)
    flat = tf.reshape(inputs, [-1, self.output_dim])
    kernel = tf.cast(tf.convert_to_tensor(self.embeddings), flat.dtype)
    logits = tf.matmul(flat, kernel, transpose_b=True)
    logits = tf.reshape(
      logits, tf.concat([shape[:-1], [self.input_dim]], axis=0)
    )
    logits.set_shape([*inputs.shape[:-1], self.input_dim])
    return logits

  def compute_output_spec(self, inputs: Any, reverse: bool = False) -> Any:
    """Returns what Keras 3 traces a call with."""
    spec = super().compute_output_spec(inputs)
    if reverse:
      spec = type(spec)((*inputs.shape[:-1], self.input_dim), spec.dtype)
    return spec

  def compute_mask(self, inputs: Any, mask: Optional[Any] = None):
    """Masks padding ids; vectors keep their mask."""
    if tf.as_dtype(inputs.dtype).is_floating:
      return mask
    return super().compute_mask(inputs, mask)
