"""Every schedule's contract and amplification, against brute force.

`python -m pytest -s tests/privacy/test_sampling.py` prints the table of
BUILD_NOTES.md. Epsilons are those of few rounds, whose releases vary in at most
two directions, so that their densities can be summed on a grid.
"""

from __future__ import annotations

import itertools
import pathlib

import numpy as np
import pytest
from scipy import stats

from si_federated.privacy import (
  accounting,
  participation,
  schedules,
  strategies,
)

_NOTES = pathlib.Path(__file__).parents[2] / 'BUILD_NOTES.md'
_DELTA, _NOISE = 1e-2, 1.2
_STEP = 0.04
_GRID = np.arange(-8, 10, _STEP)
_BANDED = strategies.Toeplitz(np.array([1.0, 0.5]), 4)


def _epsilon(pairs) -> float:
  """The least epsilon of all pairs of densities, in both directions."""
  pairs = [
    pair for one, other in pairs for pair in ((one, other), (other, one))
  ]
  low, high = 0.0, 20.0
  while high - low > 1e-5:
    middle = (low + high) / 2
    delta = max(
      np.maximum(first - np.exp(middle) * second, 0).sum() * _STEP**2
      for first, second in pairs
    )
    low, high = (low, middle) if delta <= _DELTA else (middle, high)
  return high


def _density(means, weights=(1.0,)):
  """Returns the density of a mixture of plane unit Gaussians on the grid."""
  return sum(
    weight * np.outer(*(stats.norm.pdf(_GRID, part) for part in mean))
    for weight, mean in zip(weights, means)
  )


def _poisson():
  schedule = schedules.Poisson(10, 3, 0)
  means = np.array(list(itertools.product([0, 1], repeat=2))) / _NOISE
  weights = np.prod(np.where(means > 0, 0.3, 0.7), axis=1)
  pairs = [(_density(means, weights), _density([(0, 0)]))]
  return schedule, strategies.identity(2), _epsilon(pairs)


def _cut(values, scale):
  """The density of a round's sum; each joins with 1/2, at most two of them."""
  one = 0.0
  for size in range(len(values) + 1):
    for drawn in itertools.combinations(values, size):
      kept = list(itertools.combinations(drawn, min(size, 2)))
      chance = 0.5 ** len(values) / len(kept)
      for cohort in kept:
        one += chance * stats.norm.pdf(_GRID, scale * sum(cohort))
  return one


def _cut_pairs(*scales):
  """All cohorts of four, in two rounds whose sums have these scales."""
  pairs = []
  for others in itertools.combinations_with_replacement([-1, 0, 1], 3):
    there, absent, zero = (
      np.outer(*(_cut([*others, *own], scale) for scale in scales))
      for own in ([1], [], [0])
    )
    pairs += [(there, absent), (there, zero)]
  return pairs


def _cut_poisson():
  schedule = schedules.Poisson(4, 2, 0, max_cohort_size=2)
  pairs = _cut_pairs(1 / _NOISE, 1 / _NOISE)
  return schedule, strategies.identity(2), _epsilon(pairs)


def _plane(means):
  """Maps two means to a plane, preserving their lengths and their angle."""
  return np.linalg.qr(means)[1].T / _NOISE


def _cyclic_poisson():
  # Two groups with two turns each; each client belongs to one of them.
  schedule = schedules.CyclicPoisson(10, 2, 0, min_separation=2)
  taken = np.array(list(itertools.product([0, 1], repeat=2)))
  weights = np.prod(np.where(taken, 0.4, 0.6), axis=1)
  pairs = [
    (
      _density(taken @ _plane(_BANDED.matrix()[:, group::2]), weights),
      _density([(0, 0)]),
    )
    for group in range(2)
  ]
  return schedule, _BANDED, _epsilon(pairs)


def _cut_cyclic_poisson():
  # Two groups of four clients. The two columns of C of a group's turns are
  # orthogonal, so that each turn moves the release in a direction of its own.
  schedule = schedules.CyclicPoisson(
    8, 2, 0, min_separation=2, max_cohort_size=2
  )
  lengths = np.linalg.norm(_BANDED.matrix(), axis=0) / _NOISE
  pairs = [
    pair for group in range(2) for pair in _cut_pairs(*lengths[group::2])
  ]
  return schedule, _BANDED, _epsilon(pairs)


