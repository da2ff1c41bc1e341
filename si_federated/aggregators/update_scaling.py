"""Scale-then-privatise: noise in proportion to the usual size of a coordinate.

An adaptive optimizer divides each coordinate of the noisy mean by its usual
size, and so enlarges the noise of small ones. Here clients divide their updates
by scales before clipping, and the server multiplies the noisy mean by them (Li
et al., "Differentially Private Adaptive Optimization with Delayed
Preconditioners", arXiv 2212.00309). Scales are functions of the means released
in earlier rounds, so that they cost no privacy.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class UpdateScaling:
  """Scales of coordinates, from a running mean of squared releases.

  Differs from the paper: the mean is scaled back, so that any server optimizer
  can follow; and scales have a mean square of 1, so that a clip norm keeps its
  meaning and the first round is unscaled.

  Attributes:
    decay: The decay of the running mean of squares.
    damping: Added to relative sizes; a larger value makes scales more equal.
    delay: The number of rounds between changes of scales.
  """

  decay: float = 0.9
  damping: float = 0.1
  delay: int = 1

  def __post_init__(self):
    if not 0 <= self.decay < 1:
      raise ValueError(
        f'scale_decay is {self.decay}; it must be at least 0 and below 1.'
      )
    if not 0 < self.damping < float('inf'):
      raise ValueError(
        f'scale_damping is {self.damping}; it must be finite and positive, for '
        'example 0.1.'
      )
    if self.delay < 1:
      raise ValueError(
        f'scale_delay is {self.delay}; it must be at least 1 round.'
      )

  def initial(self, shapes: Sequence[Any]) -> collections.OrderedDict[str, Any]:
    """Returns the state before the first round.

    Args:
      shapes: The variables' shapes.

    Returns:
      `scales` and `squares`, each with a float32 tensor for each variable.
    """
    return collections.OrderedDict(
      scales=[tf.ones(shape) for shape in shapes],
      squares=[tf.zeros(shape) for shape in shapes],
    )

  def next(
    self, state: Any, round_num: tf.Tensor, released: Sequence[tf.Tensor]
  ) -> collections.OrderedDict[str, Any]:
    """Returns the state after a round.

    Args:
      state: The state before the round.
      round_num: The number of earlier rounds, int64.
      released: The round's noisy mean, float32.
    """
    squares = [
      self.decay * old + (1 - self.decay) * tf.square(part)
      for old, part in zip(state['squares'], released)
    ]
    changes = tf.equal((round_num + 1) % self.delay, 0)
    scales = [
      tf.where(changes, new, old)
      for new, old in zip(self._scales(squares), state['scales'])
    ]
    return collections.OrderedDict(scales=scales, squares=squares)

  def _scales(self, squares):
    most = tf.reduce_max([tf.reduce_max(part) for part in squares])
    # Until the first release that is not zero, all are equal.
    mean = _mean(squares) + tf.where(most > 0, 0.0, 1.0)
    sizes = [tf.sqrt(part / mean) + self.damping for part in squares]
    root = tf.sqrt(_mean([tf.square(size) for size in sizes]))
    return [size / root for size in sizes]


def _mean(parts):
  count = tf.add_n([tf.size(part, tf.int64) for part in parts])
  total = tf.add_n([tf.reduce_sum(part) for part in parts])
  return total / tf.cast(count, tf.float32)


def _combined(operation, update, scales):
  parts = tf.nest.flatten(update)
  return tf.nest.pack_sequence_as(
    update,
    [operation(part, tf.cast(s, part.dtype)) for part, s in zip(parts, scales)],
  )


def divided(update: Any, scales: Sequence[tf.Tensor]) -> Any:
  """Returns an update divided by scales.

  Args:
    update: A structure of float tensors.
    scales: A tensor for each variable, of the same shape.
  """
  return _combined(tf.divide, update, scales)


def multiplied(update: Any, scales: Sequence[tf.Tensor]) -> Any:
  """Returns an update times scales; the inverse of `divided`.

  Args:
    update: A structure of float tensors.
    scales: A tensor for each variable, of the same shape.
  """
  return _combined(tf.multiply, update, scales)
