"""The gates of GRU cells and their hand-written derivative."""

from __future__ import annotations

from typing import Sequence

import tensorflow as tf

from si_federated.layers import activations, gates, tapping
from si_federated.layers.recurrence import Gates

# Columns of the pre-activations. The first three are those of the recurrent
# kernel. The reset gate multiplies only the recurrent product of the candidate,
# so that its input product is a block of its own.
BLOCKS = ('update', 'reset', 'candidate from state', 'candidate from input')


def _apply(functions, z, c):
  gate, _, activation, _ = functions
  update, reset, from_state, from_input = tf.split(z, len(BLOCKS), axis=-1)
  candidate = activation(from_input + gate(reset) * from_state)
  c = candidate + gate(update) * (c - candidate)
  return c, c


def _written_out(all_rules: Sequence[gates.Rule]) -> Gates:
  gate, _, candidate, _ = all_rules
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
    # Derivatives by the activated blocks: of the carry by update gate and
    # candidate, of the candidate's pre-activation by the reset gate.
    factors = (previous_c - g, 1 - u, from_state)
    scales = [
      factor * rule.scale(y, maxima.pop(0) if rule.scale_invariant else None)
      for factor, rule, y in zip(factors, rules, (u, g, r))
    ]
    # Derivatives by the previous carry: of the new carry, and of the output,
    # which passes no gradient on a masked step.
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


GRU_KIND = gates.Kind(('update', 'reset', 'candidate'), _apply, _written_out)
