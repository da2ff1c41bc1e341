"""Adaptive blending units: activations that are learned mixtures.

Source: Sütfeld et al. 2018, "Adaptive Blending Units: Trainable Activation
Functions for Deep Neural Networks", arXiv 1806.10064.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, Sequence, Tuple, Union

import tensorflow as tf

from si_federated.layers import activations

# Names of a unit's variables; training exempts them from weight decay.
WEIGHTS_NAME = 'blending_weights'
BETA_NAME = 'swish_beta'

# Lower limit of the weights with `positive`.
_LEAST = 1e-4


def _swish(x: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
  return x * tf.sigmoid(beta * x)


# Functions to blend, of the input and Swish's beta.
FUNCTIONS: Dict[str, Callable[..., tf.Tensor]] = {
  'relu': lambda x, _: tf.nn.relu(x),
  'elu': lambda x, _: tf.nn.elu(x),
  'tanh': lambda x, _: tf.tanh(x),
  'swish': _swish,
  'identity': lambda x, _: x,
}
# Functions with f(c x) = c f(x) for c > 0.
_HOMOGENEOUS_FUNCTIONS = ('relu', 'identity')

# Modes: maps from the trained variable to the weights of the functions.
MODES: Dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
  'unrestricted': lambda alpha: alpha,
  'normalized': lambda alpha: alpha / tf.reduce_sum(alpha),
  'absolute': lambda alpha: alpha / tf.reduce_sum(tf.abs(alpha)),
  'softmax': tf.nn.softmax,
  'positive': lambda alpha: MODES['normalized'](tf.maximum(alpha, _LEAST)),
}
# Modes that ignore a positive factor of all weights.
_HOMOGENEOUS_MODES = ('normalized', 'absolute')


def _choose(what: str, name: Any, known: Any) -> None:
  if name not in known:
    raise ValueError(
      f'There is no {what} {name!r} of adaptive blending units: choose one of '
      f'{", ".join(known)}.'
    )


@dataclasses.dataclass(frozen=True)
class Blend:
  """The kind of an adaptive blending unit, without weights.

  Its text form is `abu` or `abu_MODE`, optionally followed by a colon and the
  functions to blend, as in `abu_softmax:relu+tanh`.

  Attributes:
    mode: One of `MODES`.
    functions: Some of `FUNCTIONS`, at least one, in the order of the weights.
  """

  mode: str = 'unrestricted'
  functions: Tuple[str, ...] = tuple(FUNCTIONS)

  def __post_init__(self) -> None:
    _choose('mode', self.mode, MODES)
    if not self.functions or len(set(self.functions)) < len(self.functions):
      raise ValueError(
        'Adaptive blending units blend one or more distinct functions, but '
        f'functions is {list(self.functions)}.'
      )
    for function in self.functions:
      _choose('function', function, FUNCTIONS)

  @classmethod
  def parse(cls, text: str) -> Blend:
    """Parses the text form.

    Args:
      text: It begins with `abu`.

    Returns:
      The kind of unit.

    Raises:
      ValueError: If there is no such mode or function.
    """
    kind, colon, names = text.partition(':')
    _, _, mode = kind.partition('_')
    functions = tuple(names.split('+')) if colon else cls.functions
    return cls(mode or cls.mode, functions)

  def __str__(self) -> str:
    kind = 'abu' if self.mode == Blend.mode else f'abu_{self.mode}'
    if self.functions == Blend.functions:
      return kind
    return f'{kind}:{"+".join(self.functions)}'

  @property
  def is_homogeneous(self) -> bool:
    """Whether its output scales with its input, but not with its weights."""
    return self.mode in _HOMOGENEOUS_MODES and all(
      function in _HOMOGENEOUS_FUNCTIONS for function in self.functions
    )

  def build(self, name: str, policy: Any) -> AdaptiveBlendingUnit:
    """Builds a unit inside another layer.

    Args:
      name: The unit's name.
      policy: The dtype policy of the layer that contains it.

    Returns:
      The layer with its weights.
    """
    layer = AdaptiveBlendingUnit(
      self.mode, self.functions, dtype=policy, name=name
    )
    with tf.name_scope(name):
      layer.build(None)
    return layer


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class AdaptiveBlendingUnit(tf.keras.layers.Layer):
  """A weighted sum of activation functions with trained weights.

  act(x) = Σ_j α_j g_j(x), with one vector α for the whole layer, initially 1/n
  each. The mode maps the trained α to the weights:

  - `unrestricted`: α;
  - `normalized`: α / Σ α, undefined if the sum is zero;
  - `absolute`: α / Σ |α|;
  - `softmax`: exp(α) / Σ exp(α);
  - `positive`: max(α, 1e-4), divided by its sum.

  The functions are ReLU, ELU, tanh, Swish (x σ(βx), with one trained β for the
  layer, initially 1) and the identity. A single function with mode
  `unrestricted` is the paper's adaptive scaling.

  `positive` follows the paper; the authors' code replaces it by `normalized`.

  Args:
    mode: See above.
    functions: Some of `relu`, `elu`, `tanh`, `swish` and `identity`; all by
      default.
    **kwargs: The arguments of `tf.keras.layers.Layer`.

  Call arguments:
    inputs: Floats of any shape.

  Example:

  >>> layer = AdaptiveBlendingUnit('softmax', ['relu', 'identity'])
  >>> layer(tf.constant([-1.0, 1.0])).numpy()
  array([-0.5,  1. ], dtype=float32)
  """

  is_position_wise = True

  def __init__(
    self,
    mode: str = 'unrestricted',
    functions: Sequence[str] = Blend.functions,
    **kwargs: Any,
  ) -> None:
    super().__init__(**kwargs)
    self.kind = Blend(mode, tuple(functions))
    self.supports_masking = True

  def build(self, input_shape: Any) -> None:
    """Creates the weights, for inputs of any shape."""
    size = len(self.kind.functions)
    self.blending_weights = self.add_weight(
      name=WEIGHTS_NAME,
      shape=(size,),
      initializer=tf.keras.initializers.Constant(1.0 / size),
    )
    self.swish_beta = None
    if 'swish' in self.kind.functions:
      self.swish_beta = self.add_weight(
        name=BETA_NAME, shape=(), initializer='ones'
      )
    self.built = True

  def blend(self) -> tf.Tensor:
    """Returns the weights of the functions, `[n]`."""
    return MODES[self.kind.mode](tf.convert_to_tensor(self.blending_weights))

  def call(self, inputs: tf.Tensor) -> tf.Tensor:
    """Computes the sum."""
    factors = tf.unstack(tf.cast(self.blend(), inputs.dtype))
    beta = self.swish_beta
    if beta is not None:
      beta = tf.cast(beta, inputs.dtype)
    return tf.add_n(
      [
        factor * FUNCTIONS[name](inputs, beta)
        for factor, name in zip(factors, self.kind.functions)
      ]
    )

  def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
    """Returns the shape of the inputs."""
    return tf.TensorShape(input_shape)

  def get_config(self) -> Dict[str, Any]:
    """Returns the constructor's arguments."""
    return {
      **super().get_config(),
      'mode': self.kind.mode,
      'functions': list(self.kind.functions),
    }


def get(identifier: Any) -> Union[Blend, Callable]:
  """Finds an activation function or a kind of adaptive blending unit.

  Args:
    identifier: An identifier for `activations.get`, a kind or its text form, or
      a unit, whose kind is returned.

  Returns:
    The activation function or the kind.

  Raises:
    ValueError: If there is no such activation.
  """
  if isinstance(identifier, AdaptiveBlendingUnit):
    return identifier.kind
  if isinstance(identifier, Blend):
    return identifier
  if isinstance(identifier, str):
    kind = identifier.partition(':')[0]
    if kind == 'abu' or kind.startswith('abu_'):
      return Blend.parse(identifier)
  return activations.get(identifier)


def serialize(activation: Union[Blend, Callable]) -> Any:
  """Serializes a result of `get` for `get`."""
  if isinstance(activation, Blend):
    return str(activation)
  return activations.serialize(activation)
