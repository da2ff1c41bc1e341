"""What a client does to its update before it is summed: guard and clip."""

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
  """Returns an update of a norm of at most `clip_norm`.

  Args:
    update: A structure of float tensors.
    clip_norm: A positive float32 scalar.

  Returns:
    The update, scaled down if it was too long, and zero if its norm was not
    finite (which it is not if one entry is not); whether it was scaled down;
    and whether it was finite.
  """
  norm = global_norm(update)
  is_finite = tf.math.is_finite(norm)
  scale = clip_norm / tf.maximum(norm, clip_norm)

  def clip(tensor):
    clipped = tensor * tf.cast(scale, tensor.dtype)
    # Not a product with zero, which would keep what is not a number.
    return tf.where(is_finite, clipped, tf.zeros_like(clipped))

  return (
    tf.nest.map_structure(clip, update),
    tf.logical_and(is_finite, norm > clip_norm),
    is_finite,
  )
