"""The gates of LSTM and CIFG cells and their hand-written derivatives."""

from __future__ import annotations

from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import tensorflow as tf

from si_federated.layers import activations, tapping
from si_federated.layers.recurrence import Gates


class Kind(NamedTuple):
  """How a cell mixes its activated blocks into the new carry.

  Attributes:
    blocks: Names of the column blocks of the kernels in order; the output gate
      is the last one, the candidate is named `candidate`.
    combine: `(activated blocks without the output gate, c) -> new c`.
    factors: The derivatives of `combine` by each of its blocks.
    forget: Index of the forget gate.
  """

  blocks: Tuple[str, ...]
  combine: Callable[..., tf.Tensor]
  factors: Callable[..., List[tf.Tensor]]
  forget: int


def _combine_cifg(blocks, c):
  f, g = blocks
  return g + f * (c - g)


def _combine_lstm(blocks, c):
  i, f, g = blocks
  return f * c + i * g


CIFG_KIND = Kind(
  blocks=('forget', 'candidate', 'output'),
  combine=_combine_cifg,
  factors=lambda blocks, c: [c - blocks[1], 1 - blocks[0]],
  forget=0,
)
LSTM_KIND = Kind(
  blocks=('input', 'forget', 'candidate', 'output'),
  combine=_combine_lstm,
  factors=lambda blocks, c: [blocks[2], c, blocks[0]],
  forget=1,
)


class Rule(NamedTuple):
  """An activation whose derivative follows from its output and its maximum.

  dz = v - s <v, y> with v = scale * dy; s is `max_share` if the activation is
  scale invariant, else zero. A rectified one is SI-σ, which can be dead.
  """

  forward: Callable[[tf.Tensor], Tuple[tf.Tensor, Optional[tf.Tensor]]]
  scale: Callable[..., tf.Tensor]
  scale_invariant: bool = False
  rectified: bool = False


def _pointwise(function, scale):
  return Rule(lambda z: (function(z), None), lambda y, _: scale(y))


def _rules(dead_slope: float) -> Dict[Callable, Rule]:
  def rectified_scale(y, maximum):
    scale = tf.sign(y) * activations.inverse_maximum(maximum)
    if dead_slope:
      scale += dead_slope * tf.cast(maximum <= 0, y.dtype)
    return scale

  return {
    tf.keras.activations.tanh: _pointwise(tf.tanh, lambda y: 1 - y * y),
    tf.keras.activations.sigmoid: _pointwise(tf.sigmoid, lambda y: y * (1 - y)),
    activations.si_tanh: Rule(
      lambda z: activations.max_normalize(z, rectify=False),
      lambda _, maximum: activations.inverse_maximum(maximum),
      scale_invariant=True,
    ),
    activations.si_sigmoid: Rule(
      lambda z: activations.max_normalize(z, rectify=True),
      rectified_scale,
      scale_invariant=True,
      rectified=True,
    ),
  }


def find_rules(
  functions: Sequence[Callable], dead_slope: float, dtype: str
) -> Optional[List[Rule]]:
  """Finds the written-out derivatives of activations.

  Args:
    functions: Activations.
    dead_slope: See `si_sigmoid`.
    dtype: The type computed in.

  Returns:
    Their rules, or `None` if TensorFlow has to differentiate: if there is no
    rule for one of them, or a scale-invariant one is computed in float16, where
    the products taken in advance could overflow.
  """
  rules = _rules(dead_slope)
  found = [rules[function] for function in functions if function in rules]
  if len(found) < len(functions):
    return None
  if dtype == 'float16' and any(rule.scale_invariant for rule in found):
    return None
  return found


def make_gates(
  kind: Kind,
  *,
  activation: Callable,
  recurrent_activation: Callable,
  output_activation: Callable,
  dead_slope: float = 0.0,
  dtype: str = 'float32',
) -> Gates:
  """Builds the gates of a cell for `recurrence.scan`.

  With tanh, sigmoid, SI-tanh and SI-sigma the derivative is written out; where
  `find_rules` knows none, a step is differentiated by TensorFlow.

  Args:
    kind: `CIFG_KIND` or `LSTM_KIND`.
    activation: Activation of the candidate.
    recurrent_activation: Activation of the gates.
    output_activation: Activation of the carry in the output.
    dead_slope: See `si_sigmoid`.
    dtype: The type computed in.

  Returns:
    The gates.
  """
  functions = [
    activation if name == 'candidate' else recurrent_activation
    for name in kind.blocks
  ]
  rules = find_rules([*functions, output_activation], dead_slope, dtype)
  if rules:
    return _written_out(kind, rules[:-1], rules[-1])
  functions = [with_dead_slope(f, dead_slope) for f in functions]
  return differentiated(
    lambda z, c: apply_gates(kind, functions, output_activation, z, c)
  )


