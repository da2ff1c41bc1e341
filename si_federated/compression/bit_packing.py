"""Packs small integers into bytes without gaps.

The bits of all numbers are concatenated, lowest bit first, and fill bytes from
the lowest bit; unused bits of the last byte are 0. Only uint8 and uint16 are
used, so that an update is never copied to wider integers.
"""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf

TRITS_PER_BYTE = 5


def packed_size(count: int, bits: int) -> int:
  """Returns the number of bytes for `count` numbers of `bits` bits."""
  return -(-count * bits // 8)


def pack(numbers: tf.Tensor, bits: int) -> tf.Tensor:
  """Packs numbers below 2^bits.

  Args:
    numbers: Shape `[n]`, uint8, or uint16 for more than 8 bits.
    bits: Bits per number, 1 to 16.

  Returns:
    Shape `[packed_size(n, bits)]`, uint8.
  """
  if bits == 8:
    return numbers
  if bits == 16:
    return tf.reshape(tf.bitcast(numbers, tf.uint8), [-1])
  count = int(numbers.shape[0])
  # Eight numbers fill whole bytes. A row contains every eighth number, so that
  # all operations read consecutive memory.
  rows = tf.unstack(_columns(numbers, 8))
  packed = []
  for j in range(bits):
    parts = [
      _shift(rows[i], i * bits - 8 * j)
      for i in range(8)
      if -bits < i * bits - 8 * j < 8
    ]
    packed.append(_lowest_byte(_any(parts)))
  return _flat(packed, packed_size(count, bits))


def unpack(packed: tf.Tensor, count: int, bits: int) -> tf.Tensor:
  """Inverts `pack`.

  Args:
    packed: From `pack`.
    count: The number of numbers.
    bits: Bits per number.

  Returns:
    Shape `[count]`, uint8, or uint16 for more than 8 bits.
  """
  if bits == 8:
    return packed
  if bits == 16:
    return tf.bitcast(tf.reshape(packed, [count, 2]), tf.uint16)
  dtype = tf.uint8 if bits < 8 else tf.uint16
  rows = [tf.cast(row, dtype) for row in tf.unstack(_columns(packed, bits))]
  mask = tf.constant((1 << bits) - 1, dtype)
  numbers = []
  for i in range(8):
    parts = [
      _shift(rows[j], 8 * j - i * bits)
      for j in range(bits)
      if -8 < 8 * j - i * bits < bits
    ]
    numbers.append(tf.bitwise.bitwise_and(_any(parts), mask))
  return _flat(numbers, count)


def packed_trits_size(count: int) -> int:
  """Returns the number of bytes for `count` trits."""
  return -(-count // TRITS_PER_BYTE)


def pack_trits(trits: tf.Tensor) -> tf.Tensor:
  """Packs trits (0, 1 or 2), five per byte (1.6 bits each).

  Args:
    trits: Shape `[n]`, uint8.

  Returns:
    Shape `[packed_trits_size(n)]`, uint8, each at most 3^5 - 1.
  """
  return functools.reduce(
    lambda total, row: total * tf.constant(3, tf.uint8) + row,
    reversed(tf.unstack(_columns(trits, TRITS_PER_BYTE))),
  )


def unpack_trits(packed: tf.Tensor, count: int) -> tf.Tensor:
  """Inverts `pack_trits`; returns shape `[count]`, uint8."""
  # Bytes above 242, which don't encode five trits, are not in the table.
  places = 3 ** np.arange(TRITS_PER_BYTE)
  numbers = np.arange(3**TRITS_PER_BYTE)
  table = (numbers[:, np.newaxis] // places % 3).astype(np.uint8)
  trits = tf.gather(tf.constant(table), tf.cast(packed, tf.int32))
  return tf.reshape(trits, [-1])[:count]


def _columns(values: tf.Tensor, width: int) -> tf.Tensor:
  """Pads with zeros and returns shape `[width, n / width]`.

  Row i contains the values i, i + width, i + 2 width, ...
  """
  missing = -int(values.shape[0]) % width
  if missing:
    values = tf.concat([values, tf.zeros([missing], values.dtype)], 0)
  return tf.transpose(tf.reshape(values, [-1, width]))


def _flat(rows: list[tf.Tensor], count: int) -> tf.Tensor:
  """Inverts `_columns` for `count` values."""
  values = tf.reshape(tf.transpose(tf.stack(rows)), [-1])
  return values if values.shape[0] == count else values[:count]


def _shift(numbers: tf.Tensor, by: int) -> tf.Tensor:
  """Shifts to the left, or to the right if negative."""
  if not by:
    return numbers
  shift = tf.bitwise.left_shift if by > 0 else tf.bitwise.right_shift
  return shift(numbers, tf.constant(abs(by), numbers.dtype))


def _any(parts: list[tf.Tensor]) -> tf.Tensor:
  return functools.reduce(tf.bitwise.bitwise_or, parts)


def _lowest_byte(numbers: tf.Tensor) -> tf.Tensor:
  if numbers.dtype == tf.uint8:
    return numbers
  mask = tf.constant(255, numbers.dtype)
  return tf.cast(tf.bitwise.bitwise_and(numbers, mask), tf.uint8)
