"""Random rotations that spread large entries over all entries of a variable.

The error of quantization grows with a variable's range; after a rotation all
entries have about the same size (Suresh et al. 2017, arXiv 1611.00429). These
are the rotations of TFF's `HadamardTransformFactory` and
`DiscreteFourierTransformFactory`, on one tensor and in fewer passes over it.
"""

from __future__ import annotations

import math

import tensorflow as tf

from si_federated.compression import keys

ROTATIONS = ('none', 'hadamard', 'fourier')
_LOG2_BLOCK = 7


def check(rotation: str) -> None:
  """Raises `ValueError` unless a name is in `ROTATIONS`."""
  if rotation not in ROTATIONS:
    raise ValueError(
      f'rotation is {rotation!r}; choose one of {", ".join(ROTATIONS)}.'
    )


def rotated_size(count: int, rotation: str) -> int:
  """Returns the number of entries of a rotated variable of `count` entries.

  The Hadamard transform pads with zeros to a power of two, which can almost
  double the bytes. The Fourier transform pads to an even number, but is several
  times slower, above all for sizes with large prime factors.
  """
  if rotation == 'hadamard':
    return 1 << max(count - 1, 0).bit_length()
  if rotation == 'fourier':
    return count + count % 2
  return count


def rotate(values: tf.Tensor, rotation: str, key: tf.Tensor) -> tf.Tensor:
  """Rotates a variable.

  Args:
    values: Shape `[n]`, float32, not empty.
    rotation: `'hadamard'` or `'fourier'`.
    key: From `keys.rotation_key`.

  Returns:
    Shape `[rotated_size(n, rotation)]`, float32, of the same norm.
  """
  count = int(values.shape[0])
  padding = rotated_size(count, rotation) - count
  if padding:
    values = tf.concat([values, tf.zeros([padding])], 0)
  seed = keys.rotation_seed(key)
  if rotation == 'hadamard':
    return hadamard(_flip_signs(values, seed))
  pairs = _to_complex(values)
  pairs *= _phases(int(pairs.shape[0]), seed, 1.0)
  return _to_real(tf.signal.fft(pairs)) / math.sqrt(int(pairs.shape[0]))


def unrotate(
  values: tf.Tensor, rotation: str, key: tf.Tensor, count: int
) -> tf.Tensor:
  """Inverts `rotate`.

  Args:
    values: The rotated values.
    rotation: See `rotate`.
    key: See `rotate`.
    count: The number of values before the rotation.

  Returns:
    Shape `[count]`, float32.
  """
  seed = keys.rotation_seed(key)
  if rotation == 'hadamard':
    # The transform, symmetric and orthogonal, is its own inverse.
    return _flip_signs(hadamard(values), seed)[:count]
  pairs = tf.signal.ifft(_to_complex(values))
  pairs *= _phases(int(pairs.shape[0]), seed, -1.0)
  return _to_real(pairs)[:count] * math.sqrt(int(pairs.shape[0]))


def hadamard(values: tf.Tensor) -> tf.Tensor:
  """Returns the normalized Walsh-Hadamard transform.

  The matrix is a Kronecker product of small ones, so that a few matrix products
  suffice; TFF's `fast_walsh_hadamard_transform` passes over the values twice
  for every factor of two.

  Args:
    values: Shape `[n]`, float32, n a power of two.
  """
  count = int(values.shape[0])
  log2 = count.bit_length() - 1
  steps = -(-log2 // _LOG2_BLOCK)
  for step in range(steps):
    # Each product transforms the last axis and makes it the first, so that in
    # the end the axes are in order again.
    size = 1 << ((log2 + step) // steps)
    values = tf.linalg.matmul(
      _hadamard_matrix(size), tf.reshape(values, [-1, size]), transpose_b=True
    )
  return tf.reshape(values, [count])


def _hadamard_matrix(size: int) -> tf.Tensor:
  """Computes the normalized matrix, which is too large for a graph constant."""
  numbers = tf.range(size)
  common = tf.bitwise.bitwise_and(numbers[:, tf.newaxis], numbers)
  odd = tf.raw_ops.PopulationCount(x=common) % tf.constant(2, tf.uint8)
  return (1 - 2 * tf.cast(odd, tf.float32)) / math.sqrt(size)


def _flip_signs(values: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  # TFF's `sample_rademacher` takes the sign of a uniform number less 0.5, which
  # is 0 once in 2^23 entries; these would be lost.
  random = keys.random_bits(int(values.shape[0]), seed, tf.uint8)
  return tf.where(random < tf.constant(128, tf.uint8), values, -values)


def _phases(count: int, seed: tf.Tensor, sign: float) -> tf.Tensor:
  """Returns random points on the unit circle, or their conjugates."""
  uniform = tf.random.stateless_uniform([count], seed, alg='philox')
  angle = uniform * (2.0 * math.pi)
  return tf.complex(tf.cos(angle), sign * tf.sin(angle))


def _to_complex(values: tf.Tensor) -> tf.Tensor:
  real, imaginary = tf.split(values, 2)
  return tf.complex(real, imaginary)


def _to_real(values: tf.Tensor) -> tf.Tensor:
  return tf.concat([tf.math.real(values), tf.math.imag(values)], 0)
