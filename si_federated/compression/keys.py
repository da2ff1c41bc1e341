"""Random numbers of the rounding, keyed by seed, round and a client's update.

TFF does not number clients. Instead, a 64-bit hash of the update makes the
random numbers of two clients independent: updates differ unless clients have
the same data. For a fixed update the hash is fixed and the seed is random, so
that rounding is unbiased. Everything is reproducible from seed, round and
update.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

KEY_BYTES = 8


def check_seed(seed: int) -> None:
  """Raises `ValueError` unless a seed is an integer in [0, 2^63)."""
  if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
    raise ValueError(f'The seed is {seed!r}; it must be an integer.')
  if not 0 <= seed < 1 << 63:
    raise ValueError(f'The seed is {seed}; it must be in [0, 2^63).')


def round_seed(seed: int, round_num: tf.Tensor, update: Any = ()) -> tf.Tensor:
  """Returns the seed of a round or, given an update, of a client in a round.

  Args:
    seed: The seed of all rounds; not that of a private mechanism's noise.
    round_num: The round's number, an int64 scalar.
    update: The client's variables, in any structure.

  Returns:
    A seed for `tf.random.stateless_uniform`, shape `[2]`, int64.
  """
  parts = tf.nest.flatten(update)
  prints = [_fingerprint(part) for part in parts if part.shape.num_elements()]
  words = [tf.cast(round_num, tf.int64)]
  words += [tf.bitcast(print_, tf.int64) for print_ in prints]
  key = _fingerprint(tf.stack(words))
  return tf.stack([tf.constant(seed, tf.int64), tf.bitcast(key, tf.int64)])


def variable_seed(seed: tf.Tensor, index: int) -> tf.Tensor:
  """Returns the seed of one variable.

  Args:
    seed: From `round_seed`. Its second half is a hash; changing its lowest bits
      gives the seed of another round or client only with probability 2^-64.
    index: The number of the variable.

  Returns:
    Shape `[2]`, int64.
  """
  return tf.bitwise.bitwise_xor(seed, tf.constant([0, index], tf.int64))


def rotation_key(seed: tf.Tensor) -> tf.Tensor:
  """Returns the key of a variable's rotation, which its receiver needs too.

  Args:
    seed: From `variable_seed`. It is hashed, so that the key does not reveal it
      and the rotation is independent of the rounding.

  Returns:
    `KEY_BYTES` numbers of uint8.
  """
  return _fingerprint(seed)


def rotation_seed(key: tf.Tensor) -> tf.Tensor:
  """Returns the seed of the rotation with this key, shape `[2]`, int64."""
  return tf.stack([tf.constant(0, tf.int64), tf.bitcast(key, tf.int64)])


def random_bits(count: int, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
  """Returns random integers, uniform over all values of their type.

  Random bits are the most expensive part of rounding; a float32 takes 32.

  Args:
    count: The number of integers.
    seed: Shape `[2]`, int64.
    dtype: uint8 or uint16.

  Returns:
    Shape `[count]`.
  """
  words = tf.random.stateless_uniform(
    [-(-count * dtype.size // 4)], seed, None, None, tf.uint32, alg='philox'
  )
  return tf.reshape(tf.bitcast(words, dtype), [-1])[:count]


def _fingerprint(tensor: tf.Tensor) -> tf.Tensor:
  """Returns FarmHash's 64 bits of all entries, as eight uint8.

  Not a sum of floats, which depends on the number of threads.
  """
  return tf.fingerprint(tf.reshape(tensor, [1, -1]))[0]
