"""Rotations against TFF's, and their properties."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_federated.python.aggregators import hadamard

from si_federated.compression import keys, rotations


def _values(count, seed=0):
  return tf.constant(
    np.random.default_rng(seed).normal(size=count).astype(np.float32)
  )


def _key(number=0):
  return keys.rotation_key(tf.constant([7, number], tf.int64))


@pytest.mark.parametrize('log2', [0, 1, 2, 6, 7, 8, 13, 15])
def test_the_hadamard_transform_is_tffs(log2):
  values = _values(1 << log2)
  expected = hadamard.fast_walsh_hadamard_transform(values[tf.newaxis])[0]
  np.testing.assert_allclose(
    rotations.hadamard(values), expected, rtol=0, atol=1e-5
  )


@pytest.mark.parametrize('rotation', ['hadamard', 'fourier'])
@pytest.mark.parametrize('count', [1, 2, 3, 8, 13, 1000, 1024])
def test_a_rotation_keeps_the_norm_and_has_an_inverse(rotation, count):
  values = _values(count)
  rotated = rotations.rotate(values, rotation, _key())
  assert rotated.shape == [rotations.rotated_size(count, rotation)]
  np.testing.assert_allclose(tf.norm(rotated), tf.norm(values), rtol=1e-5)
  again = rotations.unrotate(rotated, rotation, _key(), count)
  # TensorFlow's Fourier transform is less exact for other sizes.
  np.testing.assert_allclose(again, values, rtol=0, atol=1e-4)


@pytest.mark.parametrize('rotation', ['hadamard', 'fourier'])
def test_one_large_entry_is_spread_over_all(rotation):
  values = np.zeros(256, np.float32)
  values[3] = 16.0
  rotated = rotations.rotate(tf.constant(values), rotation, _key())
  # Each entry is a sign, or a coordinate of a point on a circle.
  if rotation == 'hadamard':
    np.testing.assert_allclose(np.abs(rotated), 1.0, rtol=1e-5)
  else:
    radius = np.hypot(rotated[:128], rotated[128:])
    np.testing.assert_allclose(radius, np.sqrt(2), rtol=1e-5)


@pytest.mark.parametrize('rotation', ['hadamard', 'fourier'])
def test_the_rotation_depends_on_the_key(rotation):
  values = _values(64)
  one, same, other = (
    rotations.rotate(values, rotation, _key(number)) for number in (0, 0, 1)
  )
  np.testing.assert_array_equal(one, same)
  assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize(
  ('rotation', 'count', 'size'),
  [
    ('none', 5, 5),
    ('hadamard', 1, 1),
    ('hadamard', 4, 4),
    ('hadamard', 5, 8),
    ('fourier', 5, 6),
    ('fourier', 6, 6),
  ],
)
def test_padding(rotation, count, size):
  assert rotations.rotated_size(count, rotation) == size
