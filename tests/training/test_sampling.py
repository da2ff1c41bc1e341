from __future__ import annotations

import numpy as np
import pytest

from si_federated.training import sampling


def _cohort(round_num, seed=3, num_clients=50, clients_per_round=10):
  return sampling.uniform_cohort(
    num_clients=num_clients,
    clients_per_round=clients_per_round,
    seed=seed,
    round_num=round_num,
  )


def test_cohort_is_a_function_of_seed_and_round():
  np.testing.assert_array_equal(_cohort(7), _cohort(7))
  assert not np.array_equal(_cohort(7), _cohort(8))
  assert not np.array_equal(_cohort(7), _cohort(7, seed=4))


def test_cohort_has_no_client_twice_and_covers_the_population():
  counts = np.zeros(50)
  for round_num in range(1000):
    cohort = _cohort(round_num)
    assert len(set(cohort)) == 10
    counts[cohort] += 1
  # 200 expected of each, standard deviation sqrt(1000 * 0.2 * 0.8) = 12.6.
  assert counts.min() > 140
  assert counts.max() < 260


def test_cohort_larger_than_the_population_is_refused():
  with pytest.raises(ValueError, match='population'):
    _cohort(1, num_clients=9)


def test_data_seeds_differ_by_round_and_seed():
  seeds = {
    sampling.data_seed(seed=s, round_num=r) for s in range(5) for r in range(50)
  }
  assert len(seeds) == 250


def test_datasets_are_built_when_asked_for():
  asked = []

  def client_dataset(index):
    asked.append(index)
    return f'data of {index}'

  cohort = sampling.Cohort([5, 2, 9], client_dataset, lambda i: f'name{i}')
  assert len(cohort) == 3
  assert asked == []
  assert cohort[1] == 'data of 2'
  assert asked == [2]
  assert cohort[1:] == ['data of 2', 'data of 9']
  assert 'name9' in cohort.client_name(2)
