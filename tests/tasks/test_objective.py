from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated.tasks import objective


@pytest.mark.parametrize('scale', [1.0, 300.0])
def test_cross_entropy_is_tensorflows_with_its_gradient(scale):
  generator = np.random.default_rng(0)
  logits = tf.constant(
    scale * generator.normal(size=[3, 4, 7]).astype(np.float32)
  )
  labels = tf.constant(generator.integers(0, 7, [3, 4]), tf.int32)
  weights = tf.constant(generator.normal(size=[3, 4]).astype(np.float32))

  def value_and_gradient(function):
    with tf.GradientTape() as tape:
      tape.watch(logits)
      losses = function(logits, labels)
      total = tf.reduce_sum(weights * losses)
    return losses, tape.gradient(total, logits)

  ours = value_and_gradient(objective.cross_entropy)
  theirs = value_and_gradient(
    lambda logits, labels: tf.nn.sparse_softmax_cross_entropy_with_logits(
      labels, logits
    )
  )
  for a, b in zip(ours, theirs):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
