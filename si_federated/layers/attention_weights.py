"""Attention weights: softmax and its scale-invariant counterpart, and masks."""

from __future__ import annotations

from typing import Any, Optional

import tensorflow as tf

# Gradients divide by at least this sum of a row of scores.
_SMALLEST_TOTAL = 2.0**-80


def normalized_relu(
  logits: tf.Tensor, allowed: Optional[tf.Tensor] = None
) -> tf.Tensor:
  """Scale-invariant attention weights, N(ReLU(A)) (Li et al., 2202.00980).

  N divides a row by its sum. A row without a positive allowed entry, 0/0 in the
  paper, gives zeros and passes no gradient.

  Args:
    logits: Floating-point scores `[..., T, S]`.
    allowed: Booleans that broadcast to `[..., T, S]`: the keys that a query may
      attend to.

  Returns:
    Weights shaped like `logits`; rows sum to one or zero. Multiplying the
    logits by a positive number changes nothing.
  """

  @tf.custom_gradient
  def apply(logits):
    rectified = tf.nn.relu(logits)
    if allowed is not None:
      rectified = tf.where(allowed, rectified, tf.zeros([], logits.dtype))
    total = tf.reduce_sum(rectified, axis=-1, keepdims=True)
    y = tf.math.divide_no_nan(rectified, total)

    def gradient(upstream):
      inner = tf.reduce_sum(upstream * y, axis=-1, keepdims=True)
      flow = (upstream - inner) / tf.maximum(total, _SMALLEST_TOTAL)
      return tf.where(y > 0, flow, tf.zeros([], flow.dtype))

    return y, gradient

  return apply(logits)


def masked_softmax(
  logits: tf.Tensor, allowed: Optional[tf.Tensor] = None
) -> tf.Tensor:
  """Softmax over the allowed keys; zeros if a row has none.

  Args:
    logits: Floating-point scores `[..., T, S]`.
    allowed: See `normalized_relu`.

  Returns:
    Weights shaped like `logits`.
  """
  if allowed is None:
    return tf.nn.softmax(logits)

  @tf.custom_gradient
  def apply(logits):
    y = tf.nn.softmax(tf.where(allowed, logits, logits.dtype.min / 2))
    y = tf.where(allowed, y, tf.zeros([], y.dtype))

    def gradient(upstream):
      inner = tf.reduce_sum(upstream * y, axis=-1, keepdims=True)
      return (upstream - inner) * y

    return y, gradient

  return apply(logits)


def combine_masks(*masks: Optional[tf.Tensor]) -> Optional[tf.Tensor]:
  """Returns the conjunction of the given masks, `None` if there is none."""
  combined = None
  for mask in masks:
    if mask is not None:
      mask = tf.cast(mask, tf.bool)
      combined = mask if combined is None else combined & mask
  return combined


def causal_mask(num_queries: Any, num_keys: Any) -> tf.Tensor:
  """Returns booleans `[T, S]`: a query sees keys up to its own position."""
  return tf.range(num_queries)[:, tf.newaxis] >= tf.range(num_keys)
