"""The arguments that the scale-invariant LSTM and CIFG cells share."""

from __future__ import annotations

from typing import Any, Callable, Dict

import tensorflow as tf

from si_federated.layers.checks import check_groups


class ScaleInvariant(tf.keras.layers.Layer):
  """Makes a `GatedCell` scale invariant (arXiv 2403.08100), as its first base.

  SI-σ replaces the sigmoid in all gates; SI-tanh replaces tanh in the candidate
  g and, with `scale_invariant_output`, in tanh(c_t).

  Differs from the paper: gates without a positive pre-activation, which are 0/0
  in the paper, are zero here and pass the gradient with slope
  `dead_gate_slope`. The paper does not give initial biases; those of the forget
  gate are zero here, since a bias of one makes all units of a max-normalised
  gate nearly equal.

  Args:
    units: H, the number of hidden units.
    activation: Activation of the candidate.
    recurrent_activation: Activation of the gates.
    unit_forget_bias: Whether the forget gate's bias starts at one.
    dead_gate_slope: Slope of the gradient of gates that are all zero.
    scale_invariant_output: Whether the output applies `activation` to the
      carry, rather than tanh.
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
    unit_forget_bias: bool = False,
    dead_gate_slope: float = 0.1,
    scale_invariant_output: bool = True,
    num_groups: int = 1,
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
    self.num_groups = check_groups(num_groups, units)

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
      'num_groups': self.num_groups,
    }
