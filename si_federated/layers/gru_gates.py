"""The gates of GRU cells and their hand-written derivative."""

from __future__ import annotations

from typing import Callable, Tuple

import tensorflow as tf

from si_federated.layers import activations, gates, tapping
from si_federated.layers.recurrence import Gates

# The columns of the pre-activations. The first three are those of the recurrent
# kernel: the reset gate multiplies the candidate's recurrent product alone, so
# that its input product stands beside it.
BLOCKS = ('update', 'reset', 'candidate from state', 'candidate from input')


def make_gates(
  *,
  activation: Callable,
  recurrent_activation: Callable,
  dead_slope: float = 0.0,
  dtype: str = 'float32',
) -> Gates:
  """Builds the gates of a GRU cell for `recurrence.scan`.

  Args:
    activation: Activation of the candidate.
    recurrent_activation: Activation of the gates.
    dead_slope: See `si_sigmoid`.
    dtype: The type computed in.

  Returns:
    The gates, for pre-activations in the order of `BLOCKS`.
  """
  rules = gates.find_rules(
    [recurrent_activation, activation], dead_slope, dtype
  )
  if rules:
    return _written_out(*rules)
  gate = gates.with_dead_slope(recurrent_activation, dead_slope)
  return gates.differentiated(lambda z, c: apply_gates(activation, gate, z, c))


def apply_gates(
  activation: Callable,
  recurrent_activation: Callable,
  z: tf.Tensor,
  c: tf.Tensor,
) -> Tuple[tf.Tensor, tf.Tensor]:
  """Computes one step from the pre-activations, differentiable as it stands.

  Args:
    activation: Activation of the candidate.
    recurrent_activation: Activation of the gates.
    z: `[B, 4H]` pre-activations in the order of `BLOCKS`.
    c: `[B, H]` carry before the step.

  Returns:
    The output before projection and the new carry: the same `[B, H]`.
  """
  update, reset, from_state, from_input = tf.split(z, len(BLOCKS), axis=-1)
  candidate = activation(from_input + recurrent_activation(reset) * from_state)
  c = candidate + recurrent_activation(update) * (c - candidate)
  return c, c


def _written_out(gate: gates.Rule, candidate: gates.Rule) -> Gates:
  rules = (gate, candidate, gate)

  def step(z, c):
    update, reset, from_state, from_input = tf.split(z, len(BLOCKS), axis=-1)
    u, u_maximum = gate.forward(update)
    r, r_maximum = gate.forward(reset)
    if gate.rectified:
      tapping.tap('update_gate', u)
      tapping.tap('reset_gate', r)
    g, g_maximum = candidate.forward(from_input + r * from_state)
    c = g + u * (c - g)
    maxima = (u_maximum, g_maximum, r_maximum)
    residuals = (u, g, r, from_state, *maxima)
    return c, c, tuple(tensor for tensor in residuals if tensor is not None)

  def coefficients(residuals, previous_c, valid):
    u, g, r, from_state = residuals[:4]
    maxima = list(residuals[4:])
    # What comes to the activated blocks: from the carry to update gate and
    # candidate, from the candidate's pre-activation to the reset gate.
    factors = (previous_c - g, 1 - u, from_state)
    scales = [
      factor * rule.scale(y, maxima.pop(0) if rule.scale_invariant else None)
      for factor, rule, y in zip(factors, rules, (u, g, r))
    ]
    # What passes to the carry before: of the new carry's gradient, and of the
    # output's, of which a held step takes nothing.
    keep = from_output = u
    if valid is not None:
      scales = [scale * valid for scale in scales]
      from_output = u * valid
      keep = from_output + (1 - valid)
    shares = []
    for rule, y in zip(rules, (u, g, r)):
      if rule.scale_invariant:
        shares += [y, activations.max_share(y)]
    return (*scales, r, keep, from_output, *shares)

  def pull(current, dm, dc):
    u_scale, g_scale, r_scale, r, keep, from_output = current[:6]
    shares = list(current[6:])

    def through(rule, upstream):
      if not rule.scale_invariant:
        return upstream
      y, share = shares.pop(0), shares.pop(0)
      inner = tf.reduce_sum(upstream * y, axis=-1, keepdims=True)
      return upstream - share * inner

    total = dc + dm
    update = through(gate, total * u_scale)
    from_input = through(candidate, total * g_scale)
    reset = through(gate, from_input * r_scale)
    dz = tf.concat([update, reset, from_input * r, from_input], axis=-1)
    return dz, dc * keep + dm * from_output

  return Gates(step, coefficients, pull)
