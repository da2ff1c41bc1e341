"""Weight decay, and the variables that are exempt from it."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from si_federated.algorithms import wrapped_optimizer

# The last part of the names of variables that don't decay: the weights of
# adaptive blending units, as in arXiv 1806.10064, and their Swish's slope.
SPARED_NAMES = ('blending_weights', 'swish_beta')


def is_exempt(name: str) -> bool:
  """Returns whether a variable of this name is exempt from weight decay."""
  return name.partition(':')[0].rpartition('/')[2] in SPARED_NAMES


class DecayingOptimizer(wrapped_optimizer.WrappedOptimizer):
  """Base of optimizers with a weight decay that spares some variables.

  Attributes:
    exempt: For each variable, whether it is exempt; None if none is.
  """

  exempt: tuple[bool, ...] | None = None

  def for_variables(self, names: Sequence[str]) -> DecayingOptimizer:
    """Returns the optimizer of variables with these names."""
    exempt = tuple(is_exempt(name) for name in names)
    return self._replace(exempt=exempt if any(exempt) else None)

  def of_variable(self, index: int) -> DecayingOptimizer:
    """Returns the optimizer of one of the variables of `for_variables`."""
    if self.exempt is None:
      return self
    return self._replace(exempt=(self.exempt[index],))


class AdamW(DecayingOptimizer):
  """TFF's AdamW, with weight decay that spares some variables.

  Attributes:
    inner: From `tff.learning.optimizers.build_adamw`.
  """

  def next(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
    """Returns the state and the weights after a step."""
    new_state, decayed = self.inner.next(state, weights, gradients)
    if self.exempt is None:
      return new_state, decayed
    # The decay is in the state. TensorFlow prunes duplicate computations.
    without = collections.OrderedDict(state, weight_decay=0.0)
    _, plain = self.inner.next(without, weights, gradients)
    chosen = [
      one if is_plain else other
      for one, other, is_plain in zip(
        tf.nest.flatten(plain),
        tf.nest.flatten(decayed),
        self.exempt,
      )
    ]
    return new_state, tf.nest.pack_sequence_as(weights, chosen)
