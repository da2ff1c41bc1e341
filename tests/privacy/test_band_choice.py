"""The number of bands for a sampling scheme, against an exhaustive search."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from si_federated import privacy
from si_federated.privacy import band_choice, participation, workloads

Participation = participation.Participation


@pytest.mark.parametrize(
  'contract', [(48, 4, 12), (40, 1, 40), (24, 24, 1), (30, 2, 4)]
)
@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_the_fewest_bands_that_are_nearly_best(contract, momentum):
  contract = Participation(*contract)
  workload = workloads.server_sgd(contract.rounds, momentum=momentum)
  losses = []
  for bands in range(1, contract.separation + 1):
    strategy = privacy.build(
      'banded_toeplitz', contract, bands=bands, workload=workload
    )
    losses.append(
      strategy.errors(workload).rms * strategy.sensitivity(contract).value
    )
  found = band_choice.fewest_bands(contract, workload=workload)
  enough = np.array(losses) <= 1.001 * losses[-1]
  assert found == 1 + int(np.argmax(enough))


@functools.cache
def _choose(epsilon, releases=1):
  return band_choice.choose_groups(
    24,
    num_clients=240,
    clients_per_round=10,
    target_epsilon=epsilon,
    delta=1e-4,
    releases=releases,
  )


@pytest.mark.slow
def test_groups_are_those_of_the_least_error():
  best, tried = _choose(2.0)
  assert [one.groups for one in tried] == [1, 2, 4, 8, 16, 24]
  errors = []
  for one in tried:
    record = band_choice.sampled_record(
      24, groups=one.groups, num_clients=240, clients_per_round=10
    ).with_noise(one.noise_multiplier)
    assert record.strategy.bands == one.groups
    assert record.amplification is not None
    assert record.amplification.groups == one.groups
    # A cohort of a group of 240 // groups clients has 10 on average.
    assert record.amplification.probability == 10 / (240 // one.groups)
    assert 0.996 * 2 < record.epsilon(1e-4) < 1.0005 * 2
    found = record.strategy.errors()
    errors.append(record.noise_multiplier * found.rms)
    assert one.rms_error == pytest.approx(errors[-1])
    assert one.max_error == pytest.approx(
      record.noise_multiplier * found.maximum
    )
  assert best == tried[int(np.argmin(errors))]
  # Neither DP-SGD nor the largest number of bands.
  assert 1 < best.groups < 24


@pytest.mark.slow
def test_less_privacy_needs_more_correlation():
  assert _choose(0.3)[0].groups < _choose(2.0)[0].groups


@pytest.mark.slow
def test_two_releases_take_more_noise():
  # The last group is not sampled: all releases are a Gaussian mechanism.
  one, two = (_choose(0.3, releases)[1][-1] for releases in (1, 2))
  assert two.noise_multiplier == pytest.approx(
    2**0.5 * one.noise_multiplier, rel=3e-3
  )


def test_groups_of_a_small_population():
  best, tried = band_choice.choose_groups(
    8, num_clients=20, clients_per_round=5, target_epsilon=0.5, delta=1e-2
  )
  assert [one.groups for one in tried] == [1, 2, 4]
  for one in tried:
    record = band_choice.sampled_record(
      8, groups=one.groups, num_clients=20, clients_per_round=5
    ).with_noise(one.noise_multiplier)
    assert 0.995 * 0.5 < record.epsilon(1e-2) < 1.0005 * 0.5
    assert one.rms_error == pytest.approx(
      one.noise_multiplier * record.strategy.errors().rms
    )
  assert best == min(tried, key=lambda one: one.rms_error)
