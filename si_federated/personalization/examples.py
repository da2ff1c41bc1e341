"""A client's examples as the batches of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf


def inputs_and_labels(
  examples: np.ndarray, element_spec: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Splits examples into what a model reads and what it is to say.

  Args:
    examples: `[N, T + 1]`.
    element_spec: The specs of a batch; the rank of the labels tells a label for
      each position, one ahead of its input, from one label for the whole, the
      last column.

  Returns:
    Inputs `[N, T]`, and labels `[N, T]` or `[N]`.
  """
  _, labels = element_spec
  if labels.shape.rank == 1:
    return examples[:, :-1], examples[:, -1]
  return examples[:, :-1], examples[:, 1:]


def batches(
  examples: np.ndarray, element_spec: Any, batch_size: int
) -> tf.data.Dataset:
  """Returns examples in their order as batches; the last may be smaller.

  Args:
    examples: `[N, T + 1]`.
    element_spec: The specs of a batch.
    batch_size: Examples a batch.
  """
  pair = inputs_and_labels(examples, element_spec)
  return tf.data.Dataset.from_tensor_slices(pair).batch(batch_size)
