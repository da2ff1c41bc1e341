"""Recurrent language models, plain and scale-invariant.

The sizes `small` and `large` are those of the CIFG in Ro et al. 2022, "Scaling
Language Model Size in Cross-Device Federated Learning", arXiv 2204.09715, as
inferred from its parameter counts.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

import tensorflow as tf

from si_federated import layers
from si_federated.models import sizes
from si_federated.models.inherited_options import inherit_options
from si_federated.models.language_model import language_model

_DEFAULTS: Dict[str, Optional[int]] = {
  'embedding_size': 96,
  'units': 670,
  'projection_units': None,
}
_PUBLISHED: Dict[str, Dict[str, int]] = {
  'small': {'embedding_size': 256, 'units': 2048, 'projection_units': 256},
  'large': {'embedding_size': 1024, 'units': 2048, 'projection_units': 1024},
}


def _recurrent(
  layer_class: Callable[..., Any],
  name: str,
  vocab_size: int,
  *,
  embedding_size: Optional[int] = None,
  units: Optional[int] = None,
  projection_units: Optional[int] = None,
  num_layers: int = 1,
  tied_embeddings: bool = True,
  size: Optional[str] = None,
  normalize_embedding: bool = False,
  dropout: float = 0.0,
  **layer_options: Any,
) -> tf.keras.Model:
  """Builds a language model of recurrent layers; see `lstm`."""
  sizes.check_common(
    vocab_size=vocab_size, num_layers=num_layers, dropout=dropout
  )
  chosen = sizes.resolve(
    size,
    given={
      'embedding_size': embedding_size,
      'units': units,
      'projection_units': projection_units,
    },
    defaults=_DEFAULTS,
    published=_PUBLISHED,
  )
  width, projected = chosen['embedding_size'], chosen['projection_units']
  if tied_embeddings and projected not in (None, width):
    raise ValueError(
      f'projection_units={projected} must equal embedding_size={width} with '
      'tied embeddings: make them equal or set tied_embeddings=False.'
    )

  def body(hidden: Any) -> Any:
    if normalize_embedding:
      # Fresh embeddings have a variance below Keras's default epsilon.
      hidden = tf.keras.layers.LayerNormalization(
        center=False, scale=False, epsilon=1e-6, name='normalization'
      )(hidden)
    for index in range(1, num_layers + 1):
      hidden = layer_class(
        chosen['units'],
        projection_units=projected,
        return_sequences=True,
        dropout=dropout,
        name=f'recurrent_{index}',
        **layer_options,
      )(hidden)
      if projected is None:
        dense = tf.keras.layers.Dense(width, name=f'projection_{index}')
        hidden = dense(hidden)
    return hidden

  return language_model(
    name, vocab_size, width, body, tied_embeddings=tied_embeddings
  )


def _si_recurrent(
  layer_class: Callable[..., Any],
  name: str,
  vocab_size: int,
  *,
  initial_scale: float,
  **options: Any,
) -> tf.keras.Model:
  if not 0 < initial_scale < float('inf'):
    raise ValueError(
      f'initial_scale must be above 0, but it is {initial_scale!r}: give the '
      'factor of the initial kernels.'
    )
  if initial_scale != 1:
    options.update(
      kernel_initializer=tf.keras.initializers.VarianceScaling(
        initial_scale**2, 'fan_avg', 'uniform'
      ),
      recurrent_initializer=tf.keras.initializers.Orthogonal(initial_scale),
    )
  return _recurrent(layer_class, name, vocab_size, **options)


@inherit_options(_recurrent)
def lstm(vocab_size: int, **options: Any) -> tf.keras.Model:
  """Builds an LSTM language model.

  With `tied_embeddings=False` it is the Stack Overflow baseline of TensorFlow
  Federated.

  Args:
    vocab_size: V, the number of all ids; id 0 is padding.
    embedding_size: E, the embedding size; 96 if `None`.
    units: H, the hidden units of a recurrent layer; 670 if `None`.
    projection_units: Size of a projection inside the recurrence. If `None`,
      each recurrent layer is followed by a dense layer to E units instead.
    num_layers: Number of recurrent layers.
    tied_embeddings: Whether the logits are a product with the transposed
      embedding, rather than a dense layer of their own.
    size: `small` or `large`, which set the three sizes to published values; an
      explicit size must agree with them.
    normalize_embedding: Whether embeddings are normalised to mean zero and
      variance one (without weights) before the recurrence.
    dropout: Fraction of the inputs of each recurrent layer to drop.
    **options: The options above.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return _recurrent(layers.LSTM, 'lstm', vocab_size, **options)


