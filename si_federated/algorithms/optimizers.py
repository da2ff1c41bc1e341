"""Optimizers by name: TFF's builders with their options.

Besides its own arguments, each builder takes `gradient_clip_norm`,
`rate_factor` and `rate_factor_variables`; see `_add_common_options`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow_federated as tff

from si_federated import signatures
from si_federated.algorithms import (
  clipped_optimizer,
  scale_invariant_sgd,
  scaled_rates,
  wrapped_optimizer,
)
from si_federated.algorithms import weight_decay as weight_decay_lib

_Builder = Callable[..., tff.learning.optimizers.Optimizer]
_DECAYS = ('momentum', 'beta_1', 'beta_2')


def _add_common_options(
  optimizer: tff.learning.optimizers.Optimizer,
  *,
  gradient_clip_norm: float | None = None,
  rate_factor: float = 1.0,
  rate_factor_variables: str | None = None,
) -> tff.learning.optimizers.Optimizer:
  """Adds the options that all builders share to an optimizer.

  Args:
    optimizer: The optimizer.
    gradient_clip_norm: If given, gradients are scaled down to this global L2
      norm first.
    rate_factor: Multiplies the learning rate of `rate_factor_variables`.
    rate_factor_variables: A regular expression, found in the names of the
      variables that `rate_factor` applies to.

  Raises:
    ValueError: If an option is out of range, or one of the last two is missing.
  """
  if (rate_factor != 1) != (rate_factor_variables is not None):
    raise ValueError(
      'rate_factor and rate_factor_variables go together, as in '
      'rate_factor=0.3,rate_factor_variables=embedding: give both or neither.'
    )
  if rate_factor_variables is not None:
    optimizer = scaled_rates.ScaledRates(
      optimizer, str(rate_factor_variables), rate_factor
    )
  if gradient_clip_norm is not None:
    optimizer = clipped_optimizer.ClippedOptimizer(
      optimizer, gradient_clip_norm
    )
  return optimizer


def _number(name: str, value: Any) -> Any:
  """Returns an option's value, a whole number as a float.

  TFF's optimizers need floats, and check the ranges of some options only, not
  those of NaN.

  Raises:
    ValueError: If it is out of its range.
  """
  if not isinstance(value, (int, float)) or isinstance(value, bool):
    return value
  if name in _DECAYS and not 0 <= value < 1:
    raise ValueError(f'{name} must be at least 0 and below 1, found {value}.')
  if not math.isfinite(value):
    raise ValueError(f'{name} must be finite, found {value}.')
  return float(value)


def _with_common_options(build: _Builder) -> _Builder:
  """Decorates a builder: it takes the options of `_add_common_options` too."""
  own = signatures.options_of(build)

  def call(**options: Any) -> tff.learning.optimizers.Optimizer:
    options = {name: _number(name, value) for name, value in options.items()}
    optimizer = build(
      **{option.name: options.pop(option.name) for option in own}
    )
    return _add_common_options(optimizer, **options)

  common = signatures.options_of(_add_common_options)
  return signatures.wrap(build, call, [*own, *common])


@_with_common_options
def build_sgd(
  *,
  learning_rate: float,
  weight_decay: float = 0.0,
  relative_clip: float | None = None,
) -> tff.learning.optimizers.Optimizer:
  """Builds stochastic gradient descent.

  Args:
    learning_rate: The learning rate η.
    weight_decay: λ; weights shrink by the factor 1 - ηλ in each step.
    relative_clip: C; gradients are clipped to a global norm of √(2 C λ/η)
      times that of the weights (arXiv 2202.00980, where C is 4). Needs a weight
      decay.

  Returns:
    The optimizer.

  Raises:
    ValueError: If an option is out of range.
  """
  if not 0 <= weight_decay < float('inf'):
    raise ValueError(
      f'weight_decay must be at least 0, but it is {weight_decay}: give a '
      'small number such as 0.01.'
    )
  if relative_clip is not None and relative_clip <= 0:
    raise ValueError(
      f'relative_clip must be above 0, but it is {relative_clip}: give 4, as '
      'in the paper, or leave it out.'
    )
  if relative_clip is not None and not weight_decay:
    raise ValueError(
      'relative_clip clips to a norm that depends on weight_decay, which is '
      '0: give both or neither.'
    )
  if not weight_decay:
    return tff.learning.optimizers.build_sgdm(learning_rate)
  return scale_invariant_sgd.DecayedSGD(
    learning_rate, weight_decay, relative_clip
  )


@_with_common_options
def build_sgdm(
  *,
  learning_rate: float,
  momentum: float = 0.9,
) -> tff.learning.optimizers.Optimizer:
  """Builds stochastic gradient descent with (heavy-ball) momentum.

  Args:
    learning_rate: The learning rate.
    momentum: The decay of the velocity, in [0, 1).

  Returns:
    The optimizer.
  """
  return tff.learning.optimizers.build_sgdm(learning_rate, momentum or None)


@_with_common_options
def build_adam(
  *,
  learning_rate: float,
  beta_1: float = 0.9,
  beta_2: float = 0.999,
  epsilon: float = 1e-7,
) -> tff.learning.optimizers.Optimizer:
  """Builds Adam; on the server FedAdam (Reddi et al., arXiv 2003.00295).

  Args:
    learning_rate: The learning rate.
    beta_1: Decay of the mean of the gradients.
    beta_2: Decay of the mean of their squares.
    epsilon: Added to the denominator; the degree of adaptivity, tau, in the
      paper.

  Returns:
    The optimizer.
  """
  return tff.learning.optimizers.build_adam(
    learning_rate, beta_1, beta_2, epsilon
  )


@_with_common_options
def build_adamw(
  *,
  learning_rate: float,
  beta_1: float = 0.9,
  beta_2: float = 0.999,
  epsilon: float = 1e-7,
  weight_decay: float = 0.004,
) -> tff.learning.optimizers.Optimizer:
  """Builds Adam with decoupled weight decay (arXiv 1711.05101).

  Args:
    learning_rate: The learning rate.
    beta_1: Decay of the mean of the gradients.
    beta_2: Decay of the mean of their squares.
    epsilon: Added to the denominator.
    weight_decay: Weights shrink by this fraction, times the learning rate, in
      each step.

  Returns:
    The optimizer.
  """
  return weight_decay_lib.AdamW(
    tff.learning.optimizers.build_adamw(
      learning_rate, beta_1, beta_2, epsilon, weight_decay
    )
  )


@_with_common_options
def build_yogi(
  *,
  learning_rate: float,
  beta_1: float = 0.9,
  beta_2: float = 0.999,
  epsilon: float = 1e-3,
  initial_preconditioner_value: float = 1e-6,
) -> tff.learning.optimizers.Optimizer:
  """Builds Yogi; on the server FedYogi (Reddi et al., arXiv 2003.00295).

  Args:
    learning_rate: The learning rate.
    beta_1: Decay of the mean of the gradients.
    beta_2: Rate of change of the second moment.
    epsilon: Added to the denominator; tau in the paper.
    initial_preconditioner_value: The second moment before the first step.

  Returns:
    The optimizer.
  """
  return tff.learning.optimizers.build_yogi(
    learning_rate, beta_1, beta_2, epsilon, initial_preconditioner_value
  )


@_with_common_options
def build_adagrad(
  *,
  learning_rate: float,
  initial_preconditioner_value: float = 0.1,
  epsilon: float = 1e-7,
) -> tff.learning.optimizers.Optimizer:
  """Builds Adagrad; on the server FedAdagrad (Reddi et al., arXiv 2003.00295).

  Args:
    learning_rate: The learning rate.
    initial_preconditioner_value: The sum of squares before the first step.
    epsilon: Added to the denominator; tau in the paper.

  Returns:
    The optimizer.
  """
  return tff.learning.optimizers.build_adagrad(
    learning_rate, initial_preconditioner_value, epsilon
  )


OPTIMIZERS: dict[str, _Builder] = {
  'sgd': build_sgd,
  'sgdm': build_sgdm,
  'adam': build_adam,
  'adamw': build_adamw,
  'yogi': build_yogi,
  'adagrad': build_adagrad,
}


def split_clipping(
  optimizer: tff.learning.optimizers.Optimizer,
) -> tuple[float | None, tff.learning.optimizers.Optimizer]:
  """Separates clipping from an optimizer that treats variables independently.

  Args:
    optimizer: An optimizer from a builder here, or any other whose steps for
      one variable don't depend on the others.

  Returns:
    The clip norm of all gradients, if any, and the optimizer without clipping.

  Raises:
    ValueError: If it needs the norm of all weights.
  """
  clip_norm = None
  if isinstance(optimizer, clipped_optimizer.ClippedOptimizer):
    clip_norm, optimizer = optimizer.clip_norm, optimizer.inner
  innermost = optimizer
  while isinstance(innermost, wrapped_optimizer.WrappedOptimizer):
    if getattr(innermost, 'relative_clip', None) is not None:
      raise ValueError(
        'relative_clip compares the gradient with the norm of all weights, but '
        'a client trains only some of them; use gradient_clip_norm instead.'
      )
    innermost = innermost.inner
  return clip_norm, optimizer
