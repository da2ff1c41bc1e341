"""A clip norm that follows a quantile of the norms of updates."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tensorflow as tf


def centred_count(clipped: Any, was_clipped: tf.Tensor) -> tf.Tensor:
  """Returns what a client adds to the count of updates below the clip norm.

  As in TensorFlow Privacy, counts are centred at one half. Unlike there, an
  all-zero update adds nothing, just like an absent client. So the sensitivity
  is 1/2 both when neighbours differ by adding or removing a client, and when
  they differ by zeroing a client's updates, where it would otherwise be 1.

  Args:
    clipped: The clipped update.
    was_clipped: Whether it was scaled down.

  Returns:
    1/2 for an update below the norm, -1/2 for a clipped one, 0 for all zeros.
  """
  is_zero = tf.reduce_all(
    [tf.reduce_all(tf.equal(part, 0)) for part in tf.nest.flatten(clipped)]
  )
  return tf.where(is_zero, 0.0, 0.5 - tf.cast(was_clipped, tf.float32))


# A norm that reached zero or infinity could never leave it.
_MIN_NORM, _MAX_NORM = 1e-10, 1e10


@dataclasses.dataclass(frozen=True)
class AdaptiveClip:
  """Geometric updates of a clip norm (Andrew et al., arXiv 1905.03871).

  Attributes:
    target_quantile: The fraction of updates that should not be clipped.
    learning_rate: A round changes the norm by at most a factor of
      exp(learning_rate).
    count_noise: The standard deviation of the noise on the count of updates
      that were not clipped, relative to the cohort.
  """

  target_quantile: float = 0.5
  learning_rate: float = 0.2
  count_noise: float = 0.05

  def __post_init__(self):
    if not 0 <= self.target_quantile <= 1:
      raise ValueError(
        f'target_quantile is {self.target_quantile}; it must be in [0, 1].'
      )
    if not 0 <= self.learning_rate < math.inf:
      raise ValueError(
        f'clip_learning_rate is {self.learning_rate}; it must be at least 0 '
        'and finite.'
      )
    if not 0 < self.count_noise < math.inf:
      raise ValueError(
        f'count_noise is {self.count_noise}; it must be finite and positive.'
      )

  def split(
    self, noise_multiplier: float, cohort_size: float
  ) -> tuple[float, float]:
    """Splits the privacy budget of a noise multiplier between sum and count.

    The count has sensitivity 1/2 (see `centred_count`) and uses part of the
    budget, so the sum needs slightly more noise than it would alone (theorem 1
    of the paper).

    Args:
      noise_multiplier: The noise multiplier of the two together.
      cohort_size: The number of clients in a round.

    Returns:
      The noise multiplier of the sum, and the standard deviation of the noise
      on the count relative to the cohort.

    Raises:
      ValueError: If the count alone exceeds the budget.
    """
    if not noise_multiplier:
      return 0.0, 0.0
    left = noise_multiplier**-2 - (2 * self.count_noise * cohort_size) ** -2
    if left <= 0:
      raise ValueError(
        f'With noise_multiplier={noise_multiplier} a cohort of {cohort_size} '
        f'and count_noise={self.count_noise} are too small; take more clients '
        'or more count_noise.'
      )
    return left**-0.5, self.count_noise

  def update(self, clip_norm: tf.Tensor, unclipped: tf.Tensor) -> tf.Tensor:
    """Returns the next clip norm, from 1e-10 to 1e10.

    Args:
      clip_norm: The current clip norm.
      unclipped: The noised fraction of updates that were not clipped.
    """
    error = tf.clip_by_value(unclipped, 0, 1) - self.target_quantile
    return tf.clip_by_value(
      clip_norm * tf.exp(-self.learning_rate * error), _MIN_NORM, _MAX_NORM
    )
