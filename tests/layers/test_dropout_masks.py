"""Dropout masks that are functions of a key."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated import layers
from si_federated.layers import dropout_masks

_WORDS = np.array([7, 5, 0], np.int32)


def _mixed(x):
  """Computes the hash `lowbias32` with Python's integers."""
  x ^= x >> 16
  x = x * 0x7FEB352D % 2**32
  x ^= x >> 15
  x = x * 0x846CA68B % 2**32
  return x ^ (x >> 16)


def _expected(words, number, size, rate):
  """Returns the mask with a number, from 1, in a scope."""
  key = 0
  for word in words:
    key = _mixed(((key ^ (int(word) % 2**32)) + 0x9E3779B9) % 2**32)
  key = _mixed(key ^ (number * 0x9E3779B9 % 2**32))
  return [
    0.0
    if (_mixed(_mixed(entry) ^ key) >> 8) < round(rate * 2**24)
    else 1 / (1 - rate)
    for entry in range(size)
  ]


def _masks(words, shape=(6, 7), rate=0.4, count=1):
  layer = layers.Dropout(rate)
  with layers.keyed_dropout(tf.constant(words)):
    return [layer(tf.ones(shape), training=True).numpy() for _ in range(count)]


def test_masks_are_a_hash_of_key_number_and_entry():
  words = np.array([-3, 12, 4], np.int32)
  for number, mask in enumerate(_masks(words, count=2), start=1):
    np.testing.assert_allclose(
      mask.ravel(), _expected(words, number, 42, 0.4), rtol=1e-6
    )


@pytest.mark.parametrize('position', [0, 1, 2])
def test_each_word_changes_the_masks(position):
  other = _WORDS.copy()
  other[position] += 1
  (one,), (another,) = _masks(_WORDS), _masks(other)
  assert not np.array_equal(one, another)
  np.testing.assert_array_equal(one, _masks(_WORDS)[0])


def test_masks_drop_the_fraction_and_are_independent():
  one, other = _masks(_WORDS, shape=(400, 500), rate=0.25, count=2)
  # Five standard deviations of 200,000 draws.
  assert abs(np.mean(one == 0) - 0.25) < 0.005
  assert abs(np.mean((one == 0) & (other == 0)) - 0.0625) < 0.003
  assert abs(np.mean((one[1:] == 0) & (one[:-1] == 0)) - 0.0625) < 0.003
  assert abs(np.mean((one[:, 1:] == 0) & (one[:, :-1] == 0)) - 0.0625) < 0.003


def test_nothing_is_dropped_outside_of_training():
  layer = layers.Dropout(0.5)
  with layers.keyed_dropout(tf.constant(_WORDS)):
    np.testing.assert_array_equal(layer(tf.ones([9, 9]), training=False), 1)
  # Keras's own draws differ from call to call.
  one, other = (layer(tf.ones([9, 9]), training=True) for _ in range(2))
  assert not np.array_equal(one, other)


@pytest.mark.parametrize('block_class', ['TransformerBlock', 'ConformerBlock'])
def test_padding_changes_no_mask(block_class):
  block = getattr(layers, block_class)(8, 2, dropout=0.4)
  generator = np.random.default_rng(0)
  x = tf.constant(generator.normal(size=[3, 5, 8]), tf.float32)
  mask = tf.sequence_mask([5, 2, 3], 5)
  results: list[np.ndarray] = []
  for static in (False, True):
    with (
      layers.static_shapes(static),
      layers.keyed_dropout(tf.constant(_WORDS)),
    ):
      results.append(block(x, mask=mask, training=True).numpy())
  np.testing.assert_allclose(results[0], results[1], atol=1e-6)
  plain = block(x, mask=mask, training=False)
  assert np.abs(plain - results[0]).max() > 0.1


def test_recurrent_layers_draw_from_the_key():
  layer = layers.CIFG(4, dropout=0.5, recurrent_dropout=0.5)
  x = tf.ones([2, 3, 4])
  results = []
  for words in (_WORDS, _WORDS, _WORDS + 1):
    with layers.keyed_dropout(tf.constant(words)):
      results.append(layer(x, training=True).numpy())
  np.testing.assert_array_equal(results[0], results[1])
  assert not np.array_equal(results[0], results[2])


def test_the_rate_is_kept_in_steps_of_two_to_the_minus_24():
  with layers.keyed_dropout(tf.constant(_WORDS)):
    none = dropout_masks.mask(tf.ones([1000], tf.float16), 2.0**-26)
  np.testing.assert_array_equal(none, 1)
  assert none.dtype == tf.float16
