"""Scale-invariant recurrent next-word models.

Embeddings are normalised by default, unlike those of the plain models: the
recurrent state is of size one after max-normalisation, and fresh embeddings
would drown beside it. What the authors of SI-CIFG do is not known.
"""

from __future__ import annotations

from typing import Any, Dict, Optional

import tensorflow as tf

from si_federated import layers
from si_federated.models import recurrent_models


def _initializers(initial_scale: float) -> Dict[str, Any]:
  """Returns the initializers of kernels, Keras's times a factor."""
  if not 0 < initial_scale < float('inf'):
    raise ValueError(
      f'initial_scale must be above 0, but it is {initial_scale!r}: give the '
      'factor of the initial kernels.'
    )
  if initial_scale == 1:
    return {}
  return {
    'kernel_initializer': tf.keras.initializers.VarianceScaling(
      initial_scale**2, 'fan_avg', 'uniform'
    ),
    'recurrent_initializer': tf.keras.initializers.Orthogonal(initial_scale),
  }


def si_cifg(
  vocab_size: int,
  *,
  embedding_size: Optional[int] = None,
  units: Optional[int] = None,
  projection_units: Optional[int] = None,
  num_layers: int = 1,
  tied_embeddings: bool = True,
  size: Optional[str] = None,
  normalize_embedding: bool = True,
  dropout: float = 0.0,
  unit_forget_bias: bool = False,
  scale_invariant_output: bool = True,
  activation: str = 'si_tanh',
  recurrent_activation: str = 'si_sigmoid',
  dead_gate_slope: float = 0.1,
  initial_scale: float = 1.0,
) -> tf.keras.Model:
  """Builds a scale-invariant CIFG language model (arXiv 2403.08100).

  Args:
    vocab_size: See `lstm`, as for all the options down to `dropout`.
    embedding_size: Size of the embeddings.
    units: Hidden units of a recurrent layer.
    projection_units: Size of a projection inside the recurrence.
    num_layers: Number of recurrent layers.
    tied_embeddings: Whether the logits use the embedding.
    size: `small` or `large`: the published sizes.
    normalize_embedding: Whether embeddings are normalised.
    dropout: Fraction of the inputs of each recurrent layer to drop.
    unit_forget_bias: See `SICIFGCell`, as for the rest.
    scale_invariant_output: Whether the output uses SI-tanh rather than tanh.
    activation: Activation of the candidate and, with `scale_invariant_output`,
      of the output; `tanh` to see what SI-tanh does.
    recurrent_activation: Activation of the gates; `sigmoid` to see what SI-σ
      does.
    dead_gate_slope: Slope of the gradient of gates that are all zero.
    initial_scale: Factor of the initial kernels. It changes no output, but
      weights twice as large feel a quarter of a step.

  Returns:
    A model from ids `[B, T]` to logits `[B, T, V]`.

  Raises:
    ValueError: If an option is out of range or contradicts another one.
  """
  return recurrent_models.build(
    layers.SICIFG,
    'si_cifg',
    vocab_size,
    embedding_size=embedding_size,
    units=units,
    projection_units=projection_units,
    num_layers=num_layers,
    tied_embeddings=tied_embeddings,
    size=size,
    normalize_embedding=normalize_embedding,
    dropout=dropout,
    unit_forget_bias=unit_forget_bias,
    scale_invariant_output=scale_invariant_output,
    activation=activation,
    recurrent_activation=recurrent_activation,
    dead_gate_slope=dead_gate_slope,
    **_initializers(initial_scale),
  )


def si_lstm(
  vocab_size: int,
  *,
  embedding_size: Optional[int] = None,
  units: Optional[int] = None,
  projection_units: Optional[int] = None,
  num_layers: int = 1,
  tied_embeddings: bool = True,
  size: Optional[str] = None,
  normalize_embedding: bool = True,
  dropout: float = 0.0,
  unit_forget_bias: bool = False,
  scale_invariant_output: bool = True,
  activation: str = 'si_tanh',
  recurrent_activation: str = 'si_sigmoid',
  dead_gate_slope: float = 0.1,
  initial_scale: float = 1.0,
) -> tf.keras.Model:
  """Builds a scale-invariant LSTM language model.

  The rule of arXiv 2403.08100 applied to an LSTM. Arguments, result and errors
  are those of `si_cifg`.
  """
  return recurrent_models.build(
    layers.SILSTM,
    'si_lstm',
    vocab_size,
    embedding_size=embedding_size,
    units=units,
    projection_units=projection_units,
    num_layers=num_layers,
    tied_embeddings=tied_embeddings,
    size=size,
    normalize_embedding=normalize_embedding,
    dropout=dropout,
    unit_forget_bias=unit_forget_bias,
    scale_invariant_output=scale_invariant_output,
    activation=activation,
    recurrent_activation=recurrent_activation,
    dead_gate_slope=dead_gate_slope,
    **_initializers(initial_scale),
  )


def si_gru(
  vocab_size: int,
  *,
  embedding_size: Optional[int] = None,
  units: Optional[int] = None,
  projection_units: Optional[int] = None,
  num_layers: int = 1,
  tied_embeddings: bool = True,
  size: Optional[str] = None,
  normalize_embedding: bool = True,
  dropout: float = 0.0,
  activation: str = 'si_tanh',
  recurrent_activation: str = 'si_sigmoid',
  dead_gate_slope: float = 0.1,
  initial_scale: float = 1.0,
) -> tf.keras.Model:
  """Builds a scale-invariant GRU language model.

  The rule of arXiv 2403.08100 applied to a GRU. Arguments, result and errors
  are those of `si_cifg`; there is neither a forget gate nor an activation in
  the output to choose.
  """
  return recurrent_models.build(
    layers.SIGRU,
    'si_gru',
    vocab_size,
    embedding_size=embedding_size,
    units=units,
    projection_units=projection_units,
    num_layers=num_layers,
    tied_embeddings=tied_embeddings,
    size=size,
    normalize_embedding=normalize_embedding,
    dropout=dropout,
    activation=activation,
    recurrent_activation=recurrent_activation,
    dead_gate_slope=dead_gate_slope,
    **_initializers(initial_scale),
  )
