"""The random choice of the variables that a client trains in a round."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


class Selection:
  """Chooses at random the variables that a client trains in a round.

  Variables of one dimension (biases and gains), about a thousandth of a model,
  are always trained.

  Attributes:
    probabilities: For each variable, the probability that it is trained.
  """

  def __init__(
    self,
    shapes: Sequence[Sequence[int]],
    names: Sequence[str],
    *,
    fraction: float,
    by: str,
    per: str,
    seed: int,
  ):
    """Initializes the selection.

    Args:
      shapes: The shapes of the variables.
      names: The names of the variables; those of one layer begin with the same
        name before a slash.
      fraction: The fraction to train of the variables, or blocks, of at least
        two dimensions; at least one is trained.
      by: `'variable'`, or `'block'` to choose whole layers of the model.
      per: `'client'`, or `'round'` for the same choice in the whole cohort.
      seed: Determines the choices, with round and client.

    Raises:
      ValueError: If an option is out of range.
    """
    if not 0 < fraction <= 1:
      raise ValueError(
        f'fraction must be above 0 and at most 1, but it is {fraction}: give '
        'the fraction of the variables that a client trains.'
      )
    for name, value, known in (
      ('by', by, ('variable', 'block')),
      ('per', per, ('client', 'round')),
    ):
      if value not in known:
        raise ValueError(f'{name} must be {" or ".join(known)}, not {value!r}.')
    units: dict[str, int] = {}
    self._units = []
    for shape, name in zip(shapes, names):
      if len(shape) < 2:
        self._units.append(-1)
        continue
      unit = name.partition('/')[0] if by == 'block' else name
      self._units.append(units.setdefault(unit, len(units)))
    self._num_units = len(units)
    self._num_chosen = min(len(units), max(1, round(fraction * len(units))))
    self._per = per
    self._seed = seed
    part = self._num_chosen / len(units) if units else 1.0
    self.probabilities = [1.0 if unit < 0 else part for unit in self._units]

  def __call__(
    self, round_num: tf.Tensor, client: tf.Tensor
  ) -> list[tf.Tensor]:
    """Chooses the variables of a client in a round.

    Args:
      round_num: The number of the round, an int64 scalar.
      client: The number of the client, an int64 scalar.

    Returns:
      For each variable whether it is trained, a boolean scalar.
    """
    if not self._num_units:
      return [tf.constant(True) for _ in self._units]
    seed = tf.stack([tf.constant(self._seed, tf.int64), round_num])
    if self._per == 'client':
      seed = tf.random.experimental.stateless_fold_in(seed, client)
    ranks = tf.argsort(
      tf.argsort(tf.random.stateless_uniform([self._num_units], seed))
    )
    chosen = ranks < self._num_chosen
    return [
      tf.constant(True) if unit < 0 else chosen[unit] for unit in self._units
    ]
