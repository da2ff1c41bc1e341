"""Encodes a variable as bytes: as float32, in 2^b levels, or in three.

Codes have a fixed width, without an entropy coder, so that the number of bytes
depends only on a variable's shape. All rounding is stochastic.

If an entry, the range or the standard deviation of a variable is not finite in
float32, the whole variable decodes to NaN, so that later checks of the update
detect it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Protocol, Union

import tensorflow as tf

from si_federated.compression import bit_packing, keys, rotations

_FLOAT_BYTES = 4
_NUM_STDDEVS = 2.5


class Compressor(Hashable, Protocol):
  """Encodes variables as bytes, and decodes them."""

  @property
  def threshold(self) -> int:
    """Variables of fewer entries are sent as float32 instead."""

  def encoded_size(self, count: int) -> int:
    """Returns the number of bytes for a variable of `count` entries."""

  def encode(self, tensor: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Encodes a variable.

    Args:
      tensor: Floats of a known shape.
      seed: Shape `[2]`, int64; different for each variable.

    Returns:
      The bytes: shape `[encoded_size(n)]`, uint8.
    """

  def decode(self, encoded: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """Decodes a variable.

    Args:
      encoded: From `encode`.
      shape: The variable's shape.

    Returns:
      The variable, float32.
    """


@dataclasses.dataclass(frozen=True)
class Float32:
  """Sends four bytes per entry: no compression, for comparison."""

  @property
  def threshold(self) -> int:
    """Zero: no variable is too small."""
    return 0

  def encoded_size(self, count: int) -> int:
    """See `Compressor`."""
    return _FLOAT_BYTES * count

  def encode(self, tensor: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """See `Compressor`."""
    del seed
    return _to_bytes(tf.reshape(tf.cast(tensor, tf.float32), [-1]))

  def decode(self, encoded: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """See `Compressor`."""
    return tf.reshape(_to_floats(encoded), shape)


@dataclasses.dataclass(frozen=True)
class Uniform:
  """Rounds to k = 2^bits levels between min and max (arXiv 1611.00429).

  u = (v - min) / (max - min); u (k - 1) is rounded up with a probability equal
  to its fractional part, else down. This is unbiased up to float32 rounding,
  with an error below one level. A variable of equal entries is exact unless it
  is rotated.

  Encoding: min and max as float32, the eight bytes of the rotation's key if
  there is one, and `bits` bits per entry.

  Attributes:
    bits: Bits per entry, 1 to 16.
    rotation: The rotation before rounding, one of `rotations.ROTATIONS`. It
      spreads the error over all entries, and itself rounds in float32.
    threshold: See `Compressor`. Small variables (biases, normalization) gain
      little and often suffer more. The 20,000 of TFF's `EncodedSumFactory`
      would leave the attention of a small Transformer uncompressed.
  """

  bits: int = 8
  rotation: str = 'none'
  threshold: int = 1000

  def __post_init__(self):
    if type(self.bits) is not int or not 1 <= self.bits <= 16:
      raise ValueError(
        f'bits is {self.bits!r}; it must be an integer from 1 to 16.'
      )
    rotations.check(self.rotation)
    _check_threshold(self.threshold)

  def encoded_size(self, count: int) -> int:
    """See `Compressor`."""
    if not count:
      return 0
    count = rotations.rotated_size(count, self.rotation)
    return _header_size(2, self.rotation) + bit_packing.packed_size(
      count, self.bits
    )

  def encode(self, tensor: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """See `Compressor`."""
    if not tensor.shape.num_elements():
      return tf.zeros([0], tf.uint8)
    values, key = _rotate(tensor, self.rotation, seed)
    low, high = tf.reduce_min(values), tf.reduce_max(values)
    # Minima and maxima can ignore NaN.
    is_finite = tf.logical_and(
      _all_finite(values), tf.math.is_finite(high - low)
    )
    low = tf.where(is_finite, low, float('nan'))
    top = float((1 << self.bits) - 1)
    scale = top / (high - low)
    # Covers entries that are equal, or so close that the quotient overflows.
    scale = tf.where(tf.math.is_finite(scale), scale, 0.0)
    # Rounds up if the fraction plus a uniform number exceeds 1. With 16 bits,
    # float32 rounds this sum to 1/256 of a level at the top of the range.
    levels = (values - low) * scale + _uniform(values.shape, seed, 1.0)
    numbers = tf.cast(
      tf.minimum(levels, top), tf.uint8 if self.bits <= 8 else tf.uint16
    )
    return tf.concat(
      [
        _to_bytes(tf.stack([low, high])),
        *key,
        bit_packing.pack(numbers, self.bits),
      ],
      0,
    )

  def decode(self, encoded: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """See `Compressor`."""
    count = tf.TensorShape(shape).num_elements()
    if not count:
      return tf.zeros(shape)
    header, key, packed = _split(encoded, 2, self.rotation)
    numbers = bit_packing.unpack(
      packed, rotations.rotated_size(count, self.rotation), self.bits
    )
    low, high = header[0], header[1]
    step = (high - low) / float((1 << self.bits) - 1)
    values = tf.cast(numbers, tf.float32) * step + low
    return _unrotate(values, self.rotation, key, shape)


@dataclasses.dataclass(frozen=True)
class Ternary:
  """TernGrad: rounds to -s, 0 or s (Wen et al. 2017, arXiv 1705.07878).

  Entries are clipped to 2.5 standard deviations of the variable. With s the
  largest magnitude of the clipped entries, v becomes sign(v) s with probability
  |v| / s, else 0. This is unbiased for the clipped variable. Entries beyond 2.5
  standard deviations are biased towards zero, as is the mean of a variable
  whose entries are similar but not equal.

  Differs from the paper (and FedJAX): a variable of equal entries is exact
  unless it is rotated, not clipped to zero.

  Encoding: s as float32, the eight bytes of the rotation's key if there is one,
  and a byte for every five entries (1.6 bits each).

  Attributes:
    rotation: The rotation before rounding, one of `rotations.ROTATIONS`. It
      spreads outliers over all entries, so that about 1 % of the entries are
      clipped for any update; it spreads the bias of clipping as well.
    threshold: See `Uniform`.
  """

  rotation: str = 'none'
  threshold: int = 1000

  def __post_init__(self):
    rotations.check(self.rotation)
    _check_threshold(self.threshold)

  def encoded_size(self, count: int) -> int:
    """See `Compressor`."""
    if not count:
      return 0
    count = rotations.rotated_size(count, self.rotation)
    return _header_size(1, self.rotation) + bit_packing.packed_trits_size(count)

  def encode(self, tensor: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """See `Compressor`."""
    if not tensor.shape.num_elements():
      return tf.zeros([0], tf.uint8)
    values, key = _rotate(tensor, self.rotation, seed)
    low, high = tf.reduce_min(values), tf.reduce_max(values)
    limit = _NUM_STDDEVS * tf.math.reduce_std(values)
    is_finite = tf.logical_and(_all_finite(values), tf.math.is_finite(limit))
    largest = tf.maximum(high, -low)
    scale = tf.where(tf.equal(low, high), largest, tf.minimum(largest, limit))
    # `uniform` is below s, so that entries of magnitude s or more always become
    # -s or s: this clips those beyond the limit.
    uniform = _uniform(values.shape, seed, scale)
    up = tf.cast(uniform < values, tf.uint8)
    down = tf.cast(uniform < -values, tf.uint8)
    header = tf.where(is_finite, scale, float('nan'))
    return tf.concat(
      [
        _to_bytes(tf.reshape(header, [1])),
        *key,
        bit_packing.pack_trits(up + tf.constant(1, tf.uint8) - down),
      ],
      0,
    )

  def decode(self, encoded: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """See `Compressor`."""
    count = tf.TensorShape(shape).num_elements()
    if not count:
      return tf.zeros(shape)
    header, key, packed = _split(encoded, 1, self.rotation)
    trits = bit_packing.unpack_trits(
      packed, rotations.rotated_size(count, self.rotation)
    )
    values = (tf.cast(trits, tf.float32) - 1.0) * header[0]
    return _unrotate(values, self.rotation, key, shape)


def _check_threshold(threshold: int) -> None:
  if type(threshold) is not int or threshold < 0:
    raise ValueError(
      f'threshold is {threshold!r}; it must be an integer of at least 0.'
    )


def _all_finite(values: tf.Tensor) -> tf.Tensor:
  return tf.reduce_all(tf.math.is_finite(values))


def _uniform(
  shape: tf.TensorShape, seed: tf.Tensor, scale: Union[tf.Tensor, float]
) -> tf.Tensor:
  """Returns uniform numbers between 0 and `scale`, both excluded.

  They have sixteen bits: probabilities are rounded to multiples of 2^-16.
  """
  random = keys.random_bits(int(shape.num_elements()), seed, tf.uint16)
  half = 2.0**-17 * scale
  return tf.cast(random, tf.float32) * (2 * half) + half


def _to_bytes(floats: tf.Tensor) -> tf.Tensor:
  return tf.reshape(tf.bitcast(floats, tf.uint8), [-1])


def _to_floats(encoded: tf.Tensor) -> tf.Tensor:
  return tf.bitcast(tf.reshape(encoded, [-1, _FLOAT_BYTES]), tf.float32)


def _header_size(num_floats: int, rotation: str) -> int:
  key = 0 if rotation == 'none' else keys.KEY_BYTES
  return num_floats * _FLOAT_BYTES + key


def _split(
  encoded: tf.Tensor, num_floats: int, rotation: str
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Returns the floats of the header, the rotation's key, and the numbers."""
  end = num_floats * _FLOAT_BYTES
  start = _header_size(num_floats, rotation)
  return _to_floats(encoded[:end]), encoded[end:start], encoded[start:]


def _rotate(
  tensor: tf.Tensor, rotation: str, seed: tf.Tensor
) -> tuple[tf.Tensor, list[tf.Tensor]]:
  """Returns the rotated entries, and the key, if any, in a list."""
  values = tf.reshape(tf.cast(tensor, tf.float32), [-1])
  if rotation == 'none':
    return values, []
  key = keys.rotation_key(seed)
  return rotations.rotate(values, rotation, key), [key]


def _unrotate(
  values: tf.Tensor, rotation: str, key: tf.Tensor, shape: Sequence[int]
) -> tf.Tensor:
  if rotation != 'none':
    count = tf.TensorShape(shape).num_elements()
    values = rotations.unrotate(values, rotation, key, count)
  return tf.reshape(values, shape)
