"""LSTM with Keras's weights and its scale-invariant form."""

from __future__ import annotations

import tensorflow as tf

from si_federated.layers import activations, gated_cell, gated_rnn, gates
from si_federated.layers.scale_invariant_cell import ScaleInvariant


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class LSTMCell(gated_cell.GatedCell):
  """LSTM cell; the weights are laid out as in `tf.keras.layers.LSTMCell`.

  i, f, o = σ(W x_t + U h_{t-1} + b) each; g = tanh(...);
  c_t = f c_{t-1} + i g; h_t = o tanh(c_t), times the projection if there is
  one. Weights: `kernel [D, 4H]`, `recurrent_kernel [R, 4H]`, `bias [4H]` in
  column blocks input, forget, candidate, output; `projection_kernel [H, R]`,
  `projection_bias [R]`. See `GatedCell` for the arguments.
  """

  kind = gates.LSTM_KIND


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class LSTM(gated_rnn.GatedRNN):
  """LSTM layer; without a projection it equals `tf.keras.layers.LSTM`.

  See `GatedRNN` and `GatedCell` for the arguments.

  Example:

  >>> layer = LSTM(670, projection_units=96, return_sequences=True)
  >>> layer(tf.zeros([2, 20, 96])).shape
  TensorShape([2, 20, 96])
  """

  cell_class = LSTMCell


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class SILSTMCell(ScaleInvariant, gated_cell.GatedCell):
  """LSTM cell with scale-invariant activations.

  Weights and equations are those of `LSTMCell`, with SI-σ and SI-tanh for σ and
  tanh, as arXiv 2403.08100 derives SI-CIFG from CIFG. Unlike in SI-CIFG, the
  carry can grow with every step; max-normalisation bounds the output. See
  `ScaleInvariant` for the arguments.
  """

  kind = gates.LSTM_KIND


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class SILSTM(gated_rnn.GatedRNN):
  """Scale-invariant LSTM layer, by the rule of arXiv 2403.08100.

  See `GatedRNN` and `SILSTMCell` for the arguments.

  Example:

  >>> layer = SILSTM(670, projection_units=96, return_sequences=True)
  >>> layer(tf.zeros([2, 20, 96])).shape
  TensorShape([2, 20, 96])
  """

  cell_class = SILSTMCell
