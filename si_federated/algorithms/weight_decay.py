"""Weight decay, and the variables that are exempt from it."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import wrapped_optimizer

# The last part of the names of variables that don't decay: the weights of
# adaptive blending units, as in arXiv 1806.10064, and their Swish's slope.
SPARED_NAMES = ('blending_weights', 'swish_beta')


def is_spared(name: str) -> bool:
  """Returns whether a variable of this name is exempt from weight decay."""
  return name.partition(':')[0].rpartition('/')[2] in SPARED_NAMES


def spare(
  optimizer: tff.learning.optimizers.Optimizer, names: Sequence[str]
) -> tff.learning.optimizers.Optimizer:
  """Exempts some variables from an optimizer's weight decay.

  Args:
    optimizer: Any optimizer; only those with a method `sparing` have a weight
      decay.
    names: The names of all variables, in the order of the weights.

  Returns:
    The new optimizer, or the given one if it has no weight decay or no variable
    is exempt.
  """
  spared = tuple(is_spared(name) for name in names)
  if not any(spared) or not hasattr(optimizer, 'sparing'):
    return optimizer
  return optimizer.sparing(spared)


def of_variable(
  optimizer: tff.learning.optimizers.Optimizer, index: int
) -> tff.learning.optimizers.Optimizer:
  """Returns the optimizer of a single variable.

  Args:
    optimizer: An optimizer that treats each variable independently.
    index: The variable's index in the order of the weights.
  """
  spared = getattr(optimizer, 'spared', None)
  if spared is None or not hasattr(optimizer, 'sparing'):
    return optimizer
  return optimizer.sparing((spared[index],))


class AdamW(wrapped_optimizer.WrappedOptimizer):
  """TFF's AdamW, with weight decay that can spare variables.

  Attributes:
    spared: For each variable, whether it is exempt; None if none is.
  """

  def __init__(
    self,
    inner: tff.learning.optimizers.Optimizer,
    spared: Sequence[bool] | None = None,
  ) -> None:
    """Initializes the optimizer.

    Args:
      inner: From `tff.learning.optimizers.build_adamw`.
      spared: See the class.
    """
    super().__init__(inner)
    self.spared = spared

  def sparing(self, spared: Sequence[bool]) -> AdamW:
    """Returns the optimizer with other variables exempt from weight decay."""
    return AdamW(self.inner, spared)

  def next(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
    """Returns the state and the weights after a step."""
    new_state, decayed = self.inner.next(state, weights, gradients)
    if self.spared is None:
      return new_state, decayed
    # The decay is in the state. TensorFlow prunes duplicate computations.
    without = collections.OrderedDict(state, weight_decay=0.0)
    _, plain = self.inner.next(without, weights, gradients)
    chosen = [
      one if is_plain else other
      for one, other, is_plain in zip(
        tf.nest.flatten(plain),
        tf.nest.flatten(decayed),
        self.spared,
      )
    ]
    return new_state, tf.nest.pack_sequence_as(weights, chosen)