def _balls_in_bins():
  schedule = schedules.BallsInBins(10, 4, 0, min_separation=2)
  matrix = _BANDED.matrix()
  turns = np.stack([matrix[:, group::2].sum(axis=1) for group in range(2)])
  means = np.concatenate([_plane(turns.T), [[0, 0]]])
  pairs = [(_density(means, [0.4, 0.4, 0.2]), _density([(0, 0)]))]
  return schedule, _BANDED, _epsilon(pairs)


def _b_min_sep():
  # A client is in one of two rounds with probability 0.2 each, or in none.
  schedule = schedules.BMinSep(10, 2, 0, min_separation=2)
  banded = strategies.Toeplitz(np.array([1.0, 0.5]), 2)
  means = np.concatenate([banded.matrix().T / _NOISE, [[0, 0]]])
  pairs = [(_density(means, [0.2, 0.2, 0.6]), _density([(0, 0)]))]
  return schedule, banded, _epsilon(pairs)


_GRIDS = 'densities on a grid, client added and removed'
_CUT_GRIDS = (
  'densities on a grid, all cohorts of four clients; added, removed and zero'
)
# The routine that accounts for a schedule, its oracle, and a function for both.
_AMPLIFIED = {
  'poisson': ('loss distribution of dp_accounting', _GRIDS, _poisson),
  'poisson:max_cohort_size': (
    'loss distribution with exchanges',
    _CUT_GRIDS,
    _cut_poisson,
  ),
  'cyclic_poisson': (
    'loss distribution of the turns of a group',
    _GRIDS,
    _cyclic_poisson,
  ),
  'cyclic_poisson:max_cohort_size': (
    'loss distribution of the turns of a group, with exchanges',
    _CUT_GRIDS,
    _cut_cyclic_poisson,
  ),
  'balls_in_bins': ('Monte Carlo', _GRIDS, _balls_in_bins),
  'b_min_sep': ('Monte Carlo, recursion over rounds', _GRIDS, _b_min_sep),
}
_OTHERS = {
  'uniform': {},
  'shuffled_epochs': {},
  'fixed_cycles': {'min_separation': 5},
  'min_separation': {'min_separation': 3},
}
_NAMES = [*_OTHERS, *_AMPLIFIED]


def test_every_schedule_has_a_row():
  assert {name.partition(':')[0] for name in _NAMES} == set(schedules.SCHEDULES)


def _most_and_least(schedule):
  """Returns the most rounds of a client and the least distance, if any."""
  recorder = participation.ParticipationRecorder(schedule.contract(12))
  for round_num in range(1, 13):
    recorder.record(round_num, schedule.cohort(round_num))
  return recorder.max_participations, recorder.min_separation


def _of_contract(name):
  """Returns a row; no record violates the contract, and some exhaust it."""
  seeds = [
    schedules.SCHEDULES[name](6, 1, seed, **_OTHERS[name])
    for seed in range(300)
  ]
  contract = seeds[0].contract(12)
  assert all(schedule.amplification is None for schedule in seeds)
  most, least = zip(*map(_most_and_least, seeds))
  assert min(least) == contract.min_separation
  if name != 'uniform':  # No seed is likely to draw one client in all rounds.
    assert max(most) == contract.participations
  return 'contract', 'recorded cohorts, 300 seeds of 12 rounds', 'none above'


def _of_amplification(name):
  routine, oracle, case = _AMPLIFIED[name]
  schedule, strategy, expected = case()
  record = accounting.PrivacyRecord(
    strategy,
    _NOISE,
    schedule.contract(strategy.rounds),
    schedule.amplification,
  )
  deviation = record.epsilon(_DELTA) / expected - 1
  # A thousandth is the error of the grids.
  assert deviation > -1e-3
  if name in ('poisson', 'cyclic_poisson'):
    assert deviation < 1e-3
    return routine, oracle, f'{abs(deviation):.0e}'
  return routine, oracle, f'bounds up to {100 * deviation:.1f} % above'


@pytest.mark.parametrize('name', _NAMES)
def test_schedules_against_brute_force(name, capsys):
  amplified = name in _AMPLIFIED
  found = (_of_amplification if amplified else _of_contract)(name)
  row = f'| `{name}` | {" | ".join(found)} |'
  with capsys.disabled():
    print(row)
  # This prints the table of the notes, except for the last digits.
  assert row.rpartition('| ')[0] in _NOTES.read_text()
