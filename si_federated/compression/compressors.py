"""How one variable becomes bytes: as it is, in k levels, or in three.

Coding is of fixed width, without an entropy coder: a variable's bytes follow
from its shape. All rounding is stochastic.

What is not finite stays so: a variable with an entry that is not a finite
float32, or with a range (or a standard deviation) that is none, decodes to NaN
throughout. Whoever guards against such updates behind a compressor finds them.
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
  """Turns a variable into what is sent, and that into a variable again."""

  @property
  def threshold(self) -> int:
    """Variables of fewer entries are sent as float32 instead."""

  def encoded_size(self, count: int) -> int:
    """Returns how many bytes a variable of `count` entries takes."""

  def encode(self, tensor: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Encodes a variable.

    Args:
      tensor: Floats of a known shape.
      seed: Shape `[2]`, int64; another one for each variable.

    Returns:
      What is sent: shape `[encoded_size(n)]`, uint8.
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
  """Sends four bytes an entry, which no compression is compared with."""

  @property
  def threshold(self) -> int:
    """No variable is too small."""
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
  """Rounds to k = 2^bits levels from least to largest (arXiv 1611.00429).

  u = (v - min) / (max - min); u (k - 1) is rounded up with a probability of its
  fractional part, else down. Unbiased, but for the last bits of float32, and
  off by less than one level; a variable of equal entries is exact (if it is not
  rotated).

  What is sent: min and max as float32, eight bytes of the rotation's key if
  there is one, and `bits` bits an entry.

  Attributes:
    bits: The bits of an entry, 1 to 16.
    rotation: What comes before: one of `rotations.ROTATIONS`. The error is then
      spread over all entries, and rotation itself adds rounding of float32.
    threshold: See `Compressor`. Small variables (biases, normalisation) gain
      little and often suffer more; TFF's `EncodedSumFactory` would have 20,000,
      which here were the attention of a small Transformer.
  """

  bits: int = 8
  rotation: str = 'none'
  threshold: int = 1000

  def __post_init__(self):
    if (
      isinstance(self.bits, bool)
      or not isinstance(self.bits, int)
      or not 1 <= self.bits <= 16
    ):
      raise ValueError(f'bits is {self.bits!r}; it is a whole number, 1 to 16.')
    rotations.check(self.rotation)
    _check_threshold(self.threshold)

  def encoded_size(self, count: int) -> int:
    """See `Compressor`."""
    if not count:
      return 0
    count = rotations.rotated_size(count, self.rotation)
    header = 2 * _FLOAT_BYTES + _key_bytes(self.rotation)
    return header + bit_packing.packed_size(count, self.bits)

  def encode(self, tensor: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """See `Compressor`."""
    if not tensor.shape.num_elements():
      return tf.zeros([0], tf.uint8)
    values, key = _rotate(tensor, self.rotation, seed)
    low, high = tf.reduce_min(values), tf.reduce_max(values)
    # Minima and maxima may pass over what is not a number.
    is_finite = tf.logical_and(
      _all_finite(values), tf.math.is_finite(high - low)
    )
    low = tf.where(is_finite, low, float('nan'))
    top = float((1 << self.bits) - 1)
    scale = top / (high - low)
    # Of equal entries, or ones so near that the quotient overflows.
    scale = tf.where(tf.math.is_finite(scale), scale, 0.0)
    # Rounded up, if the fraction and a uniform number make one. At the top of
    # 16 bits the sum is itself rounded to 1/256 of a level, which is what
    # float32 can tell of the range.
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

  Entries are clipped to 2.5 standard deviations of the variable; s is then the
  largest magnitude, and v becomes sign(v) s with a probability of |v| / s, else
  0. That is unbiased for the clipped variable; entries beyond 2.5 standard
  deviations are biased towards zero, and so is the mean of a variable whose
  entries are all alike but not equal.

  Differs from the paper (and FedJAX): a variable of equal entries is not
  clipped, to zero, but exact (if it is not rotated).

  What is sent: s as float32, eight bytes of the rotation's key if there is one,
  and a byte for every five entries (1.6 bits each).

  Attributes:
    rotation: What comes before: one of `rotations.ROTATIONS`. It spreads
      outliers over all entries, so that clipping touches about 1 % of them
      whatever the update; but the clipping is then of rotated entries, so that
      the bias is spread as well.
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
    header = _FLOAT_BYTES + _key_bytes(self.rotation)
    return header + bit_packing.packed_trits_size(count)

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
    # An entry beyond the limit is above this always, as one of s is: clipped.
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
  if (
    isinstance(threshold, bool)
    or not isinstance(threshold, int)
    or threshold < 0
  ):
    raise ValueError(
      f'threshold is {threshold!r}; it is a whole number, 0 or more.'
    )


def _all_finite(values: tf.Tensor) -> tf.Tensor:
  return tf.reduce_all(tf.math.is_finite(values))


def _uniform(
  shape: tf.TensorShape, seed: tf.Tensor, scale: Union[tf.Tensor, float]
) -> tf.Tensor:
  """Returns uniform numbers between 0 and `scale`, neither of them included.

  Sixteen bits each: a probability is rounded to a multiple of 2^-16.
  """
  random = keys.random_bits(int(shape.num_elements()), seed, tf.uint16)
  half = 2.0**-17 * scale
  return tf.cast(random, tf.float32) * (2 * half) + half


def _to_bytes(floats: tf.Tensor) -> tf.Tensor:
  return tf.reshape(tf.bitcast(floats, tf.uint8), [-1])


def _to_floats(encoded: tf.Tensor) -> tf.Tensor:
  return tf.bitcast(tf.reshape(encoded, [-1, _FLOAT_BYTES]), tf.float32)


def _key_bytes(rotation: str) -> int:
  return 0 if rotation == 'none' else keys.KEY_BYTES


def _split(
  encoded: tf.Tensor, num_floats: int, rotation: str
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Returns the floats of the header, the rotation's key, and the numbers."""
  end = num_floats * _FLOAT_BYTES
  start = end + _key_bytes(rotation)
  return _to_floats(encoded[:end]), encoded[end:start], encoded[start:]


def _rotate(
  tensor: tf.Tensor, rotation: str, seed: tf.Tensor
) -> tuple[tf.Tensor, list[tf.Tensor]]:
  """Returns the entries, rotated, and the key in a list if there is one."""
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
