"""The private aggregation: its sums, its noise and its state."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.aggregators import (
  CorrelatedNoiseFactory,
  adaptive_clip,
  keyed_noise,
)
from si_federated.aggregators.private_settings import PrivateSettings
from si_federated.privacy import strategies

_SHAPES = [[3, 2], [], [5]]
_ROUNDS = 64
_STRATEGIES: dict[str, Any] = {
  'identity': strategies.identity(_ROUNDS),
  'blt': strategies.Blt.from_parameters(
    np.array([0.99, 0.9, 0.5, 0.1]), np.array([0.2, 0.2, 0.1, 0.02]), _ROUNDS
  ),
  'tree': strategies.Tree(_ROUNDS),
  'banded_inverse': strategies.BandedInverse.from_inverse(
    [1.0, -0.5, -0.25, -0.125], _ROUNDS
  ),
}


@functools.cache
def _factory(strategy='identity', keep_rows=None, adaptive=None, **options):
  return CorrelatedNoiseFactory(
    _STRATEGIES[strategy],
    PrivateSettings(
      **{
        'clip_norm': 2.0,
        'noise_multiplier': 0.0,
        'clients_per_round': 4,
        'total_rounds': _ROUNDS,
        'noise_seed': 11,
        **options,
      }
    ),
    keep_rows=keep_rows,
    adaptive=adaptive,
  )


def _update(value):
  """Returns an update whose norm is `value` times sqrt(12)."""
  return [np.full(shape, value, np.float32) for shape in _SHAPES]


def _zeros(count=1):
  return [_update(0.0)] * count


def _concatenated(update):
  return np.concatenate([np.ravel(part) for part in update])


def _noise(run, factory, rounds=_ROUNDS, shapes=_SHAPES):
  """Returns the noise that a process adds to sums, in standard deviations."""
  initialize, step = run(factory, shapes)
  state = initialize()
  zero = [np.zeros(shape, np.float32) for shape in shapes]
  rows = []
  for _ in range(rounds):
    state, result, _ = step(state, [zero])
    rows.append(_concatenated(result))
  settings = factory.settings
  return (
    np.array(rows, np.float64)
    * settings.clients_per_round
    / (settings.clip_norm * settings.noise_multiplier)
  )


def _standard_normals(seed, rows):
  pair = keyed_noise.initial_seed(seed)
  shapes = [tf.TensorShape(shape) for shape in _SHAPES]
  return np.array(
    [
      _concatenated(keyed_noise.standard_normals(pair, row, shapes))
      for row in range(rows)
    ],
    np.float64,
  )


@pytest.mark.parametrize('strategy', ['identity', 'tree'])
def test_without_noise_it_is_the_clipped_mean(run, strategy):
  initialize, step = run(_factory(strategy), _SHAPES)
  big = _update(1.0)  # Of norm sqrt(12), so it counts for 2 / sqrt(12) each.
  state, result, measurements = step(
    initialize(), [_update(0.25), big, _update(-0.5), _update(0.0)]
  )
  expected = (0.25 + 2 / np.sqrt(12) - 0.5) / 4
  for part, shape in zip(result, _SHAPES):
    np.testing.assert_allclose(part, np.full(shape, expected), rtol=1e-6)
  assert measurements['clip_fraction'] == 0.25
  assert measurements['nonfinite_updates'] == 0
  assert measurements['clip_norm'] == 2
  # Without noise there are no buffers.
  assert set(state) == {'round_num', 'seed', 'clip_norm'}


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 3e38])
def test_updates_that_are_not_finite_count_as_zero(run, bad):
  initialize, step = run(_factory(), _SHAPES)
  broken = _update(0.5)
  broken[2][3] = bad
  _, result, measurements = step(
    initialize(), [broken, _update(0.5), _update(bad)]
  )
  for part in result:
    np.testing.assert_allclose(part, np.full(part.shape, 0.5 / 4), rtol=1e-6)
  assert measurements['nonfinite_updates'] == 2
  assert measurements['clip_fraction'] == 0


def test_updates_of_zero_give_zero(run):
  initialize, step = run(_factory(), _SHAPES)
  _, result, _ = step(initialize(), _zeros(3))
  for part in result:
    np.testing.assert_array_equal(part, np.zeros_like(part))


def test_the_sum_is_divided_by_the_expected_cohort(run):
  initialize, step = run(_factory(), _SHAPES)
  _, one, _ = step(initialize(), [_update(0.25)])
  np.testing.assert_allclose(one[1], 0.25 / 4, rtol=1e-6)


@pytest.mark.parametrize('kind', ['gaussian', 'tree'])
def test_without_noise_it_is_tffs(run, kind):
  build = tff.aggregators.DifferentiallyPrivateFactory
  if kind == 'gaussian':
    theirs = build.gaussian_fixed(
      noise_multiplier=0.0, clients_per_round=4, clip=2.0
    )
    ours = _factory()
  else:
    theirs = build.tree_aggregation(
      noise_multiplier=0.0,
      clients_per_round=4,
      l2_norm_clip=2.0,
      record_specs=[tf.TensorSpec(shape) for shape in _SHAPES],
    )
    ours = _factory('tree')
  random = np.random.default_rng(0)
  updates = [
    [random.normal(size=shape).astype(np.float32) * scale for shape in _SHAPES]
    for scale in (0.1, 1.0, 10.0)
  ]
  histories = []
  for factory in (theirs, ours):
    initialize, step = run(factory, _SHAPES)
    state, history = initialize(), []
    for t in range(5):
      state, result, _ = step(state, updates[: 1 + t % 3])
      history.append(_concatenated(result))
    histories.append(history)
  np.testing.assert_allclose(histories[0], histories[1], rtol=1e-5, atol=1e-7)


def test_without_noise_the_adaptive_clip_is_tffs(run):
  theirs = tff.aggregators.DifferentiallyPrivateFactory.gaussian_adaptive(
    noise_multiplier=0.0, clients_per_round=4, initial_l2_norm_clip=0.5
  )
  ours = _factory(clip_norm=0.5, adaptive=adaptive_clip.AdaptiveClip())
  updates = [_update(v) for v in (0.1, 0.3, 0.5, 0.01)]
  histories = []
  for factory in (theirs, ours):
    initialize, step = run(factory, _SHAPES)
    state, history = initialize(), []
    for _ in range(20):
      state, result, _ = step(state, updates)
      history.append(_concatenated(result))
    histories.append(np.array(history))
  np.testing.assert_allclose(histories[0], histories[1], rtol=1e-5)
  # It moved: half of the updates are to be clipped.
  norm = state['clip_norm']
  assert 0.1 * np.sqrt(12) <= norm <= 0.3 * np.sqrt(12)


@pytest.mark.parametrize(
  ('start', 'unclipped', 'end'), [(1e-9, 1.0, 1e-10), (1e9, 0.0, 1e10)]
)
def test_an_adaptive_clip_norm_is_bounded_and_comes_back(start, unclipped, end):
  adaptive = adaptive_clip.AdaptiveClip()
  norm = tf.constant(start)
  # 0.1 in the logarithm per round: unbounded, float32 fails within 1,000.
  for _ in range(1000):
    norm = adaptive.update(norm, tf.constant(unclipped))
  assert float(norm) == pytest.approx(end)
  for _ in range(50):
    norm = adaptive.update(norm, tf.constant(1.0 - unclipped))
  factor = np.exp(5 if unclipped else -5)
  assert float(norm) == pytest.approx(end * factor, rel=1e-4)


def test_the_noise_of_the_adaptive_clip(run):
  clip = adaptive_clip.AdaptiveClip(learning_rate=0.2, count_noise=0.5)
  factory = _factory(noise_multiplier=1.0, adaptive=clip)
  # By hand: 1 / 1^2 = 1 / x^2 + 1 / (2 * 0.5 * 4)^2.
  noise, count_noise = clip.split(1.0, 4)
  assert noise == pytest.approx(1 / np.sqrt(15 / 16))
  assert count_noise == 0.5
  initialize, step = run(factory, _SHAPES)
  state, result, measurements = step(initialize(), [_update(1e-9)] * 4)
  z = _standard_normals(11, 1)[0]
  np.testing.assert_allclose(
    _concatenated(result), noise * 2.0 * z / 4, rtol=1e-5
  )
  assert measurements['clip_norm'] == 2
  # All were below the norm; their fraction has noise of 0.5.
  (unit,) = keyed_noise.standard_normals(
    keyed_noise.initial_seed(11), 0, [tf.TensorShape([])], first_stream=3
  )
  part = np.clip(1 + 0.5 * unit.numpy(), 0, 1)
  assert state['clip_norm'] == pytest.approx(2 * np.exp(-0.2 * (part - 0.5)))


def test_the_count_of_the_adaptive_clip_has_sensitivity_one_half(run):
  # Without noise, the next clip norm shows the count.
  clip = adaptive_clip.AdaptiveClip(learning_rate=1.0, count_noise=0.5)
  initialize, step = run(_factory(adaptive=clip), _SHAPES)
  others = [_update(0.1), _update(5.0)]

  def count(client):
    updates = others if client is None else [*others, _update(client)]
    state, _, _ = step(initialize(), updates)
    return -4 * np.log(state['clip_norm'] / 2.0)

  # Absent, or present with an update that is zero, below the norm of 2, above
  # it, or not finite.
  absent = count(None)
  for client, added in [
    (0.0, 0.0),
    (0.1, 0.5),
    (5.0, -0.5),
    (np.nan, 0.0),
    (np.inf, 0.0),
  ]:
    assert count(client) - absent == pytest.approx(added, abs=1e-5)


def test_the_noise_of_a_process_is_the_dense_product(run):
  found = _noise(run, _factory('blt', noise_multiplier=1.0))
  expected = np.linalg.solve(
    _STRATEGIES['blt'].matrix(), _standard_normals(11, _ROUNDS)
  )
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('strategy', ['blt', 'tree'])
def test_noise_has_the_variances_and_correlations_of_its_strategy(
  run, strategy, tree_decoder
):
  rounds, size = 6, 40_000
  factory = _factory(strategy, noise_multiplier=3.0)
  found = np.cov(_noise(run, factory, rounds, [[size]]))
  if strategy == 'tree':
    rows = np.diff(tree_decoder(rounds, 'honaker'), axis=0, prepend=0)
  else:
    rows = np.linalg.inv(_STRATEGIES[strategy].matrix())[:rounds, :rounds]
  np.testing.assert_allclose(found, rows @ rows.T, atol=0.05)


def test_independent_noise_is_independent(run):
  noise = _noise(run, _factory(noise_multiplier=1.0), 30, [[5_000]])
  correlations = np.corrcoef(noise)
  np.fill_diagonal(correlations, 0)
  assert np.abs(correlations).max() < 0.08
  assert noise.var() == pytest.approx(1, abs=0.02)


def test_the_seed_determines_the_noise(run):
  one, same, other = (
    _noise(run, _factory('blt', noise_multiplier=1.0, noise_seed=seed), 3)
    for seed in (11, 11, 2)
  )
  np.testing.assert_array_equal(one, same)
  assert (one != other).all()


def test_without_a_seed_no_two_runs_are_the_same(run):
  factory = _factory(noise_multiplier=1.0, noise_seed=None)
  initialize, step = run(factory, _SHAPES)
  results = [step(initialize(), _zeros())[1] for _ in range(2)]
  assert (_concatenated(results[0]) != _concatenated(results[1])).all()


def _saved(state):
  """Writes a state to a file and reads it again, as a checkpoint does."""
  leaves = tf.nest.flatten(state)
  file = io.BytesIO()
  np.savez(file, *leaves)
  file.seek(0)
  with np.load(file) as arrays:
    return tf.nest.pack_sequence_as(
      state, [arrays[f'arr_{i}'] for i in range(len(leaves))]
    )


@pytest.mark.parametrize('strategy', ['blt', 'tree', 'banded_inverse'])
def test_resuming_from_a_saved_state_is_exact(run, strategy):
  def begin():
    # Each factory is traced to its own graph.
    settings = _factory(noise_multiplier=1.0, noise_seed=None).settings
    return run(CorrelatedNoiseFactory(_STRATEGIES[strategy], settings), _SHAPES)

  initialize, step = begin()
  state, results = initialize(), []
  for t in range(16):
    if t == 7:
      # A tree keeps three estimates, which round 8 uses.
      middle = _saved(state)
    state, result, _ = step(state, [_update(0.1)])
    results.append(_concatenated(result))
  _, step = begin()
  for expected in results[7:]:
    middle, result, _ = step(middle, [_update(0.1)])
    np.testing.assert_array_equal(_concatenated(result), expected)


@pytest.mark.parametrize(
  ('strategy', 'buffers'), [('blt', 4), ('banded_inverse', 0)]
)
def test_the_state_is_the_buffers_alone(run, strategy, buffers):
  shapes = [[40, 50], [100]]
  initialize, step = run(_factory(strategy, noise_multiplier=1.0), shapes)
  state = initialize()
  zero = [np.zeros(shape, np.float32) for shape in shapes]
  for _ in range(2):
    sizes = [np.asarray(leaf).nbytes for leaf in tf.nest.flatten(state)]
    assert 0 <= sum(sizes) - buffers * 2100 * 4 <= 100
    state, _, _ = step(state, [zero])


def test_noise_of_a_larger_cohort_is_smaller(run):
  real = _noise(run, _factory('blt', noise_multiplier=1.0), 3)
  simulated = _noise(
    run, _factory('blt', noise_multiplier=1.0, noise_cohort_size=40), 3
  )
  np.testing.assert_allclose(simulated, real / 10, rtol=1e-5)


def test_a_round_past_the_last_is_rejected(run):
  factory = CorrelatedNoiseFactory(
    strategies.identity(2),
    PrivateSettings(
      clip_norm=1.0, noise_multiplier=1.0, clients_per_round=1, total_rounds=2
    ),
  )
  initialize, step = run(factory, _SHAPES)
  state = initialize()
  for _ in range(2):
    state, _, _ = step(state, _zeros())
  with pytest.raises(Exception, match='made for 2 rounds'):
    step(state, _zeros())


def test_variables_of_whole_numbers_are_rejected():
  with pytest.raises(TypeError, match='floats only'):
    _factory().create(tff.to_type([tff.TensorType(np.int32, [2])]))


def test_an_adaptive_clip_under_correlated_noise_is_rejected():
  with pytest.raises(ValueError, match='fixed clip norm'):
    _factory('blt', adaptive=adaptive_clip.AdaptiveClip())


@pytest.mark.parametrize(
  ('options', 'problem'),
  [
    ({'clip_norm': np.inf}, 'clip_norm is inf'),
    ({'noise_multiplier': np.nan}, 'noise_multiplier is nan'),
    ({'noise_cohort_size': 3}, 'noise_cohort_size is 3'),
    ({'noise_seed': -4}, 'noise_seed is -4'),
  ],
)
def test_bad_settings_are_rejected(options, problem):
  with pytest.raises(ValueError, match=problem):
    _factory(**options)
