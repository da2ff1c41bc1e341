"""CIFG and its scale-invariant form, as Keras cells and layers."""

from __future__ import annotations

import tensorflow as tf

from si_federated.layers import activations, gated_cell, gated_rnn, gates
from si_federated.layers.scale_invariant_cell import ScaleInvariant


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class CIFGCell(gated_cell.GatedCell):
  """LSTM cell whose input gate is coupled to the forget gate, i = 1 - f.

  f, o = σ(W x_t + U h_{t-1} + b) each; g = tanh(W_g x_t + U_g h_{t-1} + b_g);
  c_t = f c_{t-1} + (1 - f) g; h_t = o tanh(c_t), times the projection if there
  is one. Weights: `kernel [D, 3H]`, `recurrent_kernel [R, 3H]`, `bias [3H]` in
  column blocks forget, candidate, output; `projection_kernel [H, R]`,
  `projection_bias [R]`. See `GatedCell` for the arguments.
  """

  kind = gates.CIFG_KIND


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class CIFG(gated_rnn.GatedRNN):
  """CIFG layer.

  See `GatedRNN` and `CIFGCell` for the arguments.

  Example:

  >>> layer = CIFG(670, projection_units=96, return_sequences=True)
  >>> layer(tf.zeros([2, 20, 96])).shape
  TensorShape([2, 20, 96])
  """

  cell_class = CIFGCell


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class SICIFGCell(ScaleInvariant, gated_cell.GatedCell):
  """CIFG cell with scale-invariant activations (arXiv 2403.08100).

  Weights and equations are those of `CIFGCell`, with SI-σ and SI-tanh for σ and
  tanh; see `ScaleInvariant` for the arguments and departures from the paper.
  """

  kind = gates.CIFG_KIND


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class SICIFG(gated_rnn.GatedRNN):
  """Scale-invariant CIFG layer (arXiv 2403.08100).

  See `GatedRNN` and `SICIFGCell` for the arguments.

  Example:

  >>> layer = SICIFG(670, projection_units=96, return_sequences=True)
  >>> layer(tf.zeros([2, 20, 96])).shape
  TensorShape([2, 20, 96])
  """

  cell_class = SICIFGCell
