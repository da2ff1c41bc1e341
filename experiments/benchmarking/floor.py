"""FedAvg's clients in plain JAX: the lower limit to compare a runtime with.

It needs only JAX and NumPy. As in the runtime, the clients of a group are
vectorized and their steps are a loop; there are no metrics, guards or
conversions.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

KINDS = ('lstm', 'cifg', 'transformer')
# The default number of heads of our Transformers.
HEADS = 8

_PRECISIONS = {'default': None, 'high': 'tensorfloat32', 'highest': 'float32'}


def _recurrent(jax, weights, ids, kind):
  """Returns logits `[B, T, V]` of an LSTM or CIFG, with sizes by its weights.

  A projection is inside the recurrence if the recurrent kernel has fewer or
  more rows than there are units.
  """
  jnp = jax.numpy
  table, kernel, recurrent, bias, projection, shift, *output = weights
  gates = {'lstm': 4, 'cifg': 3}[kind]
  units = kernel.shape[1] // gates
  inside = recurrent.shape[0] != units
  z = jnp.einsum('btd,dg->tbg', table[ids], kernel) + bias

  def step(carry, z):
    h, c = carry
    z = z + h @ recurrent
    if kind == 'lstm':
      i, f, g, o = jnp.split(z, 4, -1)
      c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    else:
      f, g, o = jnp.split(z, 3, -1)
      f = jax.nn.sigmoid(f)
      c = f * c + (1 - f) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    if inside:
      h = h @ projection + shift
    return (h, c), h

  start = (
    jnp.zeros([ids.shape[0], recurrent.shape[0]]),
    jnp.zeros([ids.shape[0], units]),
  )
  _, hidden = jax.lax.scan(step, start, z)
  if not inside:
    hidden = hidden @ projection + shift
  logits = hidden @ output[0] + output[1] if output else hidden @ table.T
  return jnp.swapaxes(logits, 0, 1)


def _transformer(jax, weights, ids, num_heads):
  """Returns logits `[B, T, V]` of a causal pre-norm Transformer."""
  jnp = jax.numpy
  table, *rest = weights
  batch, length = ids.shape
  width = table.shape[1]
  size = width // num_heads

  def norm(x, gain, shift):
    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), -1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-6) * gain + shift

  def heads(x):
    return x.reshape([batch, length, num_heads, size])

  features = np.arange(width)
  angles = np.arange(length)[:, None] * np.exp(
    -math.log(10000.0) / width * (features // 2 * 2)
  )
  waves = np.sin(angles + features % 2 * (math.pi / 2)).astype(np.float32)
  x = table[ids] * width**0.5 + waves
  allowed = np.tril(np.ones([length, length], bool))
  while len(rest) > 2:
    (g1, b1, q, qb, k, kb, v, vb, o, ob, g2, b2, inner, ib, outer, outb) = rest[
      :16
    ]
    rest = rest[16:]
    y = norm(x, g1, b1)
    scores = jnp.einsum(
      'btnh,bsnh->bnts', heads(y @ q + qb) * size**-0.5, heads(y @ k + kb)
    )
    mixing = jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf))
    mixed = jnp.einsum('bnts,bsnh->btnh', mixing, heads(y @ v + vb))
    x = x + mixed.reshape([batch, length, width]) @ o + ob
    y = norm(x, g2, b2)
    x = x + jax.nn.relu(y @ inner + ib) @ outer + outb
  return norm(x, *rest) @ table.T


class Floor:
  """A round of FedAvg with plain SGD, clients weighted by their examples.

  Attributes:
    compile_secs: Seconds of compiling.
    bytes: The most memory that a program takes on the device, or None.
  """

  def __init__(
    self,
    jax,
    weights,
    groups,
    *,
    matmul_precision,
    kind,
    learning_rate,
    memory_of,
    num_heads=HEADS,
  ):
    """Compiles the programs.

    Args:
      jax: The module.
      weights: The model's trainable weights, in its order.
      groups: For each group of clients, inputs and labels `[K, S, B, T]`,
        numbers of batches `[K]`, and whether each client is real, `[K]`.
      matmul_precision: 'default', 'high' or 'highest'.
      kind: 'lstm', 'cifg' or 'transformer'.
      learning_rate: The learning rate of clients.
      memory_of: Returns the bytes that a compiled program takes, or None.
      num_heads: A Transformer's number of heads.
    """
    self._jax, self._weights = jax, weights
    jnp = jax.numpy

    def logits_of(weights, ids):
      if kind == 'transformer':
        return _transformer(jax, weights, ids, num_heads)
      return _recurrent(jax, weights, ids, kind)

    def loss(weights, ids, labels):
      logs = jax.nn.log_softmax(logits_of(weights, ids))
      chosen = jnp.take_along_axis(logs, labels[..., None], -1)[..., 0]
      valid = labels > 0
      return -jnp.sum(chosen * valid) / jnp.maximum(1, jnp.sum(valid))

    def step(weights, batch):
      gradients = jax.grad(loss)(weights, *batch)
      return [w - learning_rate * g for w, g in zip(weights, gradients)], None

    def client(weights, ids, labels):
      # The first step is separate, because all clients share its weights.
      new, _ = step(weights, (ids[0], labels[0]))
      if len(ids) > 1:
        new, _ = jax.lax.scan(step, new, (ids[1:], labels[1:]))
      examples = jnp.sum(jnp.any(ids > 0, -1)).astype(jnp.float32)
      return [a - b for a, b in zip(new, weights)], examples

    def group(weights, total, arrays):
      ids, labels, _, is_client = arrays
      updates, examples = jax.vmap(client, (None, 0, 0))(weights, ids, labels)
      examples = jnp.where(is_client, examples, 0)
      sums, weight = total
      return (
        [s + jnp.tensordot(examples, u, 1) for s, u in zip(sums, updates)],
        weight + jnp.sum(examples),
      )

    self._total = ([np.zeros_like(w) for w in weights], np.float32(0))
    self._programs: Any = {}
    self.compile_secs = 0.0
    self.bytes = None
    put = jax.device_put
    for arrays in groups:
      shape = arrays[0].shape
      if shape not in self._programs:
        began = time.perf_counter()
        with jax.default_matmul_precision(_PRECISIONS[matmul_precision]):
          lowered = jax.jit(group, donate_argnums=1).lower(
            put(weights), put(self._total), put(tuple(arrays))
          )
        self._programs[shape] = lowered.compile()
        self.compile_secs += time.perf_counter() - began
        size = memory_of(self._programs[shape])
        if size is not None:
          self.bytes = max(self.bytes or 0, size)

  def run(self, groups):
    """Returns the clients' mean update, in the host's memory."""
    put = self._jax.device_put
    weights, total = put(self._weights), put(self._total)
    for arrays in groups:
      program = self._programs[arrays[0].shape]
      total = program(weights, total, put(tuple(arrays)))
    sums, weight = total
    weight = max(1.0, float(weight))
    return [np.asarray(s) / weight for s in sums]
