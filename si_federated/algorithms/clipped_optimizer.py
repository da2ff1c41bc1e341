"""Gradient clipping in front of any TFF optimizer."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import wrapped_optimizer


class ClippedOptimizer(wrapped_optimizer.WrappedOptimizer):
  """Scales gradients down to a global norm before the inner optimizer's step.

  Attributes:
    inner: The inner optimizer.
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
    super().__init__(inner)
    self.clip_norm = clip_norm

  def next(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
    """Returns the state and the weights after a step."""
    clipped = wrapped_optimizer.clip(
      wrapped_optimizer.flatten_gradients(gradients), self.clip_norm
    )
    return self.inner.next(
      state, weights, tf.nest.pack_sequence_as(weights, clipped)
    )