@inherit_options(_recurrent)
def cifg(vocab_size: int, **options: Any) -> tf.keras.Model:
  """Builds a CIFG language model.

  Arguments, result and errors are those of `lstm`.
  """
  return _recurrent(layers.CIFG, 'cifg', vocab_size, **options)


@inherit_options(_recurrent)
def gru(vocab_size: int, **options: Any) -> tf.keras.Model:
  """Builds a GRU language model.

  Arguments, result and errors are those of `lstm`.
  """
  return _recurrent(layers.GRU, 'gru', vocab_size, **options)


# By default the scale-invariant models normalise embeddings: the recurrent
# state has entries of order one after max-normalisation, and would drown fresh
# embeddings. Whether the authors of SI-CIFG do so is not known.
@inherit_options(_recurrent, normalize_embedding=True)
def si_gru(
  vocab_size: int,
  *,
  activation: str = 'si_tanh',
  recurrent_activation: str = 'si_sigmoid',
  dead_gate_slope: float = 0.1,
  initial_scale: float = 1.0,
  num_groups: int = 1,
  **options: Any,
) -> tf.keras.Model:
  """Builds a scale-invariant GRU language model.

  The rule of arXiv 2403.08100 applied to a GRU.

  Args:
    vocab_size: See `lstm`, also for all options not listed here.
    activation: Activation of the candidate; `tanh` isolates the effect of
      SI-tanh.
    recurrent_activation: Activation of the gates; `sigmoid` isolates the effect
      of SI-σ.
    dead_gate_slope: Slope of the gradient of gates that are all zero.
    initial_scale: Factor of the initial kernels. It changes no output, but
      doubling the weights quarters the relative size of an SGD step.
    num_groups: The number of groups of units, each with its own maximum; it
      divides `units`. The paper has one group, which is faster.
    **options: Further options.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return _si_recurrent(
    layers.SIGRU,
    'si_gru',
    vocab_size,
    activation=activation,
    recurrent_activation=recurrent_activation,
    dead_gate_slope=dead_gate_slope,
    initial_scale=initial_scale,
    num_groups=num_groups,
    **options,
  )


@inherit_options(si_gru)
def si_cifg(
  vocab_size: int,
  *,
  unit_forget_bias: bool = False,
  scale_invariant_output: bool = True,
  **options: Any,
) -> tf.keras.Model:
  """Builds a scale-invariant CIFG language model (arXiv 2403.08100).

  Args:
    vocab_size: See `lstm` and `si_gru`, also for all options not listed here.
    activation: Activation of the candidate and, with `scale_invariant_output`,
      of the output.
    unit_forget_bias: Whether the forget gate's bias starts at one.
    scale_invariant_output: Whether the output uses SI-tanh rather than tanh.
    **options: Further options.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return _si_recurrent(
    layers.SICIFG,
    'si_cifg',
    vocab_size,
    unit_forget_bias=unit_forget_bias,
    scale_invariant_output=scale_invariant_output,
    **options,
  )


@inherit_options(si_cifg)
def si_lstm(vocab_size: int, **options: Any) -> tf.keras.Model:
  """Builds a scale-invariant LSTM language model.

  The rule of arXiv 2403.08100 applied to an LSTM. Arguments, result and errors
  are those of `si_cifg`.
  """
  return _si_recurrent(layers.SILSTM, 'si_lstm', vocab_size, **options)
