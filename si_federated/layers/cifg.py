"""CIFG and its scale-invariant form, as Keras cells and layers."""

from __future__ import annotations

from typing import Any, Callable, Dict

import tensorflow as tf

from si_federated.layers import activations, gated_cell, gated_rnn, gates


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
class SICIFGCell(gated_cell.GatedCell):
  """CIFG cell with scale-invariant activations (arXiv 2403.08100).

  As `CIFGCell`, with SI-σ for the gates f and o, SI-tanh for the candidate g
  and, with `scale_invariant_output`, SI-tanh for tanh(c_t) as well.

  Differs from the paper: gates with no positive pre-activation, 0/0 there, are
  zero and let the gradient through with `dead_gate_slope`; nothing is known of
  the paper's biases, and those of the forget gate start at zero here, since a
  bias of one makes all units of a max-normalised gate nearly equal.

  Args:
    units: H, the number of hidden units.
    activation: Activation of the candidate.
    recurrent_activation: Activation of the gates.
    unit_forget_bias: Whether the forget gate's bias starts at one.
    dead_gate_slope: Slope of the gradient of gates that are all zero.
    scale_invariant_output: Whether the carry goes through `activation` in the
      output; through tanh if not.
    **kwargs: See `GatedCell`.
  """

  kind = gates.CIFG_KIND

  def __init__(
    self,
    units: int,
    activation: Any = 'si_tanh',
    recurrent_activation: Any = 'si_sigmoid',
    *,
    unit_forget_bias: bool = False,
    dead_gate_slope: float = 0.1,
    scale_invariant_output: bool = True,
    **kwargs: Any,
  ) -> None:
    super().__init__(
      units,
      activation,
      recurrent_activation,
      unit_forget_bias=unit_forget_bias,
      dead_gate_slope=dead_gate_slope,
      **kwargs,
    )
    self.scale_invariant_output = scale_invariant_output

  @property
  def output_activation(self) -> Callable:
    """The activation of the carry in the output."""
    if self.scale_invariant_output:
      return self.activation
    return tf.keras.activations.tanh

  def get_config(self) -> Dict[str, Any]:
    """Returns the constructor's arguments."""
    return {
      **super().get_config(),
      'scale_invariant_output': self.scale_invariant_output,
    }


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
