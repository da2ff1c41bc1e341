"""Sensitivities of aggregators and compared strategies, against brute force.

`python -m pytest -s tests/aggregators/test_sensitivities.py` prints the tables
of BUILD_NOTES.md.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from si_federated.aggregators import AGGREGATORS, is_private
from si_federated.privacy import comparison, participation

_NOTES = pathlib.Path(__file__).parents[2] / 'BUILD_NOTES.md'
_ROUNDS = 9
_CLIENTS = 8
# The distance of a client's rounds, and their maximum number.
_CONTRACTS = [(9, 1), (4, 3), (4, 2), (3, 3), (2, 5), (2, 3), (1, 9)]
_VARIANTS: dict[str, list[dict]] = {
  'adaptive_gaussian': [{'count_noise': 1.0}],
  'banded': [{}, {'kind': 'general'}, {'bands': 'auto'}, {'momentum': 0.9}],
  'banded_inverse': [{'bands': 3}, {'kind': 'square_root'}, {'momentum': 0.9}],
  'blt': [{'num_buffers': 2}, {'momentum': 0.9}],
  'dense': [{}],
  'distributed_dp': [{'bits': 12}, {'bits': 20}],
  'gaussian': [{}],
  'scaled_gaussian': [{}, {'scale_delay': 3}],
  'tree': [{}, {'efficient': False}, {'restart': True}],
}
_ORACLES = {
  'adaptive_gaussian': 'all patterns; noise of sum and count together',
  'dense': 'all patterns of cycles, all signs',
  'distributed_dp': 'the worst rounding of random updates',
  **dict.fromkeys(
    ('tree', 'tree_plain', 'tree_restarted', 'tree_full'),
    'all patterns, counts in nodes',
  ),
}


def _patterns(contract: participation.Participation) -> Iterator[list[int]]:
  """Yields the sets of rounds that the contract allows one client."""
  for size in range(1, contract.max_participations + 1):
    for rounds in itertools.combinations(range(contract.rounds), size):
      distances = np.diff(rounds)
      if contract.cyclic:
        allowed = (distances % contract.min_separation == 0).all()
      else:
        allowed = (distances >= contract.min_separation).all()
      if allowed:
        yield list(rounds)


def _worst_change(matrix, contract) -> float:
  """The largest change of C x by one client, whose updates have norm 1."""
  worst = 0.0
  for rounds in _patterns(contract):
    columns = matrix[:, rounds]
    # Updates that point in the same direction, or in opposite ones.
    tail = itertools.product((1.0, -1.0), repeat=min(len(rounds), 5) - 1)
    for signs in tail:
      weights = np.ones(len(rounds))
      weights[1 : 1 + len(signs)] = signs
      worst = max(worst, float(np.linalg.norm(columns @ weights)))
  return worst


def _worst_rounding(record) -> float:
  """The largest norm of an update of norm 1 after the worst rounding."""
  grid = record.grid
  random = np.random.default_rng(0)
  worst = 0.0
  for _ in range(200):
    update = random.normal(size=grid.dimension)
    update *= grid.scale * record.clip_norm / np.linalg.norm(update)
    away = np.sign(update) * np.ceil(np.abs(update))
    worst = max(worst, float(np.linalg.norm(away)))
  once = worst / (grid.scale * record.clip_norm)
  return once * record.contract.participations**0.5


def _build(name, contract, options):
  builder = AGGREGATORS[name]
  separation, participations = contract
  settings = {
    'clip_norm': 1.0,
    'noise_multiplier': 1.0,
    'clients_per_round': _CLIENTS,
    'total_rounds': _ROUNDS,
    'min_separation': separation,
    'max_participations': participations,
  }
  known = inspect.signature(builder).parameters
  given = {key: value for key, value in settings.items() if key in known}
  return builder(**given, **options)


def _deviation(mechanism) -> float:
  """Returns how far a sensitivity exceeds that of brute force, relatively."""
  record = mechanism.record
  if mechanism.record.kind.startswith('distributed'):
    record = dataclasses.replace(record, beta=0.0).for_dimension(6)
    return record.sensitivity.value / _worst_rounding(record) - 1
  adaptive = mechanism.factory.adaptive
  if adaptive is not None:
    # The count changes by 1/2 and the sum by 1: one Gaussian mechanism.
    noise, count_noise = adaptive.split(record.noise_multiplier, _CLIENTS)
    both = np.hypot(1 / noise, 0.5 / (count_noise * _CLIENTS))
    assert both == pytest.approx(1 / record.noise_multiplier, rel=1e-12)
  worst = _worst_change(record.strategy.matrix(), record.contract)
  return record.sensitivity.value / worst - 1


def _row(
  name: str, cases: Iterator[tuple[Any, float]], title: str = '`{}`'
) -> str:
  """Returns a row of the table, of sensitivities and their deviations."""
  methods, exact, bound = set(), [], 0.0
  for found, deviation in cases:
    methods.add(found.method)
    # Never below the change that one client can make.
    assert deviation > -1e-12, (name, found)
    if found.is_exact:
      exact.append(abs(deviation))
    else:
      bound = max(bound, deviation)
  assert max(exact, default=0.0) < 1e-12
  deviations = [f'{max(exact):.0e}'] if exact else []
  if bound:
    deviations.append(f'bounds up to {100 * bound:.1f} % above')
  oracle = _ORACLES.get(name, 'all patterns, all signs')
  routine = '; '.join(sorted(methods))
  cells = title.format(name), routine, oracle, ', '.join(deviations)
  return f'| {" | ".join(cells)} |'


def _aggregations(name):
  for contract, options in itertools.product(_CONTRACTS, _VARIANTS[name]):
    mechanism = _build(name, contract, options)
    record = mechanism.record.for_dimension(6)
    yield record.sensitivity, _deviation(mechanism)


def _strategies(name):
  for separation, participations in _CONTRACTS:
    contract = participation.Participation(_ROUNDS, participations, separation)
    strategy = comparison.build(name, contract)
    # As `comparison.compare` measures it.
    contract = dataclasses.replace(contract, cyclic=name == 'dense')
    found = strategy.sensitivity(contract)
    yield found, found.value / _worst_change(strategy.matrix(), contract) - 1


def _check(row, capsys):
  with capsys.disabled():
    print(row)
  # The notes have the table that this prints, except for the digits of bounds.
  _, mechanism, routine, oracle, _, _ = row.split('|')
  assert f'|{mechanism}|{routine}|{oracle}|' in _NOTES.read_text()


@pytest.mark.parametrize('name', [n for n in AGGREGATORS if is_private(n)])
def test_sensitivity_against_brute_force(name, capsys):
  _check(_row(name, _aggregations(name)), capsys)


@pytest.mark.parametrize('name', comparison.MECHANISMS)
def test_compared_strategies_against_brute_force(name, capsys):
  _check(_row(name, _strategies(name), '`--compare`: `{}`'), capsys)
