"""Encoded updates: their bytes, and the variables that are not sent."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import tensorflow as tf

from si_federated import compression
from si_federated.compression import Float32, Ternary, Uniform

_SHAPES = [[40, 50], [50], [], [0], [3, 333], [1001], [7], [2], [2000], [9]]
_COMPRESSORS = [
  Float32(),
  Uniform(),
  Uniform(bits=3, threshold=0),
  Uniform(bits=11, rotation='hadamard'),
  Uniform(bits=16, rotation='fourier', threshold=40),
  Ternary(),
  Ternary(rotation='hadamard', threshold=0),
]


def _update(seed=0, zero=()):
  generator = np.random.default_rng(seed)
  parts = [generator.normal(size=s).astype(np.float32) for s in _SHAPES]
  for index in zero:
    parts[index] = np.zeros_like(parts[index])
  return [tf.constant(part) for part in parts]


def _encode(compressor, update, seed=3, round_num=0):
  key = compression.round_seed(seed, tf.constant(round_num, tf.int64), update)
  return compression.encode_update(update, compressor, key)


@pytest.mark.parametrize('compressor', _COMPRESSORS, ids=str)
@pytest.mark.parametrize('zero', [(), (0, 4), (1, 2, 5), range(10)])
def test_bytes_are_those_of_the_serialized_update(compressor, zero):
  update = _update(zero=zero)
  encoded = _encode(compressor, update)
  data = compression.serialize(encoded)
  assert int(compression.num_bytes(encoded)) == len(data)
  again = compression.deserialize(data, compressor, update)
  for index, (one, other) in enumerate(
    zip(
      compression.decode_update(encoded, compressor, update),
      compression.decode_update(again, compressor, update),
    )
  ):
    np.testing.assert_array_equal(one, other)
    assert (index in zero) <= (not np.any(one))
  assert compression.serialize(again) == data


def test_bytes_by_hand():
  update = _update(zero=[4])
  # A bitmap of ten; 2,000 + 8, 1,001 + 8 and 2,000 + 8 in a byte each; others
  # below the threshold of 1,000 in four; 999 that are zero in none.
  expected = 2 + 2008 + 4 * (50 + 1 + 0 + 7 + 2 + 9) + 1009 + 2008
  assert int(compression.num_bytes(_encode(Uniform(), update))) == expected


def test_an_update_of_zeros_costs_only_its_bitmap():
  encoded = _encode(Uniform(), _update(zero=range(10)))
  assert compression.serialize(encoded) == b'\0\0'


def test_frozen_variables_cost_nothing():
  compressor = Uniform(threshold=0)
  whole = int(compression.num_bytes(_encode(compressor, _update())))
  frozen = int(compression.num_bytes(_encode(compressor, _update(zero=[0, 5]))))
  assert whole - frozen == (2000 + 8) + (1001 + 8)


def test_the_bitmap_has_a_bit_for_each_variable_from_the_lowest():
  encoded = _encode(Float32(), _update(zero=[0, 2, 9]))
  # The empty one, number 3, is not sent either.
  np.testing.assert_array_equal(encoded['present'], [0b11110010, 0b1])


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('compressor', _COMPRESSORS, ids=str)
def test_variables_that_are_not_finite_are_sent(compressor, bad):
  update = _update(zero=range(10))
  values = np.zeros([40, 50], np.float32)
  values[3, 4] = bad
  update[0] = tf.constant(values)
  decoded = compression.decode_update(
    _encode(compressor, update), compressor, update
  )
  assert not np.isfinite(decoded[0]).all()
  assert not np.isfinite(tf.linalg.global_norm(decoded))


def test_any_structure_keeps_its_types():
  update = collections.OrderedDict(
    b=(tf.ones([1200], tf.bfloat16), tf.constant(2.0)),
    a=[tf.ones([3], tf.float64)],
  )
  encoded = _encode(Uniform(), update)
  decoded = compression.decode_update(encoded, Uniform(), update)
  tf.nest.assert_same_structure(decoded, update)
  for one, other in zip(tf.nest.flatten(decoded), tf.nest.flatten(update)):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(
      tf.cast(one, tf.float32), tf.cast(other, tf.float32)
    )


def test_no_variables_cost_nothing():
  encoded = _encode(Uniform(), [])
  assert compression.serialize(encoded) == b''
  assert int(compression.num_bytes(encoded)) == 0
  assert compression.deserialize(b'', Uniform(), [])['variables'] == ()


@pytest.mark.parametrize(
  ('change', 'problem'),
  [
    (lambda data: data[:-1], 'truncated'),
    (lambda data: data + b'\0', 'truncated'),
    (lambda data: b'', 'not one of 10 variables'),
    (lambda data: data[:1], 'not one of 10 variables'),
    # One variable too many.
    (
      lambda data: bytes([data[0], data[1] | 128]) + data[2:],
      'not one of 10 variables',
    ),
    # A variable that does not exist.
    (lambda data: bytes([data[0] ^ 1]) + data[1:], 'truncated'),
  ],
)
def test_invalid_bytes_raise(change, problem):
  update = _update()
  data = compression.serialize(_encode(Uniform(), update))
  with pytest.raises(ValueError, match=problem):
    compression.deserialize(change(data), Uniform(), update)


def _errors(update, **options):
  decoded = compression.decode_update(
    _encode(Uniform(bits=4), update, **options), Uniform(bits=4), update
  )
  return np.ravel(decoded[0] - update[0])


def test_rounding_differs_between_rounds_seeds_variables_and_clients():
  update = _update()
  # Another client with almost the same update, and an equal variable.
  other = list(update)
  other[6] = other[6] + 1e-3
  twice = [update[0], update[0]]
  second = compression.decode_update(
    _encode(Uniform(bits=4), twice), Uniform(bits=4), twice
  )
  found = [
    _errors(update),
    _errors(update, round_num=1),
    _errors(update, seed=4),
    _errors(other),
    _errors(twice),
    np.ravel(second[1] - update[0]),
  ]
  np.testing.assert_array_equal(found[0], _errors(update))
  # The fraction of errors with the same direction. Independent errors of equal
  # fractions still have an average product of (1 - 2p)^2.
  same = [[np.mean(a == b) for b in found] for a in found]
  # With p uniform, two of three agree.
  np.testing.assert_allclose(
    np.array(same)[~np.eye(6, dtype=bool)], 2 / 3, atol=0.06
  )


@pytest.mark.parametrize('seed', [-1, 1 << 63, 1.5, None, True])
def test_a_seed_is_an_integer(seed):
  with pytest.raises(ValueError, match='seed'):
    compression.build_upload(None, Uniform(), seed=seed)
