from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from si_federated.aggregators import AGGREGATORS, canaries
from si_federated.privacy import strategies

_SHAPES = [[2], [1, 2]]
_SETTINGS = {
  'clip_norm': 5.0,
  'noise_multiplier': 0.0,
  'clients_per_round': 1,
  'total_rounds': 6,
  'noise_seed': 3,
}


def _mechanism(name='scaled_gaussian', **changes):
  return AGGREGATORS[name](**{**_SETTINGS, **changes})


def _update(*values):
  return [
    np.array(values[:2], np.float32),
    np.array([values[2:]], np.float32),
  ]


def _flat(update):
  return np.concatenate([np.ravel(part) for part in update])


def _scales(squares, damping):
  """By hand: damped relative sizes, with a mean square of 1."""
  sizes = np.sqrt(squares / np.mean(squares)) + damping
  return sizes / np.sqrt(np.mean(sizes**2))


def test_updates_are_clipped_in_scaled_coordinates(run):
  factory = _mechanism(scale_decay=0.75, scale_damping=0.5).factory
  initialize, step = run(factory, _SHAPES)
  first = np.array([3.0, 0.0, 0.1, 4.0])
  state, result, _ = step(initialize(), [_update(*first)])
  # No scales yet: a norm of 5.001 is clipped to 5.
  first *= 5 / np.linalg.norm(first)
  np.testing.assert_allclose(_flat(result), first, rtol=1e-6)
  squares = 0.25 * first**2
  scales = _scales(squares, 0.5)
  assert np.mean(scales**2) == pytest.approx(1)
  second = np.array([6.0, 1.0, 1.0, 8.0])
  state, result, measured = step(state, [_update(*second)])
  scaled = second / scales
  assert np.linalg.norm(scaled) > 5
  # Unlike clipping by the norm of the update itself.
  expected = 5 * second / np.linalg.norm(scaled)
  np.testing.assert_allclose(_flat(result), expected, rtol=1e-5)
  assert measured['clip_fraction'] == 1
  squares = 0.75 * squares + 0.25 * expected**2
  small = np.array([0.1, 0.2, 0.3, 0.4])
  state, result, measured = step(state, [_update(*small)])
  # An update that is not clipped is unchanged.
  assert measured['clip_fraction'] == 0
  np.testing.assert_allclose(_flat(result), small, rtol=1e-5)
  squares = 0.75 * squares + 0.25 * small**2
  _, result, _ = step(state, [_update(*second)])
  scaled = second / _scales(squares, 0.5)
  np.testing.assert_allclose(
    _flat(result), 5 * second / np.linalg.norm(scaled), rtol=1e-5
  )


def test_noise_lands_in_scaled_coordinates(run):
  options = {'noise_multiplier': 2.0, 'scale_decay': 0.0, 'scale_delay': 2}
  initialize, step = run(_mechanism(**options).factory, _SHAPES)
  plain_start, plain_step = run(
    _mechanism('gaussian', noise_multiplier=2.0).factory, _SHAPES
  )
  zero = _update(0.0, 0.0, 0.0, 0.0)
  state, plain_state = initialize(), plain_start()
  scales = np.ones(4)
  for round_num in range(1, 6):
    state, result, _ = step(state, [zero])
    plain_state, noise, _ = plain_step(plain_state, [zero])
    np.testing.assert_allclose(_flat(result), scales * _flat(noise), rtol=1e-4)
    if round_num % 2 == 0:
      # The scales of two rounds are those of the last release before.
      scales = _scales(_flat(result) ** 2, 0.1)
  assert scales.max() > 1.5 * scales.min()


def test_the_sum_moves_by_at_most_the_clip_norm_in_scaled_coordinates(run):
  initialize, step = run(_mechanism(scale_decay=0.5).factory, _SHAPES)
  state = initialize()
  generator = np.random.default_rng(1)
  for _ in range(5):
    scales = _flat(state['scaling']['scales'])
    update = _update(*generator.normal(scale=[100.0, 1.0, 1e3, 0.1]))
    state, result, _ = step(state, [update])
    # With one client, the sum changes by its clipped update.
    assert np.linalg.norm(_flat(result) / scales) <= 5 * (1 + 1e-6)
  assert np.isfinite(scales).all() and scales.min() > 0


def test_privacy_is_that_of_independent_noise():
  scaled = _mechanism(noise_multiplier=1.5).record
  plain = _mechanism('gaussian', noise_multiplier=1.5).record
  assert scaled.sensitivity == plain.sensitivity
  assert scaled.epsilon(1e-6) == plain.epsilon(1e-6)
  assert scaled.kind == 'identity'


def test_an_update_that_is_not_finite_counts_as_zero(run):
  initialize, step = run(_mechanism().factory, _SHAPES)
  state, result, measured = step(initialize(), [_update(np.nan, 1.0, 1.0, 1.0)])
  assert not _flat(result).any() and measured['nonfinite_updates'] == 1
  # Without any release all scales are equal.
  assert (_flat(state['scaling']['scales']) == 1).all()


def test_a_saved_state_goes_on_to_the_bit(run):
  options = {'noise_multiplier': 1.0, 'noise_seed': None, 'scale_delay': 2}
  initialize, step = run(_mechanism(**options).factory, _SHAPES)
  state, results = initialize(), []
  for t in range(6):
    if t == 3:
      middle = tf.nest.map_structure(np.array, state)
    state, result, _ = step(state, [_update(1.0, 0.1, 3.0, 0.2)])
    results.append(_flat(result))
  _, step = run(_mechanism(**options).factory, _SHAPES)
  for expected in results[3:]:
    middle, result, _ = step(middle, [_update(1.0, 0.1, 3.0, 0.2)])
    np.testing.assert_array_equal(_flat(result), expected)


def test_small_coordinates_get_less_noise(run):
  settings = {'noise_multiplier': 0.3, 'total_rounds': 30, 'clip_norm': 1.0}
  noise = {}
  for name in ('gaussian', 'scaled_gaussian'):
    initialize, step = run(_mechanism(name, **settings).factory, _SHAPES)
    state, found = initialize(), []
    for _ in range(30):
      state, mean, _ = step(state, [_update(0.9, 0.01, 0.01, 0.01)])
      found.append(_flat(mean))
    noise[name] = np.std(found[10:], axis=0)
  # An adaptive optimizer divides them by their size, and so enlarges the noise.
  assert (noise['scaled_gaussian'][1:] < 0.8 * noise['gaussian'][1:]).all()


def test_correlated_noise_and_audits_are_refused():
  factory = _mechanism().factory
  two_bands = strategies.Toeplitz(np.array([1.0, 0.5]), 6)
  with pytest.raises(ValueError, match='needs fixed scales'):
    dataclasses.replace(factory, strategy=two_bands)
  plan = canaries.schedule(
    num_canaries=60,
    strategy=factory.strategy,
    participations=1,
    separation=1,
  )
  with pytest.raises(ValueError, match='fixed clip norm'):
    canaries.CanaryFactory(factory, 0, plan)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'scale_decay': 1.0}, 'scale_decay is 1.0'),
    ({'scale_damping': 0.0}, 'scale_damping is 0.0'),
    ({'scale_delay': 0}, 'scale_delay is 0'),
  ],
)
def test_impossible_scalings_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    _mechanism(**options)
