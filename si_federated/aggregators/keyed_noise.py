"""Gaussian noise from a counter-based generator, keyed by row and variable.

The seed and the number of a row determine the row, so that an interrupted run
resumes with exactly the same noise.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Optional

import numpy as np
import tensorflow as tf

# The second half of a key has the release at bit 62, the row at bits 31 to 61
# and the variable below, so that keys are unique.
_RELEASE_BITS, _ROW_BITS = 62, 31


def check_seed(noise_seed: Optional[int]) -> None:
  """Raises ValueError unless a seed is None or a whole number of 63 bits."""
  if noise_seed is None:
    return
  if isinstance(noise_seed, bool) or not isinstance(
    noise_seed, (int, np.integer)
  ):
    raise ValueError(
      f'noise_seed is {noise_seed!r}; it must be a whole number.'
    )
  if not 0 <= noise_seed < 1 << 63:
    raise ValueError(f'noise_seed is {noise_seed}; it must be in [0, 2^63).')


def initial_seed(noise_seed: Optional[int], release: int = 0) -> tf.Tensor:
  """Returns the seed of an initial state.

  Args:
    noise_seed: The seed, or None for one from the system's entropy. That seed
      differs in each run of the graph, because using the same noise on
      different data would reveal their difference. TensorFlow's own entropy,
      which has only 32 bits, is combined with 128 bits of the system's that are
      fixed in the graph.
    release: The index of the sum among those released each round, 0 or 1.

  Returns:
    Shape `[2]`, int64.

  Raises:
    ValueError: If a key has no room for the release.
  """
  if release not in (0, 1):
    raise ValueError(f'release is {release}; a key has room for 0 and 1.')
  if noise_seed is not None:
    return tf.constant([noise_seed, release << _RELEASE_BITS], tf.int64)
  secret = np.frombuffer(os.urandom(16), np.int64)
  return tf.bitwise.bitwise_xor(
    tf.raw_ops.NonDeterministicInts(shape=[2], dtype=tf.int64), secret
  )


def standard_normals(
  seed: tf.Tensor,
  row: tf.Tensor,
  shapes: Sequence[tf.TensorShape],
  *,
  first_stream: int = 0,
) -> list[tf.Tensor]:
  """Returns a row of z: independent noise with variance 1.

  TensorFlow maps a seed of 128 bits one-to-one to the key and counter of
  Philox. Since the seeds of rows and variables differ, no noise is used twice.

  Args:
    seed: Shape `[2]`, int64.
    row: The row's number, below 2^31.
    shapes: The variables' shapes.
    first_stream: The index of the first variable.

  Returns:
    Float32 tensors of these shapes.
  """
  row = tf.bitwise.left_shift(
    tf.cast(row, tf.int64), tf.constant(_ROW_BITS, tf.int64)
  )
  return [
    tf.random.stateless_normal(
      shape,
      tf.stack(
        [seed[0], tf.bitwise.bitwise_xor(seed[1], row + first_stream + stream)]
      ),
      alg='philox',
    )
    for stream, shape in enumerate(shapes)
  ]
