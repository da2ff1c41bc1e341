"""GRU with Keras's weights and its scale-invariant form."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import tensorflow as tf

from si_federated.layers import (
  activations,
  gated_cell,
  gated_rnn,
  gru_gates,
)
from si_federated.layers.checks import check_groups


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class GRUCell(gated_cell.GatedCell):
  """GRU cell as `tf.keras.layers.GRUCell` with `reset_after=True`.

  u, r = σ(W x_t + U h_{t-1} + b) each;
  g = tanh(W_g x_t + b_g + r (U_g h_{t-1} + b'_g)); c_t = u c_{t-1} + (1 - u) g;
  h_t = c_t, times the projection if there is one. Weights: `kernel [D, 3H]`,
  `recurrent_kernel [R, 3H]` and `bias [2, 3H]`, for the products of
  input and state, in column blocks update, reset, candidate;
  `projection_kernel [H, R]`, `projection_bias [R]`. The state is h `[B, H]`
  alone, or with a projection h `[B, R]` and c `[B, H]`.

  See `GatedCell` for the arguments; there is no `unit_forget_bias`.
  """

  kind = gru_gates.GRU_KIND

  def __init__(
    self,
    units: int,
    activation: Any = 'tanh',
    recurrent_activation: Any = 'sigmoid',
    **kwargs: Any,
  ) -> None:
    super().__init__(
      units, activation, recurrent_activation, unit_forget_bias=False, **kwargs
    )
    if not self.projection_units:
      self.state_size = [units]

  @property
  def bias_shape(self) -> Tuple[int, ...]:
    """The shape of the bias: rows for the products of input and state."""
    return (2, 3 * self.units)

  def input_product(self, inputs: tf.Tensor) -> tf.Tensor:
    """Returns `[N, 4H]` in the order of `gru_gates.BLOCKS`."""
    x = tf.matmul(inputs, self.weight('kernel'))
    from_state = tf.zeros_like(x[:, : self.units])
    gates_width = 2 * self.units
    if self.use_bias:
      to_input, to_state = tf.unstack(self.weight('bias'))
      x = tf.nn.bias_add(
        x,
        tf.concat(
          [
            to_input[:gates_width] + to_state[:gates_width],
            to_input[gates_width:],
          ],
          axis=0,
        ),
      )
      from_state += to_state[gates_width:]
    return tf.concat(
      [x[:, :gates_width], from_state, x[:, gates_width:]], axis=-1
    )

  def get_config(self) -> Dict[str, Any]:
    """Returns the constructor's arguments."""
    config = super().get_config()
    del config['unit_forget_bias']
    return config


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class GRU(gated_rnn.GatedRNN):
  """GRU layer; without a projection it equals `tf.keras.layers.GRU`.

  See `GatedRNN` and `GRUCell` for the arguments.

  Example:

  >>> layer = GRU(670, projection_units=96, return_sequences=True)
  >>> layer(tf.zeros([2, 20, 96])).shape
  TensorShape([2, 20, 96])
  """

  cell_class = GRUCell
  # Keras reads this attribute of layers named GRU when it loads an H5 file.
  reset_after = True


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class SIGRUCell(GRUCell):
  """GRU cell with scale-invariant activations.

  As `GRUCell`, with SI-σ for the gates u and r and SI-tanh for the candidate g,
  as arXiv 2403.08100 derives SI-CIFG from CIFG. Gates without a positive
  pre-activation are zero and pass the gradient with slope `dead_gate_slope`.

  Args:
    units: H, the number of hidden units.
    activation: Activation of the candidate.
    recurrent_activation: Activation of the gates.
    dead_gate_slope: Slope of the gradient of gates that are all zero.
    num_groups: The number of groups of units, each with its own maximum, so
      that a large unit scales down only its own group; it divides `units`. The
      paper has one group, which is faster.
    **kwargs: See `GatedCell`.
  """

  def __init__(
    self,
    units: int,
    activation: Any = 'si_tanh',
    recurrent_activation: Any = 'si_sigmoid',
    *,
    dead_gate_slope: float = 0.1,
    num_groups: int = 1,
    **kwargs: Any,
  ) -> None:
    super().__init__(
      units,
      activation,
      recurrent_activation,
      dead_gate_slope=dead_gate_slope,
      **kwargs,
    )
    self.num_groups = check_groups(num_groups, units)

  def get_config(self) -> Dict[str, Any]:
    """Returns the constructor's arguments."""
    return {**super().get_config(), 'num_groups': self.num_groups}


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class SIGRU(gated_rnn.GatedRNN):
  """Scale-invariant GRU layer, by the rule of arXiv 2403.08100.

  See `GatedRNN` and `SIGRUCell` for the arguments.

  Example:

  >>> layer = SIGRU(670, projection_units=96, return_sequences=True)
  >>> layer(tf.zeros([2, 20, 96])).shape
  TensorShape([2, 20, 96])
  """

  cell_class = SIGRUCell
