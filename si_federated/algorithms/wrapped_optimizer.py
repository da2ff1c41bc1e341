"""Base of optimizers that wrap another one and use its state."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff


class WrappedOptimizer(tff.learning.optimizers.Optimizer):
  """Base of optimizers that change weights or gradients of an inner one.

  Attributes:
    inner: The inner optimizer.
  """

  def __init__(self, inner: tff.learning.optimizers.Optimizer) -> None:
    self.inner = inner

  def initialize(self, specs: Any) -> Any:
    """Returns the inner optimizer's state."""
    return self.inner.initialize(specs)

  def get_hparams(self, state: Any) -> collections.OrderedDict[str, Any]:
    """Returns the hyperparameters that may change between rounds."""
    return self.inner.get_hparams(state)

  def set_hparams(self, state: Any, hparams: Any) -> Any:
    """Returns the state with new values for those of `get_hparams`."""
    return self.inner.set_hparams(state, hparams)


def flatten_gradients(gradients: Any) -> list[tf.Tensor | None]:
  """Returns gradients as a list of dense tensors."""
  return [
    None if gradient is None else tf.convert_to_tensor(gradient)
    for gradient in tf.nest.flatten(gradients)
  ]


def clip_factor(
  gradients: Sequence[tf.Tensor | None], clip_norm: float | tf.Tensor
) -> tf.Tensor:
  """Returns the factor that scales gradients to a global norm of `clip_norm`.

  Args:
    gradients: Float tensors of any shapes, or `None`.
    clip_norm: The largest L2 norm of all their entries together.

  Returns:
    At most 1, a float32 scalar.
  """
  norm = tf.linalg.global_norm(
    [None if g is None else tf.cast(g, tf.float32) for g in gradients]
  )
  return tf.where(norm > clip_norm, clip_norm / norm, tf.ones_like(norm))


def clip(
  gradients: Sequence[tf.Tensor | None], clip_norm: float | tf.Tensor
) -> list[tf.Tensor | None]:
  """Returns gradients scaled down to a global L2 norm of `clip_norm`."""
  factor = clip_factor(gradients, clip_norm)
  return [g if g is None else g * tf.cast(factor, g.dtype) for g in gradients]
