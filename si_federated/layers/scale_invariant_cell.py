"""What the scale-invariant LSTM and CIFG cells have in common."""

from __future__ import annotations

from typing import Any, Callable, Dict

import tensorflow as tf


class ScaleInvariant(tf.keras.layers.Layer):
  """Makes a `GatedCell` scale invariant (arXiv 2403.08100); listed before it.

  SI-σ takes the place of the sigmoid in all gates, SI-tanh that of tanh in the
  candidate g and, with `scale_invariant_output`, in tanh(c_t) as well.

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
