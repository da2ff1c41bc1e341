"""A scan over time for gated recurrent cells with a hand-written gradient.

The loop contains only the recurrent product and the gates, which depend on the
previous step. The backward loop collects the gradients of the pre-activations;
weight gradients are then one product each over all steps.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional, Sequence, Tuple

import tensorflow as tf

from si_federated.layers import static_graphs

MAX_UNROLLED_STEPS = 32


class Gates(NamedTuple):
  """A recurrent cell as a map from pre-activations to output.

  Attributes:
    step: `(z [B, K*H], c [B, H]) -> (m [B, H], new c [B, H], residuals)`, where
      m is the output before projection and the residuals are tensors kept for
      the backward pass.
    coefficients: `(residuals [T, ...], c before each step [T, B, H], valid
      [T, B, 1] or None) -> tuple of [T, ...]`: the part of the backward pass
      that is independent of the incoming gradient, for all steps at once. On
      invalid steps `pull` must return a zero dz and an unchanged dc.
    pull: `(coefficients of a step, dm, dc) -> (dz, dc before the step)`.
  """

  step: Callable[..., Tuple[tf.Tensor, tf.Tensor, Tuple[tf.Tensor, ...]]]
  coefficients: Callable[..., Tuple[tf.Tensor, ...]]
  pull: Callable[..., Tuple[tf.Tensor, tf.Tensor]]


def _loop(
  step: Callable,
  carry: Tuple,
  inputs: Sequence[tf.Tensor],
  *,
  unroll: bool,
  reverse: bool = False,
) -> Tuple[Tuple, Tuple[tf.Tensor, ...]]:
  """Folds `step(carry, *slices) -> (carry, outputs)` over the leading axis."""
  if unroll:
    slices = list(zip(*(tf.unstack(tensor) for tensor in inputs)))
    collected = []
    for current in reversed(slices) if reverse else slices:
      carry, outputs = step(carry, *current)
      collected.append(outputs)
    if reverse:
      collected.reverse()
    return carry, tuple(tf.stack(column) for column in zip(*collected))

  length = tf.shape(inputs[0])[0]
  # One step outside the loop gives the outputs' dtypes and shapes; the graph
  # optimizer prunes it, since its values are unused.
  _, example = step(carry, *(tensor[0] for tensor in inputs))
  arrays = tuple(
    tf.TensorArray(output.dtype, size=length, element_shape=output.shape)
    for output in example
  )

  def body(time, carry, arrays):
    index = length - 1 - time if reverse else time
    new_carry, outputs = step(
      carry, *(tf.gather(tensor, index) for tensor in inputs)
    )
    for new, old in zip(new_carry, carry):
      new.set_shape(old.shape)
    written = (array.write(index, out) for array, out in zip(arrays, outputs))
    return time + 1, tuple(new_carry), tuple(written)

  _, carry, arrays = tf.while_loop(
    lambda time, *_: time < length, body, (0, tuple(carry), arrays)
  )
  return carry, tuple(array.stack() for array in arrays)


def scan(
  x: tf.Tensor,
  recurrent_kernel: tf.Tensor,
  gates: Gates,
  *,
  units: int,
  initial_state: Optional[Tuple[tf.Tensor, tf.Tensor]] = None,
  projection: Optional[Tuple[tf.Tensor, tf.Tensor]] = None,
  mask: Optional[tf.Tensor] = None,
  recurrent_dropout_mask: Optional[tf.Tensor] = None,
  unroll: Optional[bool] = None,
) -> Tuple[tf.Tensor, tf.Tensor]:
  """Runs a gated cell over time.

  z_t = x_t + h_{t-1} U; m_t, c_t = gates(z_t, c_{t-1}); h_t = m_t P + b_p, or
  m_t without a projection.

  Args:
    x: `[T, B, K*H]` input products of all steps, bias included.
    recurrent_kernel: U, `[R, K*H]`, or with fewer columns: then the last
      columns of x get no recurrent product.
    gates: The cell.
    units: H, the size of c.
    initial_state: h `[B, R]` and c `[B, H]` before the first step; zero if
      `None`, which saves the first recurrent product.
    projection: P `[H, R]` and b_p `[R]`, or `None`: then R is H.
    mask: `[T, B]` booleans; where false, h and c stay as they are.
    recurrent_dropout_mask: `[B, R]` factors for h before the recurrent product.
    unroll: Whether to unroll the loop over time; `None` unrolls at most
      `MAX_UNROLLED_STEPS` steps.

  Returns:
    h of all steps `[T, B, R]` and the last c `[B, H]`.

  Raises:
    ValueError: If `unroll` is true and T is not static.
  """
  steps = x.shape[0]
  if unroll and not steps:
    raise ValueError(
      'unroll=True needs a known number of time steps, but the time axis of '
      'the input has none: give it a static length or leave unroll unset.'
    )
  if unroll is None:
    unroll = bool(steps) and steps <= MAX_UNROLLED_STEPS
    unroll = unroll and not static_graphs.is_requested()
  valid = None if mask is None else tf.cast(mask, x.dtype)[..., tf.newaxis]
  batch = tf.shape(x)[1]
  if initial_state is None and not unroll:
    sizes = (recurrent_kernel.shape[0], units)
    initial_state = tuple(tf.zeros([batch, n], x.dtype) for n in sizes)
  # While unrolling, `None` stands for zero and costs nothing.
  starts_at_zero = initial_state is None

  def drop(h):
    return h if recurrent_dropout_mask is None else h * recurrent_dropout_mask

  def recurrent_part(dz):
    width = recurrent_kernel.shape[-1]
    return dz if dz.shape[-1] == width else dz[..., :width]

  def run(x, kernel, *others):
    rest = list(others)
    h_0, c_0 = (None, None) if starts_at_zero else (rest.pop(0), rest.pop(0))
    zeros = tf.zeros([batch, units], x.dtype) if starts_at_zero else c_0

    def forward(carry, x_t, *masked):
      h, c = carry
      z = x_t if h is None else add_product(x_t, tf.matmul(drop(h), kernel))
      m, new_c, residuals = gates.step(z, zeros if c is None else c)
      new_h = m if projection is None else tf.matmul(m, rest[0]) + rest[1]
      if masked:
        new_h = tf.where(
          masked[0], new_h, tf.zeros_like(new_h) if h is None else h
        )
        new_c = tf.where(masked[0], new_c, zeros if c is None else c)
      outputs = (new_h, new_c, *residuals)
      return (new_h, new_c), (outputs if projection is None else (m, *outputs))

    inputs = [x] if mask is None else [x, mask[..., tf.newaxis]]
    (_, last_c), outputs = _loop(forward, (h_0, c_0), inputs, unroll=unroll)
    m, outputs = (
      (None, outputs) if projection is None else (outputs[0], outputs[1:])
    )
    h, c, residuals = outputs[0], outputs[1], outputs[2:]

    def gradient(dh_all, dc_last):
      previous_c = tf.concat([zeros[tf.newaxis], c[:-1]], axis=0)
      coefficients = gates.coefficients(residuals, previous_c, valid)
      kernel_t = _transposed(kernel)
      projection_t = None if projection is None else _transposed(rest[0])

      def backward(carry, dh, *current):
        dh_next, dc_next = carry
        dh = dh if dh_next is None else dh + dh_next
        dm = dh if projection_t is None else tf.matmul(dh, projection_t)
        if valid is not None:
          held, current = current[0], current[1:]
        dz, dc = gates.pull(current, dm, dc_next)
        dh_before = drop(tf.matmul(recurrent_part(dz), kernel_t))
        if valid is not None:
          dh_before += dh * held
        return (dh_before, dc), ((dz,) if projection is None else (dz, dh))

      inputs = [dh_all, *coefficients]
      if valid is not None:
        inputs.insert(1, 1 - valid)
      carry = (None if unroll else tf.zeros_like(dh_all[0]), dc_last)
      carry, outputs = _loop(
        backward, carry, inputs, unroll=unroll, reverse=True
      )
      dz = outputs[0]
      dz_recurrent = recurrent_part(dz)
      if starts_at_zero:
        # The initial h is zero and contributes nothing.
        later = None if mask is None else mask[1:]
        gradients = [dz, _outer(drop(h[:-1]), dz_recurrent[1:], later)]
      else:
        before = tf.concat([h_0[tf.newaxis], h[:-1]], axis=0)
        gradients = [dz, _outer(drop(before), dz_recurrent, mask), *carry]
      if projection is not None:
        dh = outputs[1] if valid is None else outputs[1] * valid
        gradients += [_outer(m, dh, mask), tf.reduce_sum(dh, axis=[0, 1])]
      return gradients

    return (h, last_c), gradient

  arguments = [x, recurrent_kernel, *(initial_state or ()), *(projection or ())]
  h, last_c = tf.custom_gradient(run)(*arguments)
  h.set_shape([steps, x.shape[1], recurrent_kernel.shape[0]])
  return h, last_c


def add_product(x: tf.Tensor, product: tf.Tensor) -> tf.Tensor:
  """Adds the recurrent product to the input product, which may be wider.

  Args:
    x: `[B, M]`.
    product: `[B, N]` with N at most M.

  Returns:
    `[B, M]`; the last M - N columns are those of x.
  """
  width = product.shape[-1]
  if x.shape[-1] == width:
    return x + product
  return tf.concat([x[:, :width] + product, x[:, width:]], axis=-1)


def _transposed(matrix: tf.Tensor) -> tf.Tensor:
  """Returns a transposed copy of a matrix for the products of all steps.

  When the left factor has only as many rows as a batch, a product with
  `transpose_b=True` takes twice as long as one with a copy. The detour through
  three axes keeps TensorFlow's optimizer from folding the transposition into
  the products.
  """
  rows, columns = matrix.shape
  copy = tf.transpose(tf.reshape(matrix, [1, rows, columns]), [0, 2, 1])
  return tf.reshape(copy, [columns, rows])


def _outer(
  left: tf.Tensor, right: tf.Tensor, mask: Optional[tf.Tensor]
) -> tf.Tensor:
  """Sums left^T right over time and batch: `[T, B, M]`, `[T, B, N]`.

  Steps where the mask is false contribute nothing; they are skipped unless
  shapes must be static.
  """
  if mask is not None and static_graphs.shapes_are_static():
    right = tf.where(mask[..., tf.newaxis], right, tf.zeros_like(right))
  left = tf.reshape(left, [-1, left.shape[-1]])
  right = tf.reshape(right, [-1, right.shape[-1]])
  if mask is not None and not static_graphs.shapes_are_static():
    rows = tf.where(tf.reshape(mask, [-1]))[:, 0]
    left, right = tf.gather(left, rows), tf.gather(right, rows)
  return tf.matmul(left, right, transpose_a=True)