def with_dead_slope(activation: Callable, dead_slope: float) -> Callable:
  """Returns SI-sigma with its slope set, any other activation unchanged.

  Args:
    activation: An activation function.
    dead_slope: See `si_sigmoid`.

  Returns:
    A function of one tensor.
  """
  if activation is activations.si_sigmoid and dead_slope:
    return lambda z: activations.si_sigmoid(z, dead_slope=dead_slope)
  return activation


def apply_gates(
  kind: Kind,
  functions: List[Callable],
  output_activation: Callable,
  z: tf.Tensor,
  c: tf.Tensor,
) -> Tuple[tf.Tensor, tf.Tensor]:
  """Computes one step from the pre-activations, differentiable as it stands.

  Args:
    kind: `CIFG_KIND` or `LSTM_KIND`.
    functions: The activations of the blocks.
    output_activation: Activation of the carry in the output.
    z: `[B, K*H]` pre-activations.
    c: `[B, H]` carry before the step.

  Returns:
    The output before projection and the new carry, both `[B, H]`.
  """
  blocks = tf.split(z, len(functions), axis=-1)
  blocks = [function(block) for function, block in zip(functions, blocks)]
  c = kind.combine(blocks[:-1], c)
  return blocks[-1] * output_activation(c), c


def differentiated(
  apply: Callable[..., Tuple[tf.Tensor, tf.Tensor]],
) -> Gates:
  """Builds gates whose steps TensorFlow differentiates.

  Args:
    apply: `(z, c) -> (m, new c)`, see `Gates.step`.

  Returns:
    The gates.
  """

  def step(z, c):
    m, new_c = apply(z, c)
    return m, new_c, (z,)

  def coefficients(residuals, previous_c, valid):
    kept = tf.ones_like(previous_c[..., :1]) if valid is None else valid
    return (*residuals, previous_c, kept)

  def pull(current, dm, dc):
    z, c, kept = current
    with tf.GradientTape() as tape:
      tape.watch((z, c))
      m, new_c = apply(z, c)
    dz, dc_before = tape.gradient(
      (m, new_c), (z, c), output_gradients=(dm * kept, dc * kept)
    )
    return dz, dc_before + dc * (1 - kept)

  return Gates(step, coefficients, pull)


def _written_out(kind: Kind, rules: List[Rule], out: Rule) -> Gates:
  num_blocks = len(rules)
  invariant = any(rule.scale_invariant for rule in rules)

  def step(z, c):
    blocks, maxima = zip(
      *(
        rule.forward(block)
        for rule, block in zip(rules, tf.split(z, num_blocks, axis=-1))
      )
    )
    for name, rule, block in zip(kind.blocks, rules, blocks):
      if rule.rectified:
        tapping.tap(f'{name}_gate', block)
    c = kind.combine(blocks[:-1], c)
    activated, maximum = out.forward(c)
    residuals = (*blocks, activated, *maxima, maximum)
    return (
      blocks[-1] * activated,
      c,
      tuple(r for r in residuals if r is not None),
    )

  def coefficients(residuals, previous_c, valid):
    remaining = list(residuals)
    blocks = [remaining.pop(0) for _ in rules]
    activated = remaining.pop(0)
    scales = [
      rule.scale(block, remaining.pop(0) if rule.scale_invariant else None)
      for rule, block in zip(rules, blocks)
    ]
    out_scale = out.scale(
      activated, remaining.pop(0) if out.scale_invariant else None
    )
    factors = [*kind.factors(blocks[:-1], previous_c), activated]
    z_scale = tf.concat([f * s for f, s in zip(factors, scales)], axis=-1)
    c_scale = blocks[-1] * out_scale
    keep = blocks[kind.forget]
    if valid is not None:
      z_scale, c_scale = z_scale * valid, c_scale * valid
      keep = keep * valid + (1 - valid)
    result = [z_scale, c_scale, keep]
    if out.scale_invariant:
      result += [activated, activations.max_share(activated)]
    if invariant:
      y = tf.stack(blocks, axis=-2)
      share = activations.max_share(y)
      if not all(rule.scale_invariant for rule in rules):
        share *= tf.constant(
          [[float(rule.scale_invariant)] for rule in rules], share.dtype
        )
      result += [y, share]
    return tuple(result)

  def pull(current, dm, dc):
    z_scale, c_scale, keep = current[:3]
    rest = list(current[3:])
    through_output = dm * c_scale
    if out.scale_invariant:
      y, share = rest.pop(0), rest.pop(0)
      through_output -= share * tf.reduce_sum(
        through_output * y, axis=-1, keepdims=True
      )
    dc = dc + through_output
    dz = tf.concat([dc] * (num_blocks - 1) + [dm], axis=-1) * z_scale
    if invariant:
      y, share = rest
      blocks = tf.reshape(dz, [-1, *y.shape[1:]])
      blocks -= share * tf.reduce_sum(blocks * y, axis=-1, keepdims=True)
      dz = tf.reshape(blocks, [-1, dz.shape[-1]])
    return dz, dc * keep

  return Gates(step, coefficients, pull)
