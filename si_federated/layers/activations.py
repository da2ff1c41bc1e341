"""Scale-invariant activations: max-normalisation, SI-sigmoid and SI-tanh.

Source: Ro et al. 2024, "Efficient Language Model Architectures for
Differentially Private Federated Learning", arXiv 2403.08100.

All three are built on y = x / max_j |x_j|. Where the maximum is zero, the
paper's formula is 0/0; here both the output and its gradient are then zero.
"""

from __future__ import annotations

from typing import Any, Callable, Tuple, Union

import tensorflow as tf

from si_federated.layers.checks import check_slope

PACKAGE = 'si_federated'


def max_normalize(
  x: tf.Tensor, *, rectify: bool, axis: int = -1
) -> Tuple[tf.Tensor, tf.Tensor]:
  """Divides by the largest magnitude, without a custom gradient.

  Args:
    x: Floating-point tensor.
    rectify: Whether negative entries are set to zero first.
    axis: Axis over which the maximum is taken.

  Returns:
    The quotient, shaped like `x`, and the maximum, of length 1 along `axis`.
  """
  if rectify:
    x = tf.nn.relu(x)
    maximum = tf.reduce_max(x, axis=axis, keepdims=True)
  else:
    maximum = tf.reduce_max(tf.abs(x), axis=axis, keepdims=True)
  return tf.math.divide_no_nan(x, maximum), maximum


def max_share(y: tf.Tensor, axis: int = -1) -> tf.Tensor:
  """Returns the derivative of the maximum with respect to the input.

  It is sign(x_j) at the largest entries and zero elsewhere; k tied entries get
  1/k each, the split that TensorFlow's own `reduce_max` makes.

  Args:
    y: Output of `max_normalize`.
    axis: Axis over which the maximum was taken.

  Returns:
    Tensor shaped like `y`.
  """
  # |y| is 1 at the maximum only, since the quotient of equal numbers is exact;
  # the square of any number below 1 rounds to below 1.
  is_largest = tf.floor(tf.square(y))
  ties = tf.reduce_sum(is_largest, axis=axis, keepdims=True)
  return tf.math.divide_no_nan(is_largest * y, ties)


def inverse_maximum(maximum: tf.Tensor) -> tf.Tensor:
  """Returns 1 / maximum, bounded, and 0 where the maximum is zero.

  Args:
    maximum: Non-negative tensor.

  Returns:
    Tensor shaped like `maximum`. Smaller maxima are raised to 2^-14 in float16
    and to 2^-40 in other dtypes, because such factors multiply over time steps.
  """
  exponent = -14 if maximum.dtype == tf.float16 else -40
  tiny = tf.constant(2.0**exponent, maximum.dtype)
  positive = tf.cast(maximum > 0, maximum.dtype)
  return positive / tf.maximum(maximum, tiny)


def first_derivative_only(x: tf.Tensor) -> tf.Tensor:
  """Prevents a gradient from being differentiated again.

  With a nonzero dead slope, the gradient is not the derivative of the output,
  so that differentiating it again would give meaningless numbers.

  Args:
    x: A tensor that the gradient is computed from.

  Returns:
    The same values; differentiating them raises a `NotImplementedError`.
  """

  @tf.custom_gradient
  def identity(x):
    def gradient(_):
      raise NotImplementedError(
        'SI-sigma with a nonzero dead slope has no second derivative: set '
        'dead_gate_slope=0 in layers (dead_slope=0 in si_sigmoid) to '
        'differentiate gradients.'
      )

    return tf.identity(x), gradient

  return identity(x)


