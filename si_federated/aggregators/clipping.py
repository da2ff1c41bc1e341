"""The guard against non-finite updates, and clipping, on clients."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def global_norm(update: Any) -> tf.Tensor:
  """Returns the L2 norm of all variables' entries together, float32.

  Args:
    update: A structure of float tensors.
  """
  return tf.linalg.global_norm(
    [tf.cast(tensor, tf.float32) for tensor in tf.nest.flatten(update)]
  )


def clip_update(
  update: Any, clip_norm: tf.Tensor
) -> tuple[Any, tf.Tensor, tf.Tensor]:
  """Returns an update whose norm is at most `clip_norm`.

  Args:
    update: A structure of float tensors.
    clip_norm: A positive float32 scalar.

  Returns:
    The update, scaled down if its norm was too large, or all zeros if its norm
    was not finite; whether it was scaled down; and whether its norm was finite.
  """
  norm = global_norm(update)
  is_finite = tf.math.is_finite(norm)
  scale = clip_norm / tf.maximum(norm, clip_norm)

  def clip(tensor):
    clipped = tensor * tf.cast(scale, tensor.dtype)
    # Multiplying by zero would keep NaN.
    return tf.where(is_finite, clipped, tf.zeros_like(clipped))

  return (
    tf.nest.map_structure(clip, update),
    tf.logical_and(is_finite, norm > clip_norm),
    is_finite,
  )
