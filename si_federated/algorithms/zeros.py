"""Zeros that take memory only while they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def make_zeros(shape: Sequence[int], dtype: Any) -> tf.Tensor:
  """Returns zeros, made where they are asked for.

  `tf.zeros` of a known shape becomes a constant when TensorFlow optimizes a
  graph, which then holds a model's size of zeros as long as it exists.

  Args:
    shape: Their shape.
    dtype: Their type.
  """
  return tf.raw_ops.Empty(
    shape=list(shape), dtype=tf.as_dtype(dtype), init=True
  )
