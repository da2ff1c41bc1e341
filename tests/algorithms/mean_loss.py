"""The metric that functional models under test report."""

from __future__ import annotations

import collections
from typing import Any

import tensorflow as tf


def metrics_fns() -> tuple[Any, Any, Any]:
  """Returns `metrics_fns` of a TFF `FunctionalModel`: the mean over batches."""

  @tf.function
  def initialize():
    return collections.OrderedDict(loss=[tf.zeros([]), tf.zeros([])])

  @tf.function
  def update(state, labels, batch_output, sample_weight=None):
    del labels, sample_weight
    total, count = state['loss']
    return collections.OrderedDict(
      loss=[total + batch_output.loss, count + 1.0]
    )

  @tf.function
  def finalize(state):
    return collections.OrderedDict(loss=state['loss'][0] / state['loss'][1])

  return initialize, update, finalize
