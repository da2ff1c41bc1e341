"""Weight decay, and which variables are spared it."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

# The last part of the names of variables that don't decay: the weights of
# adaptive blending units, as in arXiv 1806.10064, and what shapes their Swish.
SPARED_NAMES = ('blending_weights', 'swish_beta')


def is_spared(name: str) -> bool:
  """Returns whether the variable of a name is not to decay."""
  return name.partition(':')[0].rpartition('/')[2] in SPARED_NAMES


def spare(
  optimizer: tff.learning.optimizers.Optimizer, names: Sequence[str]
) -> tff.learning.optimizers.Optimizer:
  """Returns an optimizer whose weight decay leaves some variables alone.

  Args:
    optimizer: Any; only one with a method `sparing` has a weight decay.
    names: The names of all variables, in the order of the weights.

  Returns:
    The optimizer, the same if it has no weight decay or spares no variable.
  """
  spared = tuple(is_spared(name) for name in names)
  if not any(spared) or not hasattr(optimizer, 'sparing'):
    return optimizer
  return optimizer.sparing(spared)


def of_variable(
  optimizer: tff.learning.optimizers.Optimizer, index: int
) -> tff.learning.optimizers.Optimizer:
  """Returns the optimizer of one variable alone.

  Args:
    optimizer: One whose steps of a variable do not depend on the others.
    index: Which variable, in the order of the weights.
  """
  spared = getattr(optimizer, 'spared', None)
  if spared is None or not hasattr(optimizer, 'sparing'):
    return optimizer
  return optimizer.sparing((spared[index],))


class AdamW(tff.learning.optimizers.Optimizer):
  """TFF's AdamW, with the choice to spare some variables the decay.

  Attributes:
    spared: For each variable, whether it does not decay; None if all do.
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
    self._inner = inner
    self.spared = spared

  def sparing(self, spared: Sequence[bool]) -> AdamW:
    """Returns the optimizer with other variables spared."""
    return AdamW(self._inner, spared)

  def initialize(self, specs: Any) -> Any:
    """Returns TFF's state."""
    return self._inner.initialize(specs)

  def next(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
    """Returns the state and the weights after a step."""
    new_state, decayed = self._inner.next(state, weights, gradients)
    if self.spared is None:
      return new_state, decayed
    # The decay is in the state; what is computed twice is pruned.
    without = collections.OrderedDict(state, weight_decay=0.0)
    _, plain = self._inner.next(without, weights, gradients)
    chosen = [
      one if is_plain else other
      for one, other, is_plain in zip(
        tf.nest.flatten(plain),
        tf.nest.flatten(decayed),
        self.spared,
      )
    ]
    return new_state, tf.nest.pack_sequence_as(weights, chosen)

  def get_hparams(self, state: Any) -> collections.OrderedDict[str, Any]:
    """Returns what may be changed between rounds."""
    return self._inner.get_hparams(state)

  def set_hparams(self, state: Any, hparams: Any) -> Any:
    """Returns the state with other values of `get_hparams`."""
    return self._inner.set_hparams(state, hparams)
