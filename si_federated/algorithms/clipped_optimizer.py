"""Clipping of gradients, before any optimizer of TFF's interface."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff


def clip_factor(
  gradients: Sequence[tf.Tensor | None], clip_norm: float
) -> tf.Tensor:
  """Returns what to multiply gradients by for a global norm of `clip_norm`.

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


class ClippedOptimizer(tff.learning.optimizers.Optimizer):
  """Scales gradients down to a global norm, then lets another optimizer step.

  Attributes:
    inner: The other optimizer.
    clip_norm: The largest L2 norm of a gradient over all variables.
  """

  def __init__(
    self, inner: tff.learning.optimizers.Optimizer, clip_norm: float
  ) -> None:
    if not 0 < clip_norm < float('inf'):
      raise ValueError(
        f'gradient_clip_norm must be above 0, but it is {clip_norm}: give the '
        'largest L2 norm of a gradient, or leave it out.'
      )
    self.inner = inner
    self.clip_norm = clip_norm

  def sparing(self, spared: Sequence[bool]) -> ClippedOptimizer:
    """Returns one whose weight decay, if any, leaves some variables alone."""
    if not hasattr(self.inner, 'sparing'):
      return self
    return ClippedOptimizer(self.inner.sparing(spared), self.clip_norm)

  def initialize(self, specs: Any) -> Any:
    """Returns the other optimizer's state."""
    return self.inner.initialize(specs)

  def next(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
    """Returns the state and the weights after a step."""
    flat = [
      None if gradient is None else tf.convert_to_tensor(gradient)
      for gradient in tf.nest.flatten(gradients)
    ]
    factor = clip_factor(flat, self.clip_norm)
    flat = [g if g is None else g * tf.cast(factor, g.dtype) for g in flat]
    return self.inner.next(
      state, weights, tf.nest.pack_sequence_as(weights, flat)
    )

  def get_hparams(self, state: Any) -> collections.OrderedDict[str, Any]:
    """Returns what may be changed between rounds."""
    return self.inner.get_hparams(state)

  def set_hparams(self, state: Any, hparams: Any) -> Any:
    """Returns the state with other values of `get_hparams`."""
    return self.inner.set_hparams(state, hparams)
