"""A client's examples as the batches of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf


def inputs_and_labels(
  examples: np.ndarray, element_spec: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Splits examples into inputs and labels.

  Args:
    examples: `[N, T + 1]`.
    element_spec: The specs of a batch. Labels of rank 2 are the ids one ahead
      of the inputs; labels of rank 1 are the last column.

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
  """Batches examples in order; the last batch may be smaller.

  Args:
    examples: `[N, T + 1]`.
    element_spec: The specs of a batch.
    batch_size: Examples per batch.
  """
  pair = inputs_and_labels(examples, element_spec)
  return tf.data.Dataset.from_tensor_slices(pair).batch(batch_size)
