"""Distributed differential privacy: the result of the simulated sum."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
import tensorflow_privacy as tfp
from tensorflow_federated.python.aggregators import discretization

from si_federated.aggregators import build_distributed_dp, build_gaussian
from si_federated.privacy import accounting, participation

_SHAPES = [[20, 10], [7]]
# Each kind of noise and of rotation once, because building them is slow.
_KINDS = pytest.mark.parametrize(
  ('noise', 'rotation'),
  [('skellam', 'hadamard'), ('discrete_gaussian', 'fourier')],
)


def _update(value):
  return [np.full(shape, value, np.float32) for shape in _SHAPES]


def _mechanism(**options):
  return build_distributed_dp(
    **{
      'clip_norm': 1.0,
      'noise_multiplier': 0.0,
      'clients_per_round': 4,
      'total_rounds': 10,
      **options,
    }
  )


def _factory(**options):
  return _mechanism(**options).factory


@_KINDS
def test_without_noise_it_is_the_clipped_mean(run, noise, rotation):
  initialize, step = run(_factory(noise=noise, rotation=rotation), _SHAPES)
  norm = np.sqrt(207)
  state, result, measurements = step(
    initialize(), [_update(0.02), _update(1.0), _update(-0.04), _update(0.0)]
  )
  expected = (0.02 + 1 / norm - 0.04) / 4
  for part in result:
    np.testing.assert_allclose(part, np.full(part.shape, expected), atol=1e-4)
  assert measurements['nonfinite_updates'] == 0
  # Updates that are not finite count as zero.
  for bad in (np.nan, np.inf, 3e38):
    broken = _update(0.02)
    broken[0][3, 4] = bad
    state, result, measurements = step(
      state, [broken, _update(0.02), _update(0.0), _update(0.0)]
    )
    for part in result:
      np.testing.assert_allclose(part, np.full(part.shape, 0.005), atol=1e-4)
    assert measurements['nonfinite_updates'] == 1
  # Without noise no guarantee needs all clients.
  step(state, [_update(0.0)] * 3)


@_KINDS
def test_noise_has_the_requested_size_from_full_cohorts(run, noise, rotation):
  initialize, step = run(
    _factory(noise=noise, rotation=rotation, noise_multiplier=0.5), [[4000]]
  )
  zero = [np.zeros([4000], np.float32)]
  _, result, _ = step(initialize(), [zero] * 4)
  # All clients' noise together, on the sum, divided by their number.
  assert result[0].std() == pytest.approx(0.5 / 4, rel=0.1)
  assert abs(result[0].mean()) < 0.01
  with pytest.raises(Exception, match='Fewer than clients_per_round clients'):
    step(initialize(), [zero] * 3)


@pytest.mark.parametrize('noise', ['skellam', 'discrete_gaussian'])
@pytest.mark.parametrize('rotation', ['hadamard', 'fourier'])
@pytest.mark.parametrize(
  ('dimension', 'clip_norm', 'noise_multiplier', 'clients', 'bits'),
  [
    (1_000_001, 0.1, 0.7, 100, 20),
    (1_000_001, 5.0, 8.0, 1000, 16),
    (207, 1.0, 1.0, 4, 22),
    (1, 0.3, 2.0, 1, 10),
  ],
)
def test_the_record_agrees_with_tff(
  monkeypatch,
  noise,
  rotation,
  dimension,
  clip_norm,
  noise_multiplier,
  clients,
  bits,
):
  seen: dict[str, Any] = {}

  def spy(module, name):
    original = getattr(module, name)

    def call(*args, **kwargs):
      seen.update(inspect.signature(original).bind(*args, **kwargs).arguments)
      return original(*args, **kwargs)

    monkeypatch.setattr(module, name, call)

  spy(tfp, 'DistributedSkellamSumQuery')
  spy(tfp, 'DistributedDiscreteGaussianSumQuery')
  spy(discretization, 'DiscretizationFactory')
  mechanism = _mechanism(
    clip_norm=clip_norm,
    noise_multiplier=noise_multiplier,
    clients_per_round=clients,
    bits=bits,
    noise=noise,
    rotation=rotation,
  ).for_dimension(dimension)
  factory = mechanism.factory
  factory._client_dim = dimension
  factory._build_aggregation_factory()
  record = mechanism.record
  grid = record.grid
  # TFF computes partly in float32.
  assert seen['scale_factor'] == pytest.approx(grid.scale, rel=1e-6)
  assert seen['l2_norm_bound'] == pytest.approx(grid.l2, rel=1e-6)
  assert seen['beta'] == record.beta
  assert factory._padded_dim == grid.dimension
  if noise == 'skellam':
    assert seen['local_stddev'] == pytest.approx(grid.local_stddev, rel=1e-6)
    assert seen['l1_norm_bound'] == pytest.approx(grid.l1, rel=1e-6, abs=1)
  else:
    # Its sampler rounds up to a whole number.
    assert np.ceil(seen['local_stddev']) == grid.local_stddev


def test_calibration_reaches_the_factory():
  mechanism = _mechanism(
    noise_multiplier=1.0, clients_per_round=100, max_participations=2
  )
  assert mechanism.contract == participation.Participation(10, 2, 1)
  with pytest.raises(ValueError, match='size of the model'):
    mechanism.record.epsilon(1e-6)
  mechanism = mechanism.for_dimension(207)
  record: Any = accounting.calibrate(
    mechanism.record, target_epsilon=3.0, delta=1e-6
  )
  calibrated = mechanism.with_record(record)
  assert calibrated.record is record
  assert calibrated.factory._noise_multiplier == record.noise_multiplier
  for other in (
    dataclasses.replace(record, bits=21),
    dataclasses.replace(record, contract=participation.Participation(10, 1, 1)),
    record.for_dimension(208),
  ):
    with pytest.raises(ValueError, match='another strategy'):
      mechanism.with_record(other)


def test_for_dimension_leaves_other_mechanisms():
  gaussian = build_gaussian(
    clip_norm=1.0, noise_multiplier=1.0, clients_per_round=4, total_rounds=10
  )
  assert gaussian.for_dimension(5) is gaussian
  record = _mechanism().record
  with pytest.raises(ValueError, match='another strategy'):
    gaussian.with_record(record)


def test_updates_of_another_size_are_rejected(run):
  factory = _mechanism().for_dimension(206).factory
  with pytest.raises(ValueError, match='accounted for 206'):
    run(factory, _SHAPES)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'clip_norm': 0.0}, 'positive'),
    ({'noise': 'laplace'}, 'noise'),
    ({'rotation': 'none'}, 'rotation'),
    ({'bits': 23}, '1 to 22'),
    ({'bits': 3, 'clients_per_round': 9}, 'too few'),
    ({'max_participations': 0}, 'at least 1'),
  ],
)
def test_bad_options_are_rejected(options, message):
  with pytest.raises(ValueError, match=message):
    _mechanism(**options)
