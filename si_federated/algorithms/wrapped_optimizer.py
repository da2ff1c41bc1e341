"""Base of optimizers that wrap another one and use its state."""

from __future__ import annotations

import collections
import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import tensorflow as tf
import tensorflow_federated as tff

_Self = TypeVar('_Self', bound='WrappedOptimizer')


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

  def for_variables(self: _Self, names: Sequence[str]) -> _Self:
    """Returns the optimizer of variables with these names, in their order."""
    return self._replace(inner=for_variables(self.inner, names))

  def of_variable(self: _Self, index: int) -> _Self:
    """Returns the optimizer of one of the variables of `for_variables`."""
    return self._replace(inner=of_variable(self.inner, index))

  def _replace(self: _Self, **attributes: Any) -> _Self:
    """Returns a copy with other attributes."""
    changed = copy.copy(self)
    for name, value in attributes.items():
      setattr(changed, name, value)
    return changed


def for_variables(
  optimizer: tff.learning.optimizers.Optimizer, names: Sequence[str]
) -> tff.learning.optimizers.Optimizer:
  """Returns the optimizer of variables with these names.

  Weight decay and the factors of learning rates depend on variables' names.

  Args:
    optimizer: Any optimizer.
    names: The names of all variables, in the order of the weights.
  """
  if isinstance(optimizer, WrappedOptimizer):
    return optimizer.for_variables(names)
  return optimizer


def of_variable(
  optimizer: tff.learning.optimizers.Optimizer, index: int
) -> tff.learning.optimizers.Optimizer:
  """Returns the optimizer of a single variable.

  Args:
    optimizer: An optimizer that treats each variable independently.
    index: The variable's index in the order of the weights.
  """
  if isinstance(optimizer, WrappedOptimizer):
    return optimizer.of_variable(index)
  return optimizer


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
