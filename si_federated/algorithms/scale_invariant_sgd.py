"""SGD with weight decay and relative clipping, for scale-invariant models."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import weight_decay as weight_decay_lib
from si_federated.algorithms import wrapped_optimizer


class DecayedSGD(weight_decay_lib.DecayingOptimizer):
  """x <- (1 - ηλ) x - η g, where the gradient g is optionally clipped.

  The gradient over all variables is scaled down to a norm of
  τ = √(2 C λ/η) ‖x‖ if it is larger (Li et al. 2022, arXiv 2202.00980,
  Algorithm 1). At equilibrium between decay and growth a scale-invariant model
  has ‖g‖ = √(2λ/η) ‖x‖, so that C = 4 clips gradients twice as large.

  Attributes:
    relative_clip: C; `None` disables clipping.
  """

  def __init__(
    self,
    learning_rate: float,
    weight_decay: float,
    relative_clip: float | None = None,
  ) -> None:
    """Initializes the optimizer.

    Args:
      learning_rate: η.
      weight_decay: λ.
      relative_clip: C; `None` disables clipping.
    """
    super().__init__(tff.learning.optimizers.build_sgdm(learning_rate))
    self._weight_decay = weight_decay
    self.relative_clip = relative_clip

  def next(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
    """Returns the state and the weights after a step."""
    flat_weights = tf.nest.flatten(weights)
    flat = wrapped_optimizer.flatten_gradients(gradients)
    if self.relative_clip is not None:
      ratio = tf.math.divide_no_nan(
        2.0 * self.relative_clip * self._weight_decay,
        tf.cast(state['learning_rate'], tf.float32),
      )
      flat = wrapped_optimizer.clip(
        flat, tf.sqrt(ratio) * tf.linalg.global_norm(flat_weights)
      )
    # Variables that the loss does not depend on decay as well.
    exempt = self.exempt or [False] * len(flat)
    flat = [
      g
      if is_exempt
      else self._weight_decay * w
      if g is None
      else g + self._weight_decay * w
      for g, w, is_exempt in zip(flat, flat_weights, exempt)
    ]
    return self.inner.next(
      state, weights, tf.nest.pack_sequence_as(weights, flat)
    )
