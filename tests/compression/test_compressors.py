"""Quantisers of one variable: by hand, unbiased, within their bound."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from si_federated.compression import (
  COMPRESSORS,
  Compressor,
  Float32,
  Ternary,
  Uniform,
)

_COMPRESSORS: dict[str, Compressor] = {
  'float32': Float32(),
  **{
    f'uniform{bits}_{rotation}': Uniform(bits, rotation)
    for bits in (1, 3, 8, 16)
    for rotation in ('none', 'hadamard', 'fourier')
  },
  **{
    f'ternary_{rotation}': Ternary(rotation)
    for rotation in ('none', 'hadamard', 'fourier')
  },
}
_LOSSY = sorted(set(_COMPRESSORS) - {'float32'})
_UNIFORM = [name for name in _LOSSY if name.startswith('uniform')]


def _seed(number):
  return tf.constant([5, number], tf.int64)


def _decode(compressor, values, seed=0):
  values = tf.constant(values)
  encoded = compressor.encode(values, _seed(seed))
  return compressor.decode(encoded, values.shape).numpy()


def _values(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _many(compressor, values, count=3000):
  """Decodes with `count` seeds: shape `[count, n]`, float64."""
  values = tf.constant(values)

  @tf.function
  def all_of_them():
    return tf.map_fn(
      lambda i: compressor.decode(
        compressor.encode(values, tf.stack([tf.constant(5, tf.int64), i])),
        values.shape,
      ),
      tf.range(count, dtype=tf.int64),
      fn_output_signature=tf.TensorSpec(values.shape),
    )

  return all_of_them().numpy().astype(np.float64)


def test_levels_by_hand():
  compressor = Uniform(bits=2, threshold=0)
  values = tf.constant([[0.0, 1.0], [2.0, 3.0]])
  encoded = compressor.encode(values, _seed(0))
  # All values are levels: 0, 1, 2, 3 in two bits, from the lowest.
  header = np.array([0.0, 3.0], np.float32).tobytes()
  assert encoded.numpy().tobytes() == header + bytes([0b11100100])
  np.testing.assert_array_equal(compressor.decode(encoded, [2, 2]), values)


def test_an_entry_between_two_levels_by_hand():
  # Levels -1, 0, 1, 2; 0.25 is rounded to 0 three times of four, else to 1.
  found = _many(Uniform(bits=2), np.array([-1.0, 0.25, 2.0], np.float32))
  np.testing.assert_allclose(found[:, 0], -1.0)
  np.testing.assert_allclose(found[:, 2], 2.0)
  assert set(found[:, 1]) == {0.0, 1.0}
  assert found[:, 1].mean() == pytest.approx(0.25, abs=0.04)


def test_trits_by_hand():
  compressor = Ternary()
  # All magnitudes equal the scale, so that nothing is random.
  values = np.array([3.0, -3.0, 0.0, 3.0, -3.0, 3.0], np.float32)
  encoded = compressor.encode(tf.constant(values), _seed(0))
  header = np.array([3.0], np.float32).tobytes()
  # Digits 2, 0, 1, 2, 0 and 2 to base 3.
  expected = header + bytes([2 + 1 * 9 + 2 * 27, 2])
  assert encoded.numpy().tobytes() == expected
  np.testing.assert_array_equal(compressor.decode(encoded, [6]), values)


def test_ternary_clips_to_two_and_a_half_deviations():
  values = np.zeros(100, np.float32)
  values[7] = -100.0
  # Mean -1, variance (99 * 1 + 99^2) / 100 = 99.
  expected = np.zeros(100)
  expected[7] = -2.5 * np.sqrt(99)
  np.testing.assert_allclose(_decode(Ternary(), values), expected, rtol=1e-5)


@pytest.mark.parametrize('name', _UNIFORM)
def test_uniform_is_unbiased(name):
  values = _values(21)
  found = _many(_COMPRESSORS[name], values)
  spread = found.std(axis=0)
  # Where an entry is on a level, nothing is random.
  bound = 5 * spread / np.sqrt(len(found)) + 1e-5
  assert (np.abs(found.mean(axis=0) - values) < bound).all()
  assert np.median(spread) > 1e-6


def test_ternary_is_unbiased_for_the_clipped_variable():
  values = _values(40)
  values[0] = 20.0
  limit = 2.5 * values.std()
  clipped = np.clip(values, -limit, limit)
  found = _many(Ternary(), values)
  bound = 5 * found.std(axis=0) / np.sqrt(len(found)) + 1e-5
  assert (np.abs(found.mean(axis=0) - clipped) < bound).all()
  # It is biased for clipped entries.
  assert found[:, 0].mean() == pytest.approx(limit) and limit < 10


@pytest.mark.parametrize('bits', [1, 2, 7, 8, 9, 12, 16])
def test_the_error_of_uniform_is_below_a_level(bits):
  values = _values(999)
  levels = (1 << bits) - 1
  step = (values.max() - values.min()) / levels
  found = _decode(Uniform(bits), values)
  # Float32 of values of a few units: 2^-22.
  assert np.abs(found - values).max() < step + 1e-6
  numbers = (found - values.min()) / step
  np.testing.assert_allclose(numbers, np.round(numbers), atol=1e-6 / step)


@pytest.mark.parametrize('rotation', ['hadamard', 'fourier'])
@pytest.mark.parametrize('bits', [1, 4, 8])
def test_rotated_uniform_is_within_its_bound(rotation, bits):
  values = _values([37, 13])
  compressor = Uniform(bits, rotation)
  encoded = compressor.encode(tf.constant(values), _seed(0))
  low, high = np.frombuffer(encoded.numpy()[:8].tobytes(), np.float32)
  step = (high - low) / ((1 << bits) - 1)
  error = compressor.decode(encoded, [37, 13]) - values
  size = {'hadamard': 512, 'fourier': 482}[rotation]
  assert 0 < np.linalg.norm(error) < np.sqrt(size) * step


def test_ternary_has_three_values():
  values = _values(1001)
  found = _decode(Ternary(), values)
  scale = min(np.abs(values).max(), 2.5 * values.std())
  np.testing.assert_allclose(np.unique(found), [-scale, 0, scale], rtol=1e-6)
  assert (found * values >= 0).all()


def test_a_rotation_reduces_the_error_of_outliers():
  values = _values(4096)
  values[100] = 1000.0
  errors = {
    rotation: np.square(_decode(Uniform(4, rotation), values) - values).sum()
    for rotation in ('none', 'hadamard', 'fourier')
  }
  assert errors['hadamard'] < errors['none'] / 3
  assert errors['fourier'] < errors['none'] / 3


@pytest.mark.parametrize('name', sorted(_COMPRESSORS))
@pytest.mark.parametrize(
  'shape', [[], [0], [3, 0], [1], [5], [7, 3], [2, 1, 9]]
)
def test_the_encoded_size_of_any_shape(name, shape):
  compressor = _COMPRESSORS[name]
  values = tf.constant(_values(shape))
  encoded = compressor.encode(values, _seed(0))
  assert encoded.dtype == tf.uint8
  count = int(np.prod(shape))
  assert encoded.shape == [compressor.encoded_size(count)]
  decoded = compressor.decode(encoded, shape)
  assert decoded.shape == shape and decoded.dtype == tf.float32
  assert np.isfinite(decoded).all()


@pytest.mark.parametrize(
  ('compressor', 'size'),
  [
    (Float32(), 4 * 100),
    (Uniform(), 8 + 100),
    (Uniform(bits=3), 8 + 38),
    (Uniform(bits=8, rotation='hadamard'), 8 + 8 + 128),
    (Uniform(bits=16, rotation='fourier'), 8 + 8 + 200),
    (Ternary(), 4 + 20),
    (Ternary(rotation='hadamard'), 4 + 8 + 26),
  ],
)
def test_bytes_of_a_hundred_entries_by_hand(compressor, size):
  assert compressor.encoded_size(100) == size


@pytest.mark.parametrize('value', [0.0, 2.5, -1e-3, 3e38, -3e38])
@pytest.mark.parametrize(
  'compressor', [Float32(), Uniform(1), Uniform(8), Uniform(16), Ternary()]
)
def test_equal_entries_are_exact(compressor, value):
  values = np.full([3, 5], value, np.float32)
  if isinstance(compressor, Ternary) and abs(value) > 1e30:
    pytest.skip('the squares of a standard deviation are none of float32')
  np.testing.assert_array_equal(_decode(compressor, values), values)


def test_float32_is_exact():
  values = _values([4, 5])
  values[0, :3] = np.nan, np.inf, -0.0
  np.testing.assert_array_equal(_decode(Float32(), values), values)


@pytest.mark.parametrize('name', _LOSSY)
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('place', [0, 11, 32])
def test_entries_that_are_not_finite_decode_to_nan(name, bad, place):
  values = _values(33)
  values[place] = bad
  assert np.isnan(_decode(_COMPRESSORS[name], values)).all()


@pytest.mark.parametrize('name', _LOSSY)
def test_a_range_that_is_not_finite_decodes_to_nan(name):
  values = np.array([3e38, -3e38, 3e38, -2e38], np.float32)
  assert np.isnan(_decode(_COMPRESSORS[name], values)).all()


def test_a_tiny_range():
  values = np.array([1e-35, 2e-35, 1.5e-35], np.float32)
  found = _decode(Uniform(16), values)
  np.testing.assert_allclose(found, values, rtol=0, atol=1e-35)


@pytest.mark.parametrize('name', _LOSSY)
def test_rounding_depends_on_the_seed(name):
  compressor = _COMPRESSORS[name]
  values = _values(500)
  decode = functools.partial(_decode, compressor, values)
  np.testing.assert_array_equal(decode(1), decode(1))
  assert (decode(1) != decode(2)).any()


def test_halves_and_doubles_are_sent_as_float32():
  for dtype in (tf.bfloat16, tf.float16, tf.float64):
    values = tf.cast(tf.constant(_values(20)), dtype)
    encoded = Uniform(16).encode(values, _seed(0))
    found = Uniform(16).decode(encoded, [20])
    np.testing.assert_allclose(found, tf.cast(values, tf.float32), atol=1e-3)


def test_the_registry():
  assert set(COMPRESSORS) == {'float32', 'uniform', 'ternary'}
  for build in COMPRESSORS.values():
    compressor = build()
    assert compressor.encoded_size(10) > 0
  assert COMPRESSORS['uniform']() == Uniform(bits=8, rotation='none')


@pytest.mark.parametrize(
  ('name', 'options', 'problem'),
  [
    ('uniform', {'bits': 0}, 'bits is 0'),
    ('uniform', {'bits': 17}, 'bits is 17'),
    ('uniform', {'bits': 7.5}, 'bits is 7.5'),
    ('uniform', {'bits': True}, 'bits is True'),
    ('uniform', {'rotation': 'hadamar'}, "rotation is 'hadamar'"),
    ('ternary', {'rotation': 'hadamar'}, "rotation is 'hadamar'"),
    ('uniform', {'threshold': -1}, 'threshold is -1'),
    ('ternary', {'threshold': 0.5}, 'threshold is 0.5'),
  ],
)
def test_bad_options_raise(name, options, problem):
  with pytest.raises(ValueError, match=problem):
    COMPRESSORS[name](**options)
