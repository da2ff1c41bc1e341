"""The gates of LSTM and CIFG cells and their hand-written derivatives."""

from __future__ import annotations

import functools
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import tensorflow as tf

from si_federated.layers import activations, tapping
from si_federated.layers.recurrence import Gates


class Rule(NamedTuple):
  """An activation whose derivative follows from its output and maximum.

  dz = v - s <v, y> with v = scale * dy; s is `max_share` if the activation is
  scale invariant, else zero. A rectified one is SI-σ, whose gates can be dead.
  """

  forward: Callable[[tf.Tensor], Tuple[tf.Tensor, Optional[tf.Tensor]]]
  scale: Callable[..., tf.Tensor]
  scale_invariant: bool = False
  rectified: bool = False


class Kind(NamedTuple):
  """The equations of a gated cell.

  Attributes:
    blocks: Names of the column blocks of the kernels in order; the candidate is
      named `candidate`.
    apply: `(activations, z, c) -> (m, new c)`: one step (see `Gates.step`),
      differentiable by TensorFlow. The activations are those of the blocks,
      then that of the carry in the output.
    written_out: `rules of the activations -> Gates`: the same with its
      derivative written out.
  """

  blocks: Tuple[str, ...]
  apply: Callable[
    [Sequence[Callable], tf.Tensor, tf.Tensor], Tuple[tf.Tensor, tf.Tensor]
  ]
  written_out: Callable[[Sequence[Rule]], Gates]


def _pointwise(function, scale):
  return Rule(lambda z: (function(z), None), lambda y, _: scale(y))


def _rules(dead_slope: float) -> Dict[Callable, Rule]:
  def rectified_scale(y, maximum):
    if dead_slope:
      maximum = activations.first_derivative_only(maximum)
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


def _find_rules(
  functions: Sequence[Callable], dead_slope: float, dtype: str
) -> Optional[List[Rule]]:
  """Returns the rules of activations, or `None` if TensorFlow differentiates.

  TensorFlow does so if an activation has no rule, or if a scale-invariant one
  is computed in float16, where the precomputed products could overflow.
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
  functions: Sequence[Callable],
  dead_slope: float,
  dtype: str,
  num_groups: int = 1,
) -> Gates:
  """Builds the gates of a cell for `recurrence.scan`.

  The derivative is written out for tanh, sigmoid, SI-tanh and SI-sigma; for
  other activations, and for scale-invariant ones in float16 or over groups of
  units, TensorFlow differentiates each step.

  Args:
    kind: The equations of the cell.
    functions: The activations, see `Kind.apply`.
    dead_slope: See `si_sigmoid`.
    dtype: The dtype of the computation.
    num_groups: The number of groups of units, each with its own maximum.

  Returns:
    The gates.
  """
  rules = _find_rules(functions, dead_slope, dtype)
  if rules and num_groups == 1:
    return kind.written_out(rules)
  functions = complete(functions, dead_slope, num_groups)
  return _differentiated(lambda z, c: kind.apply(functions, z, c))


def complete(
  functions: Sequence[Callable], dead_slope: float, num_groups: int = 1
) -> List[Callable]:
  """Returns activations with the options of scale-invariant ones.

  Args:
    functions: Activation functions.
    dead_slope: See `si_sigmoid`.
    num_groups: The number of groups of units, each with its own maximum.

  Returns:
    For each, a function of one tensor `[B, H]`.
  """

  def completed(activation):
    function = activation
    if activation is activations.si_sigmoid and dead_slope:
      function = functools.partial(activation, dead_slope=dead_slope)
    if num_groups == 1 or activation not in activations.SCALE_INVARIANT:
      return function

    def over_groups(z):
      units = z.shape[-1]
      groups = tf.reshape(z, [-1, num_groups, units // num_groups])
      return tf.reshape(function(groups), [-1, units])

    return over_groups

  return [completed(function) for function in functions]


def _differentiated(
  apply: Callable[..., Tuple[tf.Tensor, tf.Tensor]],
) -> Gates:
  """Builds gates whose steps TensorFlow differentiates."""

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


def _apply(combine, functions, z, c):
  blocks = tf.split(z, len(functions) - 1, axis=-1)
  blocks = [function(block) for function, block in zip(functions, blocks)]
  c = combine(blocks[:-1], c)
  return blocks[-1] * functions[-1](c), c


def _written_out(
  names: Tuple[str, ...],
  combine: Callable[..., tf.Tensor],
  factors: Callable[..., List[tf.Tensor]],
  rules: Sequence[Rule],
) -> Gates:
  *rules, out = rules
  forget = names.index('forget')
  num_blocks = len(rules)
  invariant = any(rule.scale_invariant for rule in rules)

  def step(z, c):
    blocks, maxima = zip(
      *(
        rule.forward(block)
        for rule, block in zip(rules, tf.split(z, num_blocks, axis=-1))
      )
    )
    for name, rule, block in zip(names, rules, blocks):
      if rule.rectified:
        tapping.tap(f'{name}_gate', block)
    c = combine(blocks[:-1], c)
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
    derivatives = [*factors(blocks[:-1], previous_c), activated]
    z_scale = tf.concat([f * s for f, s in zip(derivatives, scales)], axis=-1)
    c_scale = blocks[-1] * out_scale
    keep = blocks[forget]
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


def _mixing_kind(
  blocks: Tuple[str, ...],
  combine: Callable[..., tf.Tensor],
  factors: Callable[..., List[tf.Tensor]],
) -> Kind:
  """Returns the kind of a cell that mixes its blocks into the new carry.

  Args:
    blocks: Names of the column blocks; the last one is the output gate.
    combine: `(activated blocks without the output gate, c) -> new c`.
    factors: The derivatives of `combine` by each of its blocks.
  """
  return Kind(
    blocks,
    functools.partial(_apply, combine),
    functools.partial(_written_out, blocks, combine, factors),
  )


def _combine_cifg(blocks, c):
  f, g = blocks
  return g + f * (c - g)


def _combine_lstm(blocks, c):
  i, f, g = blocks
  return f * c + i * g


CIFG_KIND = _mixing_kind(
  ('forget', 'candidate', 'output'),
  _combine_cifg,
  lambda blocks, c: [c - blocks[1], 1 - blocks[0]],
)
LSTM_KIND = _mixing_kind(
  ('input', 'forget', 'candidate', 'output'),
  _combine_lstm,
  lambda blocks, c: [blocks[2], c, blocks[0]],
)
