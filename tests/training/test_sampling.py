from __future__ import annotations

from si_federated.training import sampling


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
  assert cohort.clients == [5, 2, 9]