def _normalize(
  x: Any, axis: int, rectify: bool, dead_slope: float
) -> tf.Tensor:
  """Max-normalises with a custom gradient."""

  @tf.custom_gradient
  def apply(x):
    y, largest = max_normalize(x, rectify=rectify, axis=axis)

    def gradient(upstream):
      maximum = first_derivative_only(largest) if dead_slope else largest
      inner = tf.reduce_sum(upstream * y, axis=axis, keepdims=True)
      flow = upstream - max_share(y, axis) * inner
      if rectify:
        flow = tf.where(y > 0, flow, tf.zeros_like(flow))
      flow *= inverse_maximum(maximum)
      if flow.dtype == tf.float16:
        # The true gradient of small inputs can be beyond the type's range.
        flow = tf.clip_by_value(flow, tf.float16.min, tf.float16.max)
      if dead_slope:
        flow = tf.where(maximum > 0, flow, dead_slope * upstream)
      return flow

    return y, gradient

  return apply(tf.convert_to_tensor(x))


@tf.keras.utils.register_keras_serializable(PACKAGE, name='maxn')
def maxn(x: Any, axis: int = -1) -> tf.Tensor:
  """Max-normalisation, MaxN(x)_i = x_i / max_j |x_j| (arXiv 2403.08100).

  The gradient with respect to x flows through the maximum as well:
  dL/dx = (g - s <g, y>) / m with m the maximum, y the output, g = dL/dy and s
  the sign of x at the largest entry, zero elsewhere. It is orthogonal to x.
  Entries tied for the largest share s equally.

  Args:
    x: Floating-point tensor of any shape.
    axis: Axis over which the maximum is taken: the hidden units.

  Returns:
    Tensor shaped like `x` with entries in [-1, 1]. Where x is zero along the
    whole axis, the output and the gradient are zero.
  """
  return _normalize(x, axis, rectify=False, dead_slope=0.0)


@tf.keras.utils.register_keras_serializable(PACKAGE, name='si_tanh')
def si_tanh(x: Any, axis: int = -1) -> tf.Tensor:
  """Scale-invariant tanh, SI-tanh(x) = MaxN(x) (arXiv 2403.08100).

  Args:
    x: Floating-point tensor of any shape.
    axis: Axis over which the maximum is taken: the hidden units.

  Returns:
    Tensor shaped like `x` with entries in [-1, 1].
  """
  return maxn(x, axis)


@tf.keras.utils.register_keras_serializable(PACKAGE, name='si_sigmoid')
def si_sigmoid(x: Any, axis: int = -1, dead_slope: float = 0.0) -> tf.Tensor:
  """Scale-invariant sigmoid, SI-σ(x) = MaxN(ReLU(x)) (arXiv 2403.08100).

  Args:
    x: Floating-point tensor of any shape.
    axis: Axis over which the maximum is taken: the hidden units.
    dead_slope: Slope of the gradient for rows without a positive entry, where
      the output is zero: dL/dx = dead_slope * dL/dy there. Such a gradient
      can't be differentiated again. Differs from the paper: it does not define
      such rows.

  Returns:
    Tensor shaped like `x` with entries in [0, 1].

  Raises:
    ValueError: If `dead_slope` is negative or not finite.
  """
  check_slope('dead_slope', dead_slope)
  return _normalize(x, axis, rectify=True, dead_slope=dead_slope)


_BY_NAME = {'maxn': maxn, 'si_sigmoid': si_sigmoid, 'si_tanh': si_tanh}
SCALE_INVARIANT = frozenset(_BY_NAME.values())


def get(
  identifier: Union[str, dict, Callable, None],
) -> Callable:
  """Finds an activation as Keras does, or by one of our names.

  Args:
    identifier: `None`, a function, a configuration, a Keras name, or one of
      `maxn`, `si_sigmoid`, `si_tanh` with or without `si_federated>` before it.

  Returns:
    The activation function.

  Raises:
    ValueError: If there is no such activation.
  """
  if isinstance(identifier, str):
    name = identifier.split('>', 1)[-1]
    if identifier in (name, f'{PACKAGE}>{name}') and name in _BY_NAME:
      return _BY_NAME[name]
  return tf.keras.activations.get(identifier)


def serialize(activation: Callable) -> Any:
  """Serializes an activation for `get`.

  Args:
    activation: An activation function.

  Returns:
    Its registered name if it is ours, else what Keras returns.
  """
  for name, function in _BY_NAME.items():
    if activation is function:
      return f'{PACKAGE}>{name}'
  return tf.keras.activations.serialize(activation)
