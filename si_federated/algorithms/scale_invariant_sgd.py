"""SGD with weight decay and relative clipping, for scale-invariant models."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff


class DecayedSGD(tff.learning.optimizers.Optimizer):
  """x <- (1 - ηλ) x - η g, where g is the gradient, clipped if so asked.

  The gradient over all variables is scaled down to a norm of
  τ = √(2 C λ/η) ‖x‖ if it is larger (Li et al. 2022, arXiv 2202.00980,
  Algorithm 1). At equilibrium between decay and growth a scale-invariant model
  has ‖g‖ = √(2λ/η) ‖x‖, so that C = 4 clips what is twice as large.

  Attributes:
    relative_clip: C, or `None` not to clip.
    spared: For each variable, whether it does not decay; None if all do.
  """

  def __init__(
    self,
    learning_rate: float,
    weight_decay: float,
    relative_clip: float | None = None,
    spared: Sequence[bool] | None = None,
  ) -> None:
    """Initializes the optimizer.

    Args:
      learning_rate: η.
      weight_decay: λ.
      relative_clip: C, or `None` not to clip.
      spared: See the class.
    """
    self._learning_rate = learning_rate
    self._inner = tff.learning.optimizers.build_sgdm(learning_rate)
    self._weight_decay = weight_decay
    self.relative_clip = relative_clip
    self.spared = spared

  def sparing(self, spared: Sequence[bool]) -> DecayedSGD:
    """Returns the optimizer with other variables spared."""
    return DecayedSGD(
      self._learning_rate, self._weight_decay, self.relative_clip, spared
    )

  def initialize(self, specs: Any) -> Any:
    """Returns the state, the learning rate alone."""
    return self._inner.initialize(specs)

  def next(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
    """Returns the state and the weights after a step."""
    flat_weights = tf.nest.flatten(weights)
    flat = [
      None if gradient is None else tf.convert_to_tensor(gradient)
      for gradient in tf.nest.flatten(gradients)
    ]
    if self.relative_clip is not None:
      norm = tf.linalg.global_norm(flat)
      rate = tf.cast(state['learning_rate'], norm.dtype)
      ratio = tf.math.divide_no_nan(
        2.0 * self.relative_clip * self._weight_decay, rate
      )
      limit = tf.sqrt(ratio) * tf.linalg.global_norm(flat_weights)
      factor = tf.where(norm > limit, limit / norm, tf.ones_like(norm))
      flat = [g if g is None else g * tf.cast(factor, g.dtype) for g in flat]
    # A variable that the loss does not depend on decays as well.
    spared = self.spared or [False] * len(flat)
    flat = [
      g
      if is_spared
      else self._weight_decay * w
      if g is None
      else g + self._weight_decay * w
      for g, w, is_spared in zip(flat, flat_weights, spared)
    ]
    return self._inner.next(
      state, weights, tf.nest.pack_sequence_as(weights, flat)
    )

  def get_hparams(self, state: Any) -> collections.OrderedDict[str, Any]:
    """Returns what may be changed between rounds."""
    return self._inner.get_hparams(state)

  def set_hparams(self, state: Any, hparams: Any) -> Any:
    """Returns the state with other values of `get_hparams`."""
    return self._inner.set_hparams(state, hparams)
