"""Graphs with static shapes give the same results as others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from si_federated import layers

_LAYERS: dict[str, Callable[..., Any]] = {
  'TransformerBlock': lambda: layers.TransformerBlock(
    intermediate_dim=8, num_heads=2
  ),
  'ConformerBlock': lambda: layers.ConformerBlock(
    intermediate_dim=8, num_heads=2
  ),
  'SICIFG': lambda: layers.SICIFG(4, return_sequences=True),
  'GRU': lambda: layers.GRU(4, return_sequences=True, projection_units=3),
}


@pytest.mark.parametrize('kind', _LAYERS)
def test_gradients_with_a_mask(kind):
  layer = _LAYERS[kind]()
  x = np.random.default_rng(0).normal(size=[3, 5, 8]).astype(np.float32)
  mask = tf.sequence_mask([5, 2, 0], 5)
  layer(x, mask=mask)

  def gradients(x, mask):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = layer(x, mask=mask)
      # Values at padding are unspecified.
      y = tf.reduce_sum(tf.where(mask[..., tf.newaxis], y, 0.0) ** 2)
    return [
      tf.convert_to_tensor(gradient)
      for gradient in [y, *tape.gradient(y, [x, *layer.trainable_variables])]
    ]

  expected = tf.function(gradients)(tf.constant(x), mask)
  compiled = tf.function(gradients, jit_compile=True)(tf.constant(x), mask)
  with layers.static_shapes():
    static = tf.function(gradients)(tf.constant(x), mask)
  for got in (compiled, static):
    for one, other in zip(got, expected):
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_only_static_graphs_lack_data_dependent_shapes():
  layer = layers.TransformerBlock(intermediate_dim=8, num_heads=2)
  x, mask = tf.ones([1, 3, 8]), tf.constant([[True, True, False]])
  layer(x, mask=mask)

  def operations():
    traced = tf.function(lambda x, mask: layer(x, mask=mask))
    graph = traced.get_concrete_function(x, mask).graph
    return {operation.type for operation in graph.get_operations()}

  assert 'Where' in operations()
  with layers.static_shapes():
    assert 'Where' not in operations()
