"""Mechanisms compared at equal epsilon."""

from __future__ import annotations

import dp_accounting
import pytest

from si_federated import privacy
from si_federated.privacy import (
  accounting,
  epsilon_comparison,
  participation,
  schedules,
  strategies,
)

_CONTRACT = participation.Participation(16, 2, 8)


@pytest.mark.slow
def test_every_row_has_the_epsilon(tmp_path):
  rows = list(
    epsilon_comparison.compare_at_epsilon(
      _CONTRACT,
      target_epsilon=2.0,
      delta=1e-4,
      num_clients=80,
      clients_per_round=10,
      mechanisms=['gaussian', 'tree', 'banded_toeplitz', 'banded_inverse'],
      cache=str(tmp_path),
    )
  )
  for row in rows:
    strategy = privacy.build(row.mechanism, _CONTRACT)
    record = accounting.PrivacyRecord(
      strategy, row.plain.noise_multiplier, _CONTRACT
    )
    assert record.epsilon(1e-4) == pytest.approx(2, rel=1e-6)
    assert row.plain.rms_error == pytest.approx(
      row.plain.noise_multiplier * strategy.errors().rms
    )
  gaussian, _, tree, banded, apart, inverse = rows
  # Two participations; a sum of t rounds has a variance of t, here up to 16.
  one = accounting.gaussian_epsilon(
    gaussian.plain.noise_multiplier / 2**0.5, 1e-4
  )
  assert one == pytest.approx(2)
  assert gaussian.plain.max_error == pytest.approx(
    4 * gaussian.plain.noise_multiplier
  )
  # Sampling 10 of 80 clients 16 times, by dp_accounting.
  accountant = dp_accounting.pld.PLDAccountant()
  assert gaussian.sampling == 'Poisson' and gaussian.sampled is not None
  assert gaussian.sampled.max_error == pytest.approx(
    4 * gaussian.sampled.noise_multiplier
  )
  accountant.compose(
    dp_accounting.PoissonSampledDpEvent(
      1 / 8, dp_accounting.GaussianDpEvent(gaussian.sampled.noise_multiplier)
    ),
    16,
  )
  assert accountant.get_epsilon(1e-4) == pytest.approx(2, rel=1e-3)
  assert tree.sampled is None and inverse.sampled is None
  assert banded.sampling.startswith('cyclic Poisson, ')
  assert banded.sampled is not None
  # Bands with sampling are never worse than either alone.
  assert banded.sampled.rms_error <= 1.001 * gaussian.sampled.rms_error
  assert banded.sampled.rms_error <= 1.001 * banded.plain.rms_error
  assert apart.sampling.startswith('b-min-separation, ')
  table = epsilon_comparison.format_rows(rows).splitlines()
  assert len(table) == 8
  assert table[0].count('noise') == 2 and 'amplified by' in table[0]
  assert f'| Poisson | {gaussian.sampled.noise_multiplier:.3f} |' in table[2]
  # A mechanism's second row has only the columns that differ. A row without
  # sampling leaves those of sampling empty.
  assert table[3].startswith('|  |  |  |  |  | balls in bins, 8 groups | ')
  assert '|  |  |  |  |' in table[4]


@pytest.mark.slow
def test_sampling_by_monte_carlo_keeps_to_the_epsilon(tmp_path):
  rows = {
    (row.mechanism, row.sampling.partition(',')[0]): row
    for row in epsilon_comparison.compare_at_epsilon(
      _CONTRACT,
      target_epsilon=2.0,
      delta=1e-3,
      num_clients=80,
      clients_per_round=10,
      mechanisms=['gaussian', 'banded_toeplitz', 'blt'],
      cache=str(tmp_path),
    )
  }
  assert set(rows) == {
    ('gaussian', 'Poisson'),
    ('gaussian', 'balls in bins'),
    ('banded_toeplitz', 'cyclic Poisson'),
    ('banded_toeplitz', 'b-min-separation'),
    ('blt', 'balls in bins'),
  }
  row = rows['banded_toeplitz', 'b-min-separation']
  assert row.sampled is not None
  separation = int(row.sampling.split()[1])
  schedule = schedules.BMinSep(80, 10, 0, min_separation=separation)
  contract = schedule.contract(16)
  found = [
    accounting.PrivacyRecord(
      privacy.build('banded_toeplitz', contract, bands=separation),
      row.sampled.noise_multiplier,
      contract,
      schedule.amplification,
    ),
  ]
  row = rows['gaussian', 'balls in bins']
  assert row.sampled is not None
  bins = schedules.BallsInBins(80, 10, 0)
  found.append(
    accounting.PrivacyRecord(
      strategies.identity(16),
      row.sampled.noise_multiplier,
      bins.contract(16),
      bins.amplification,
    )
  )
  for record in found:
    # More samples find the epsilon a little smaller.
    assert 1.85 < record.epsilon(1e-3) <= 2.02
  assert row.sampled.max_error == pytest.approx(
    4 * row.sampled.noise_multiplier
  )
  assert row.sampled.noise_multiplier < row.plain.noise_multiplier


def test_without_a_population_there_is_no_sampling():
  rows = list(
    epsilon_comparison.compare_at_epsilon(
      _CONTRACT, target_epsilon=2.0, delta=1e-4, mechanisms=['gaussian']
    )
  )
  assert rows[0].sampled is None
  assert 'amplified' not in epsilon_comparison.format_rows(rows)
