"""Learning rates that differ between the variables of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import wrapped_optimizer


class ScaledRates(wrapped_optimizer.WrappedOptimizer):
  """Multiplies the steps of some variables by a factor.

  In a partly scale-invariant model, embeddings and logits are not invariant, so
  that the best learning rates of the parts differ.

  Attributes:
    inner: An optimizer.
    factors: The factor of each variable, from `for_variables`.
  """

  factors: tuple[float, ...] | None = None

  def __init__(
    self,
    inner: tff.learning.optimizers.Optimizer,
    pattern: str,
    factor: float,
  ) -> None:
    """Initializes the optimizer.

    Args:
      inner: The optimizer.
      pattern: A regular expression, found in the names of the variables that
        the factor applies to.
      factor: The factor, at least 0.

    Raises:
      ValueError: If the pattern or the factor is invalid.
    """
    if not 0 <= factor < float('inf'):
      raise ValueError(
        f'rate_factor must be at least 0, but it is {factor}: give the factor '
        'of the learning rate of rate_factor_variables.'
      )
    try:
      self._pattern = re.compile(pattern)
    except re.error as error:
      raise ValueError(
        f'rate_factor_variables={pattern} is not a regular expression '
        f'({error}); an example is embedding|projection.'
      ) from error
    super().__init__(inner)
    self._factor = factor

  def for_variables(
    self, names: Sequence[str]
  ) -> wrapped_optimizer.WrappedOptimizer:
    """Returns the optimizer of variables with these names.

    Raises:
      ValueError: If the pattern is found in none of them.
    """
    found = [bool(self._pattern.search(name)) for name in names]
    if not any(found):
      raise ValueError(
        f'rate_factor_variables={self._pattern.pattern} matches no variable; '
        f'there are {", ".join(names)}.'
      )
    factors = tuple(self._factor if is_scaled else 1.0 for is_scaled in found)
    return self._replace(
      inner=wrapped_optimizer.for_variables(self.inner, names), factors=factors
    )

  def of_variable(self, index: int) -> ScaledRates:
    """Returns the optimizer of one of the variables of `for_variables`."""
    return self._replace(
      inner=wrapped_optimizer.of_variable(self.inner, index),
      factors=(self._bound_factors()[index],),
    )

  def _bound_factors(self) -> tuple[float, ...]:
    if self.factors is None:
      raise ValueError(
        'Which variables have another learning rate depends on their names: '
        'call for_variables(optimizer, names) first.'
      )
    return self.factors

  def next(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
    """Returns the state and the weights after a step."""
    state, stepped = self.inner.next(state, weights, gradients)
    scaled = [
      new if factor == 1 else old + tf.cast(factor, old.dtype) * (new - old)
      for old, new, factor in zip(
        map(tf.convert_to_tensor, tf.nest.flatten(weights)),
        tf.nest.flatten(stepped),
        self._bound_factors(),
      )
    ]
    return state, tf.nest.pack_sequence_as(stepped, scaled)
