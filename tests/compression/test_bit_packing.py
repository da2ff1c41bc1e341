"""Packed numbers against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated.compression import bit_packing


def _expected(numbers, bits):
  """Returns the numbers as one integer, the first in its lowest bits."""
  total = sum(int(number) << (i * bits) for i, number in enumerate(numbers))
  return total.to_bytes(-(-len(numbers) * bits // 8), 'little')


@pytest.mark.parametrize('bits', range(1, 17))
@pytest.mark.parametrize('count', [0, 1, 2, 3, 5, 7, 8, 9, 16, 17, 101])
def test_numbers_are_packed_without_gaps(bits, count):
  dtype = np.uint8 if bits <= 8 else np.uint16
  generator = np.random.default_rng([bits, count])
  numbers = generator.integers(0, 1 << bits, count).astype(dtype)
  numbers[:1] = (1 << bits) - 1
  packed = bit_packing.pack(tf.constant(numbers), bits)
  assert packed.dtype == tf.uint8
  assert packed.numpy().tobytes() == _expected(numbers, bits)
  assert packed.shape[0] == bit_packing.packed_size(count, bits)
  unpacked = bit_packing.unpack(packed, count, bits)
  assert unpacked.dtype == dtype
  np.testing.assert_array_equal(unpacked, numbers)


@pytest.mark.parametrize('count', [0, 1, 4, 5, 6, 10, 101])
def test_five_trits_take_a_byte(count):
  trits = np.random.default_rng(count).integers(0, 3, count).astype(np.uint8)
  packed = bit_packing.pack_trits(tf.constant(trits))
  padded = np.append(trits, np.zeros(-count % 5, np.uint8)).reshape([-1, 5])
  np.testing.assert_array_equal(packed, padded @ 3 ** np.arange(5))
  assert packed.shape[0] == bit_packing.packed_trits_size(count)
  np.testing.assert_array_equal(bit_packing.unpack_trits(packed, count), trits)


def test_the_largest_byte_of_trits():
  packed = bit_packing.pack_trits(tf.constant([2] * 5, tf.uint8))
  np.testing.assert_array_equal(packed, [242])


def test_a_byte_above_242_raises():
  with pytest.raises(tf.errors.InvalidArgumentError, match='243'):
    bit_packing.unpack_trits(tf.constant([243], tf.uint8), 5)


@pytest.mark.parametrize('bits', [1, 3, 8, 11, 16])
def test_no_operation_is_wider_than_sixteen_bits(bits):
  dtype = tf.uint8 if bits <= 8 else tf.uint16

  @tf.function(input_signature=[tf.TensorSpec([1000], dtype)])
  def round_trip(numbers):
    return bit_packing.unpack(bit_packing.pack(numbers, bits), 1000, bits)

  for operation in round_trip.get_concrete_function().graph.get_operations():
    for output in operation.outputs:
      size = output.shape.num_elements()
      assert output.dtype in (tf.uint8, tf.uint16) or size < 100
