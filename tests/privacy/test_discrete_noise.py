"""Accounting of discrete distributed noise: bounds, grid and calibration."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from dp_accounting import rdp
from scipy import special

from si_federated.privacy import (
  accounting,
  discrete_noise,
  ledger,
  participation,
)

_NOISES = pytest.mark.parametrize('noise', ['skellam', 'discrete_gaussian'])
_ONCE = participation.Participation(10, 1, 1)
_DELTA = 1e-6


def _record(**options):
  return discrete_noise.DistributedRecord(
    **{
      'noise': 'skellam',
      'noise_multiplier': 1.0,
      'contract': _ONCE,
      'clip_norm': 1.0,
      'clients_per_round': 8,
      'bits': 16,
      'dimension': 1000,
      **options,
    }
  )


def _grid(l1, l2, local_stddev, dimension=1):
  return discrete_noise.Grid(1.0, dimension, l1, l2, local_stddev)


def test_skellam_bound_by_hand():
  orders = np.array([2, 5])
  # Variance 4 * 3^2 = 36. Order 2: 25/36, and (3 * 25 + 6 * 7) / (4 * 1296)
  # against 21 / 72; order 5: 125/72 and (9 * 25 + 42) / 5184.
  np.testing.assert_allclose(
    discrete_noise.skellam_rdp(orders, _grid(7, 5, 3.0), 4),
    [25 / 36 + 117 / 5184, 125 / 72 + 267 / 5184],
  )
  # Variance 1, where 3 * L1 / 2 is less than (3 * 4 + 6 * 2) / 4.
  np.testing.assert_allclose(
    discrete_noise.skellam_rdp(orders[:1], _grid(2, 2, 1.0), 1), [4 + 3]
  )


def test_discrete_gaussian_bound_by_hand():
  orders = np.array([2, 4])
  # One client adds a discrete Gaussian, whose bound is the Gaussian's.
  np.testing.assert_allclose(
    discrete_noise.discrete_gaussian_rdp(orders, _grid(6, 3, 2.0, 9), 1),
    [9 / 4, 9 / 2],
  )
  # Three clients of standard deviation 1/2: k / (k + 1) is 1/2, then 2/3.
  tau = 10 * (math.exp(-(math.pi**2) / 4) + math.exp(-(math.pi**2) / 3))
  length = 1 / math.sqrt(3 / 4)
  for dimension in (1, 50):
    sums = [
      [
        a / 2 * length**2 + tau * dimension,
        a / 2 * (length**2 + 2 * length * tau + tau**2 * dimension),
        a / 2 * (length + math.sqrt(dimension) * tau) ** 2,
      ]
      for a in orders
    ]
    np.testing.assert_allclose(
      discrete_noise.discrete_gaussian_rdp(
        orders, _grid(1, 1, 0.5, dimension), 3
      ),
      np.min(sums, axis=1),
    )


def _divergence(pmf, shift, order):
  """Returns the Renyi divergence of a shifted distribution, both ways."""
  inside = pmf[shift:], pmf[: len(pmf) - shift]
  return [
    math.log(np.sum(np.exp(order * np.log(p) + (1 - order) * np.log(q))))
    / (order - 1)
    for p, q in (inside, inside[::-1])
  ]


@pytest.mark.parametrize('order', [2, 3, 8])
@pytest.mark.parametrize('variance', [0.7, 3.0, 20.0])
def test_skellam_bound_holds_for_the_distribution(order, variance):
  support = np.arange(-120, 121)
  pmf = special.ive(np.abs(support), variance)
  assert pmf.sum() == pytest.approx(1)
  pmf = pmf[pmf > 1e-250]
  for shifts in itertools.combinations_with_replacement((1, 2, 3), 2):
    # Coordinates are independent: their divergences add.
    exact = sum(max(_divergence(pmf, s, order)) for s in shifts)
    grid = _grid(sum(shifts), math.hypot(*shifts), math.sqrt(variance), 2)
    bound = discrete_noise.skellam_rdp(np.array([order]), grid, 1)[0]
    assert exact <= bound
    if variance == 20:
      assert bound < 1.3 * exact


@pytest.mark.parametrize('order', [2, 3, 8])
@pytest.mark.parametrize('clients', [1, 2, 5])
@pytest.mark.parametrize('stddev', [0.4, 0.6, 1.0])
def test_discrete_gaussian_bound_holds_for_the_distribution(
  order, clients, stddev
):
  support = np.arange(-12, 13)
  one = np.exp(-(support**2) / (2 * stddev**2))
  one = one[one > 1e-250] / one.sum()
  pmf = np.ones(1)
  for _ in range(clients):
    pmf = np.convolve(pmf, one)
  # The range of a sum of truncated variables is too short, so cut its ends.
  inner = np.abs(np.arange(len(pmf)) - len(pmf) // 2) <= len(one) // 2
  pmf = pmf[inner]
  for shifts in itertools.combinations_with_replacement((1, 2), 2):
    exact = sum(max(_divergence(pmf, s, order)) for s in shifts)
    grid = _grid(sum(shifts), math.hypot(*shifts), stddev, 2)
    bound = discrete_noise.discrete_gaussian_rdp(
      np.array([order]), grid, clients
    )
    assert exact <= bound[0] * (1 + 1e-9)


def test_grid_by_hand():
  # 5 is padded to 8, or to 6; 3.8906 is the normal quantile of 1e-4.
  width = 3.8905918864
  for rotation, dimension in (('hadamard', 8), ('fourier', 6)):
    grid = _record(dimension=5, rotation=rotation, clip_norm=2.0, bits=10).grid
    assert grid.dimension == dimension
    # With 8 clients in the sum: 8^2 * 2^2 / d + 8 * 2^2 / 8.
    spread = math.sqrt(256 / dimension + 4)
    scale = math.sqrt(2**20 - 8 * width**2) / (2 * width * spread)
    assert grid.scale == pytest.approx(scale)
    assert grid.local_stddev == pytest.approx(scale * 2 / math.sqrt(8))
    l2 = 2 * scale + math.sqrt(dimension) + 1e-5 * scale
    assert grid.l2 == pytest.approx(l2)
    assert grid.l1 == math.ceil(l2 * math.sqrt(dimension))
  # The scale is bounded, conditional rounding adds less to the norm, and
  # samplers of discrete Gaussians need integer standard deviations.
  assert _record(bits=22, clip_norm=1e-3).grid.scale == 1e6
  rounded = _record(beta=math.exp(-0.5), bits=10, dimension=4096)
  grid = rounded.grid
  expected = grid.scale**2 + 1024 + grid.scale + 32
  assert grid.l2 == pytest.approx(math.sqrt(expected) + 1e-5 * grid.scale)
  stddev = _record(noise='discrete_gaussian').grid.local_stddev
  assert stddev == math.ceil(_record().grid.local_stddev)


@_NOISES
@pytest.mark.parametrize('k', [1, 9])
def test_epsilon_approaches_the_gaussians_with_more_bits(noise, k):
  contract = participation.Participation(9, k, 1)
  gaussian = accounting.PrivacyRecord(
    accounting.strategies.identity(9), 1.0, contract
  )
  orders = np.arange(2, 129)
  expected = rdp.compute_epsilon(orders, orders * k / 2, _DELTA)[0]
  exact = gaussian.epsilon(_DELTA)
  epsilons = [
    _record(noise=noise, bits=bits, contract=contract, dimension=16).epsilon(
      _DELTA
    )
    for bits in (8, 12, 16, 20, 22)
  ]
  assert all(a > b for a, b in zip(epsilons, epsilons[1:]))
  assert exact < expected < epsilons[-1] < 1.001 * expected


@_NOISES
def test_rounds_of_a_client_add_up(noise):
  record = _record(noise=noise)
  orders, once = record.renyi()
  contract = participation.Participation(100, 7, 10)
  several = dataclasses.replace(record, contract=contract)
  np.testing.assert_allclose(several.renyi()[1], 7 * once)
  assert several.epsilon(_DELTA) == pytest.approx(
    rdp.compute_epsilon(orders, 7 * once, _DELTA)[0]
  )
  assert several.sensitivity.value == pytest.approx(
    math.sqrt(7) * record.sensitivity.value
  )
  # A run so far has only the observed participations.
  observed = participation.Participation(11, 2, 10)
  np.testing.assert_allclose(several.after(observed).renyi()[1], 2 * once)


@_NOISES
def test_epsilon_is_monotone(noise):
  def epsilons(name, values):
    return [
      _record(noise=noise, **{name: value}).epsilon(_DELTA) for value in values
    ]

  falling = epsilons('noise_multiplier', [0.3, 0.5, 1.0, 2.0, 8.0])
  assert falling == sorted(falling, reverse=True)
  rising = epsilons('dimension', [10, 1000, 10**6, 2 * 10**7])
  assert rising == sorted(rising)
  assert rising[0] < rising[-1]
  contracts = [participation.Participation(9, k, 1) for k in (1, 3, 9)]
  assert epsilons('contract', contracts) == sorted(
    epsilons('contract', contracts)
  )
  record = _record(noise=noise)
  assert record.epsilon(1e-9) > record.epsilon(1e-6)
  assert record.epsilon(1e-6, method='exact') == record.epsilon(1e-6)


@_NOISES
@pytest.mark.parametrize('epsilon', [0.5, 8.0])
def test_calibration_finds_the_least_noise(noise, epsilon):
  record = _record(noise=noise, dimension=10**6, bits=20)
  found = accounting.calibrate(record, target_epsilon=epsilon, delta=_DELTA)
  assert record.is_variant_of(found)
  assert found.epsilon(_DELTA) <= epsilon
  assert found.epsilon(_DELTA) == pytest.approx(epsilon, rel=1e-3)
  less = dataclasses.replace(
    found, noise_multiplier=0.98 * found.noise_multiplier
  )
  assert less.epsilon(_DELTA) > epsilon
  free = accounting.calibrate(record, target_epsilon=math.inf, delta=_DELTA)
  assert free.noise_multiplier == 0
  assert free.epsilon(_DELTA) == math.inf


def test_calibration_stops_where_rounding_outgrows_noise():
  record = _record(dimension=10**6, bits=8)
  with pytest.raises(ValueError, match='take more bits'):
    accounting.calibrate(record, target_epsilon=0.1, delta=_DELTA)


@_NOISES
def test_summary_is_plain(noise):
  contract = participation.Participation(10, 2, 5)
  summary = _record(noise=noise, contract=contract).summary(_DELTA)
  assert json.loads(json.dumps(summary)) == summary
  assert summary['kind'] == f'distributed_{noise}'
  assert summary['epsilon'] > 0
  assert 'RDP' in summary['sensitivity_method']
  assert not summary['sensitivity_is_exact']
  if noise == 'skellam':
    assert summary['rho'] is None
  else:
    # With many bits it is twice the Gaussian's, plus a little for rounding.
    assert 1 < summary['rho'] < 1.1


def test_a_ledger_accepts_the_record():
  contract = participation.Participation(10, 2, 5)
  record = _record(contract=contract)
  book = ledger.Ledger(
    mechanism='distributed_dp', delta=_DELTA, contract=contract, record=record
  )
  book.record(1, ['a', 'b'])
  once = dataclasses.replace(record, contract=_ONCE)
  assert book.epsilon() == once.epsilon(_DELTA)
  book.record(6, ['a'])
  assert book.summary()['so_far']['epsilon'] == record.epsilon(_DELTA)


def test_needs_the_dimension():
  unknown = _record(dimension=None)
  for use in (
    lambda: unknown.epsilon(_DELTA),
    lambda: unknown.summary(_DELTA),
    lambda: unknown.sensitivity,
    lambda: accounting.calibrate(unknown, target_epsilon=1.0, delta=_DELTA),
  ):
    with pytest.raises(ValueError, match='size of the model'):
      use()
  assert unknown.for_dimension(1000) == _record()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'noise': 'laplace'}, 'skellam and discrete_gaussian'),
    ({'rotation': 'none'}, 'hadamard and fourier'),
    ({'noise_multiplier': -1.0}, 'not negative'),
    ({'noise_multiplier': math.nan}, 'not negative'),
    ({'clip_norm': 0.0}, 'positive'),
    ({'beta': 1.0}, 'below 1'),
    ({'bits': 23}, '1 to 22'),
    ({'bits': 10.5}, 'whole number'),
    ({'bits': 4, 'clients_per_round': 17}, 'too few'),
    ({'bits': 4, 'clients_per_round': 16, 'wrap_probability': 1e-5}, 'too few'),
    ({'wrap_probability': 1.0}, 'between 0 and 1'),
    ({'dimension': 0}, 'at least 1'),
  ],
)
def test_bad_options_are_rejected(options, message):
  with pytest.raises(ValueError, match=message):
    _record(**options)


def test_unknown_deltas_and_methods_are_rejected():
  with pytest.raises(ValueError, match='must be in'):
    _record().epsilon(0.0)
  with pytest.raises(ValueError, match='exact and rdp'):
    _record().epsilon(_DELTA, method='pld')
