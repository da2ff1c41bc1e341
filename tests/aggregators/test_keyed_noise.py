"""Keyed noise: distribution, keys and seeds."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated.aggregators import keyed_noise

_SHAPES = [tf.TensorShape([100, 100]), tf.TensorShape([10_000])]


def _draw(noise_seed, row, release=0, **options):
  seed = keyed_noise.initial_seed(noise_seed, release)
  return [
    part.numpy().ravel()
    for part in keyed_noise.standard_normals(seed, row, _SHAPES, **options)
  ]


def test_noise_is_standard_normal():
  values = np.concatenate([np.concatenate(_draw(1, row)) for row in range(10)])
  assert abs(values.mean()) < 4 / np.sqrt(values.size)
  assert values.var() == pytest.approx(1, abs=4 * np.sqrt(2 / values.size))
  assert (values**4).mean() == pytest.approx(3, abs=0.1)


def test_the_same_key_gives_the_same_bits():
  for one, other in zip(_draw(5, 9), _draw(5, 9)):
    np.testing.assert_array_equal(one, other)


def test_all_other_keys_give_independent_noise():
  # Seeds, rows and variables that differ in single bits, high and low ones.
  draws = [
    part
    for seed in (0, 1, 2**31, 2**62)
    for row in (0, 1, 2, 2**30)
    for release in (0, 1)
    for part in _draw(seed, row, release)
  ]
  correlations = np.corrcoef(np.array(draws))
  np.fill_diagonal(correlations, 0)
  assert np.abs(correlations).max() < 0.06
  assert len({draw.tobytes() for draw in draws}) == len(draws)


def test_streams_continue_from_first_stream():
  seed = keyed_noise.initial_seed(4)
  (second,) = keyed_noise.standard_normals(seed, 3, _SHAPES[1:], first_stream=1)
  np.testing.assert_array_equal(second.numpy(), _draw(4, 3)[1])


def test_without_a_seed_each_run_has_its_own():
  @tf.function
  def begin():
    return keyed_noise.initial_seed(None)

  seeds = [begin().numpy() for _ in range(3)]
  assert len({seed.tobytes() for seed in seeds}) == 3


def test_the_seed_of_keras_does_not_determine_the_noise():
  seeds = []
  for _ in range(2):
    tf.keras.utils.set_random_seed(1)
    seeds.append(keyed_noise.initial_seed(None).numpy())
  assert (seeds[0] != seeds[1]).any()


def test_more_releases_than_keys_are_rejected():
  with pytest.raises(ValueError, match='release is 2'):
    keyed_noise.initial_seed(0, 2)


@pytest.mark.parametrize('seed', [-1, 2**63, 0.5, True, '3'])
def test_bad_seeds_are_rejected(seed):
  with pytest.raises(ValueError, match='noise_seed is'):
    keyed_noise.check_seed(seed)
