"""Learning rates as functions of the round."""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

Schedule = Callable[[tf.Tensor], tf.Tensor]


def _build(
  learning_rate: float,
  warmup_rounds: int,
  decay: Callable[[tf.Tensor], tf.Tensor],
) -> Schedule:
  """Returns a schedule that rises linearly, then follows `decay`.

  Args:
    learning_rate: The largest learning rate.
    warmup_rounds: The number of rounds of warm-up; the last one has the largest
      rate.
    decay: The factor as a function of the rounds since the warm-up.
  """
  if isinstance(warmup_rounds, bool) or warmup_rounds != int(warmup_rounds):
    raise ValueError(
      f'warmup_rounds must be a whole number, but it is {warmup_rounds!r}.'
    )
  if warmup_rounds < 0:
    raise ValueError(
      f'warmup_rounds must be at least 0, but it is {warmup_rounds}.'
    )

  def schedule(round_num: tf.Tensor) -> tf.Tensor:
    done = tf.cast(round_num, tf.float32)
    rising = (done + 1.0) / max(warmup_rounds, 1)
    factor = tf.where(
      done < warmup_rounds,
      rising,
      decay(tf.maximum(done - warmup_rounds, 0.0)),
    )
    return tf.cast(learning_rate, tf.float32) * factor

  return schedule


def _check_final(final_fraction: float) -> None:
  if not 0 <= final_fraction <= 1:
    raise ValueError(
      f'final_fraction must be from 0 to 1, but it is {final_fraction}: give '
      'the last learning rate as a fraction of the first.'
    )


def _progress(
  rounds: tf.Tensor, total_rounds: int, warmup_rounds: int
) -> tf.Tensor:
  """Returns 0 at the end of the warm-up and 1 in the last round."""
  return tf.minimum(rounds / max(total_rounds - 1 - warmup_rounds, 1), 1.0)


def build_constant(
  *, learning_rate: float, total_rounds: int, warmup_rounds: int = 0
) -> Schedule:
  """Builds a constant learning rate, after a linear warm-up.

  Args:
    learning_rate: The learning rate.
    total_rounds: No effect.
    warmup_rounds: The number of rounds of warm-up; the last one has the full
      rate.

  Returns:
    A function of the number of the round, from 0.

  Raises:
    ValueError: If an option is out of range.
  """
  del total_rounds
  return _build(learning_rate, warmup_rounds, tf.ones_like)


def build_linear(
  *,
  learning_rate: float,
  total_rounds: int,
  warmup_rounds: int = 0,
  final_fraction: float = 0.0,
) -> Schedule:
  """Builds a learning rate that falls linearly until the last round.

  Args:
    learning_rate: The learning rate after the warm-up.
    total_rounds: The number of rounds.
    warmup_rounds: See `build_constant`.
    final_fraction: The last rate, as a fraction of the first.

  Returns:
    A function of the number of the round, from 0.

  Raises:
    ValueError: If an option is out of range.
  """
  _check_final(final_fraction)
  return _build(
    learning_rate,
    warmup_rounds,
    lambda rounds: (
      1.0
      - (1.0 - final_fraction) * _progress(rounds, total_rounds, warmup_rounds)
    ),
  )


def build_cosine(
  *,
  learning_rate: float,
  total_rounds: int,
  warmup_rounds: int = 0,
  final_fraction: float = 0.0,
) -> Schedule:
  """Builds a learning rate that falls along half a cosine until the last round.

  Args:
    learning_rate: The learning rate after the warm-up.
    total_rounds: The number of rounds.
    warmup_rounds: See `build_constant`.
    final_fraction: The last rate, as a fraction of the first.

  Returns:
    A function of the number of the round, from 0.

  Raises:
    ValueError: If an option is out of range.
  """
  _check_final(final_fraction)

  def decay(rounds: tf.Tensor) -> tf.Tensor:
    progress = _progress(rounds, total_rounds, warmup_rounds)
    half = 0.5 * (1.0 + tf.cos(math.pi * progress))
    return final_fraction + (1.0 - final_fraction) * half

  return _build(learning_rate, warmup_rounds, decay)


def build_exponential(
  *,
  learning_rate: float,
  total_rounds: int,
  warmup_rounds: int = 0,
  final_fraction: float = 0.1,
) -> Schedule:
  """Builds a learning rate that falls by the same factor each round.

  Args:
    learning_rate: The learning rate after the warm-up.
    total_rounds: The number of rounds.
    warmup_rounds: See `build_constant`.
    final_fraction: The last rate, as a fraction of the first; above 0.

  Returns:
    A function of the number of the round, from 0.

  Raises:
    ValueError: If an option is out of range.
  """
  _check_final(final_fraction)
  if not final_fraction:
    raise ValueError(
      'final_fraction must be above 0: an exponential never reaches 0; choose '
      'linear or cosine for that.'
    )
  return _build(
    learning_rate,
    warmup_rounds,
    lambda rounds: tf.pow(
      final_fraction, _progress(rounds, total_rounds, warmup_rounds)
    ),
  )


def build_cool_down(
  *,
  learning_rate: float,
  total_rounds: int,
  warmup_rounds: int = 0,
  fraction: float = 0.25,
  final_fraction: float = 0.05,
) -> Schedule:
  """Builds a constant learning rate that falls linearly at the end.

  The defaults are those of Choquette-Choo et al. 2022, arXiv 2211.06530. With
  `cool_down=0.25` the matrices of DP-FTRL are optimized for it.

  Args:
    learning_rate: The learning rate after the warm-up.
    total_rounds: The number of rounds.
    warmup_rounds: See `build_constant`.
    fraction: The last fraction of the rounds, in which the rate falls.
    final_fraction: The last rate, as a fraction of the first.

  Returns:
    A function of the number of the round, from 0.

  Raises:
    ValueError: If an option is out of range.
  """
  _check_final(final_fraction)
  if not 0 <= fraction <= 1:
    raise ValueError(f'fraction must be from 0 to 1, but it is {fraction}.')
  falling = round(fraction * total_rounds)
  start = total_rounds - falling - warmup_rounds
  if start < 0:
    raise ValueError(
      f'{warmup_rounds} rounds of warm-up and {falling} of cool-down are more '
      f'than the {total_rounds} rounds of the run; shorten one.'
    )

  def decay(rounds: tf.Tensor) -> tf.Tensor:
    if not falling:
      return tf.ones_like(rounds)
    progress = tf.clip_by_value((rounds - start + 1.0) / falling, 0.0, 1.0)
    return 1.0 - (1.0 - final_fraction) * progress

  return _build(learning_rate, warmup_rounds, decay)


LEARNING_RATE_SCHEDULES: dict[str, Callable[..., Schedule]] = {
  'constant': build_constant,
  'linear': build_linear,
  'cosine': build_cosine,
  'exponential': build_exponential,
  'cool_down': build_cool_down,
}
