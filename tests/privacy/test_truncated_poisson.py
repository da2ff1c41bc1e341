"""Poisson cohorts with a maximum size: the schedule and its accounting."""

from __future__ import annotations

import dataclasses
import itertools

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_mechanism
from scipy import integrate, stats

from si_federated.privacy import (
  accountants,
  accounting,
  participation,
  schedules,
  strategies,
  truncated_poisson,
)

# Clients, probability, largest cohort, noise, rounds, delta, and the epsilon of
# dp_accounting 0.6.0:
#   accountant = dp_accounting.pld.PLDAccountant()
#   accountant.compose(
#     dp_accounting.TruncatedSubsampledGaussianDpEvent(
#       clients, probability, largest, noise), rounds)
#   accountant.get_epsilon(delta)
_DP_ACCOUNTING = [
  (4, 0.5, 2, 1.0, 3, 1e-6, 15.20220079803099),
  (1000, 0.01, 20, 1.0, 200, 1e-6, 4.000249703061744),
  (1000, 0.1, 100, 2.0, 100, 1e-5, 7.039179312311589),
  (10000, 0.01, 120, 0.8, 500, 1e-5, 8.130589005437445),
  (10000, 0.01, 150, 0.8, 2000, 1e-10, 10.317552805978556),
  (342000, 1000 / 342000, 1100, 0.6, 2000, 1e-8, 15.221619122973946),
]


def _record(clients, probability, largest, noise, rounds):
  return accounting.PrivacyRecord(
    strategies.identity(rounds),
    noise,
    participation.Participation(rounds, rounds, 1),
    schedules.Amplification(
      'poisson', probability, max_cohort_size=largest, num_clients=clients
    ),
  )


@pytest.mark.parametrize(
  ('clients', 'probability', 'largest', 'noise', 'rounds', 'delta', 'epsilon'),
  _DP_ACCOUNTING,
)
def test_epsilon_is_that_of_dp_accounting(
  clients, probability, largest, noise, rounds, delta, epsilon
):
  record = _record(clients, probability, largest, noise, rounds)
  found = record.epsilon(delta)
  assert found == pytest.approx(epsilon, rel=1e-4)
  # Renyi bounds are looser; those of plain Poisson sampling do not hold.
  assert found < record.epsilon(delta, method='rdp') < 1.35 * found
  plain = dataclasses.replace(
    record, amplification=schedules.Amplification('poisson', probability)
  )
  assert plain.epsilon(delta, method='rdp') < record.epsilon(
    delta, method='rdp'
  )


@pytest.mark.skipif(
  not hasattr(dp_accounting, 'TruncatedSubsampledGaussianDpEvent'),
  reason='the event is new in dp_accounting 0.6.0',
)
def test_epsilon_is_that_of_the_installed_dp_accounting():
  event: type = vars(dp_accounting)['TruncatedSubsampledGaussianDpEvent']
  accountant = dp_accounting.pld.PLDAccountant()
  accountant.compose(event(500, 0.04, 25, 1.5), 30)
  found = _record(500, 0.04, 25, 1.5, 30).epsilon(1e-5)
  assert found == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-4)


def _sums(values, probability, largest):
  """Returns the sums of a round's cohort and their probabilities."""
  sums: dict[float, float] = {}
  everyone = range(len(values))
  for size in range(len(values) + 1):
    for drawn in itertools.combinations(everyone, size):
      chance = probability**size * (1 - probability) ** (len(values) - size)
      cuts = list(itertools.combinations(drawn, min(size, largest)))
      for kept in cuts:
        total = sum(values[client] for client in kept)
        sums[total] = sums.get(total, 0.0) + chance / len(cuts)
  return sums


@pytest.mark.parametrize('noise', [0.7, 1.5])
def test_no_client_of_four_is_distinguished_better(noise):
  x = np.linspace(-16, 16, 20_001)

  def density(values):
    sums = _sums(values, 0.5, 2)
    assert sum(sums.values()) == pytest.approx(1)
    return sum(p * stats.norm.pdf(x, mean, noise) for mean, p in sums.items())

  epsilons = np.array([0.0, 0.5, 1.0, 2.0, 4.0])

  def deltas(first, second):
    gains = np.maximum(first - np.exp(epsilons)[:, None] * second, 0)
    return gains.sum(axis=1) * (x[1] - x[0])

  event = truncated_poisson.TruncatedPoissonDpEvent(4, 0.5, 2, noise)
  most = {True: np.zeros(5), False: np.zeros(5)}
  for others in itertools.product([-1.0, 0.0, 1.0], repeat=3):
    # With the client; without it, or with a zero update.
    there = density([*others, 1.0])
    for without in (density(others), density([*others, 0.0])):
      most[True] = np.maximum(most[True], deltas(there, without))
      most[False] = np.maximum(most[False], deltas(without, there))
  plain = schedules.Amplification('poisson', 0.5)
  uncut = accounting.PrivacyRecord(
    strategies.identity(1), noise, participation.Participation(1, 1, 1), plain
  )
  for is_removed, found in most.items():
    bounds = event.deltas(epsilons, is_removed=is_removed)
    assert (found <= bounds + 1e-9).all()
  # The bound is close where it is tightest. The client is drawn less often than
  # in Poisson sampling, but exchanges can cost more than that saves if there is
  # much noise.
  largest = np.maximum(most[True], most[False])
  worst = np.maximum(*(event.deltas(epsilons, is_removed=b) for b in most))
  assert worst[0] < 1.5 * largest[0]
  broken = [
    delta > 1e-9 and uncut.epsilon(min(delta, 0.999)) < epsilon
    for epsilon, delta in zip(epsilons, largest)
  ]
  assert any(broken) == (noise > 1)


@pytest.mark.parametrize('probability', [0.02, 1.0])
@pytest.mark.parametrize('kind', ['REMOVE', 'ADD'])
def test_without_cuts_deltas_are_those_of_poisson_sampling(probability, kind):
  event = truncated_poisson.TruncatedPoissonDpEvent(9, probability, 9, 0.7)
  assert event.cut_probability == 0
  plain = privacy_loss_mechanism.GaussianPrivacyLoss(
    0.7,
    sampling_prob=probability,
    adjacency_type=privacy_loss_mechanism.AdjacencyType[kind],
  )
  epsilons = np.linspace(-3, 8, 45)
  np.testing.assert_allclose(
    event.deltas(epsilons, is_removed=kind == 'REMOVE'),
    plain.get_delta_for_epsilon(epsilons),
    atol=1e-15,
    rtol=1e-9,
  )


def test_chances_by_hand():
  # Each of three others is drawn with probability 1/2: two of them in 3/8 of
  # the cases, three in 1/8. Then the client joins in 1/2 of 2/3 and 2/4: 5/16.
  event = truncated_poisson.TruncatedPoissonDpEvent(4, 0.5, 2, 1.0)
  assert event.cut_probability == pytest.approx(1 / 2)
  assert event.exchange_probability == pytest.approx(5 / 16)


@pytest.mark.parametrize('order', [1.5, 8.0, 40.0])
def test_renyi_divergences_by_quadrature(order):
  # All five are drawn, and one is left out of the cohort of four.
  event = truncated_poisson.TruncatedPoissonDpEvent(5, 1.0, 4, 3.0)
  assert event.cut_probability == 1
  r = event.exchange_probability
  assert r == pytest.approx(4 / 5)

  def moment(x):
    first, second = (
      np.logaddexp(
        np.log(1 - r) + stats.norm.logpdf(x, 0, 3),
        np.log(r) + stats.norm.logpdf(x, mean, 3),
      )
      for mean in (2, -2)
    )
    return np.exp(order * first + (1 - order) * second)

  expected, _ = integrate.quad(
    moment, -60, 60 + 4 * order, limit=1000, points=[0, 4 * order]
  )
  plain, found = event.renyi(np.array([order]))
  # The divergence of a Gaussian, since every client is drawn.
  assert plain == pytest.approx(order / 18)
  assert found == pytest.approx(np.log(expected) / (order - 1), rel=1e-6)


def test_a_maximum_of_all_clients_is_plain_poisson_sampling():
  cut = _record(50, 0.1, 50, 1.0, 20)
  plain = dataclasses.replace(
    cut, amplification=schedules.Amplification('poisson', 0.1)
  )
  assert cut.event() == plain.event()
  assert cut.epsilon(1e-5) == plain.epsilon(1e-5)


def test_calibration_and_the_ledgers_bound_include_truncation():
  record = _record(100, 0.1, 12, 1.0, 3)
  found = accounting.calibrate(record, target_epsilon=3.0, delta=1e-5)
  assert 2.99 < found.epsilon(1e-5) <= 3.001
  so_far = found.after(participation.Participation(2, 1, 1))
  assert so_far.epsilon(1e-5) < found.epsilon(1e-5)
  summary = found.summary(1e-5, method='rdp')
  assert summary['amplification']['max_cohort_size'] == 12
  assert summary['amplification']['num_clients'] == 100


def test_rare_truncation_costs_almost_nothing():
  # A cohort of 30 with a mean of 10: once in ten million rounds.
  cut = _record(400, 10 / 400, 30, 1.5, 4)
  plain = dataclasses.replace(
    cut, amplification=schedules.Amplification('poisson', 10 / 400)
  )
  for method in ('exact', 'rdp'):
    most = plain.epsilon(1e-5, method=method)
    assert most < cut.epsilon(1e-5, method=method) < 1.01 * most
  # At a delta below their probability, Renyi bounds include the exchanges.
  event = truncated_poisson.TruncatedPoissonDpEvent(400, 10 / 400, 30, 1.5)
  rare = 2 * event.cut_probability
  assert cut.epsilon(rare, method='rdp') > 2 * plain.epsilon(rare, method='rdp')


def test_calibration_where_renyi_bounds_ask_for_twice_the_noise():
  record = _record(1000, 0.02, 46, 1.0, 10)
  found = accounting.calibrate(record, target_epsilon=0.5, delta=1e-6)
  assert 0.499 < found.epsilon(1e-6) <= 0.5001
  assert found.epsilon(1e-6, method='rdp') > 1.5


def _schedule(largest, seed=3):
  return schedules.Poisson(60, 5, seed, max_cohort_size=largest)


def test_no_cohort_is_above_the_maximum():
  plain, cut = _schedule(None), _schedule(6)
  sizes, counts = [], np.zeros(60)
  for round_num in range(1, 1201):
    drawn, kept = plain.cohort(round_num), cut.cohort(round_num)
    np.testing.assert_array_equal(kept, cut.cohort(round_num))
    assert len(kept) == min(len(drawn), 6)
    assert set(kept) <= set(drawn) and (np.diff(kept) > 0).all()
    sizes.append(len(drawn))
    counts[kept] += 1
  assert max(sizes) > 9
  # Clients are left out at random: three groups of 20 lose equally many, within
  # four standard deviations.
  thirds = counts.reshape(3, 20).sum(axis=1)
  assert np.abs(thirds - thirds.mean()).max() < 4 * thirds.mean() ** 0.5
  assert cut.amplification == schedules.Amplification(
    'poisson', 5 / 60, max_cohort_size=6, num_clients=60
  )


@pytest.mark.parametrize('largest', [0, 4, 61])
def test_impossible_maxima_are_refused(largest):
  with pytest.raises(ValueError, match=f'{largest}; take 5 .* to 60'):
    _schedule(largest)


@pytest.mark.parametrize(
  ('kind', 'options'),
  [
    ('poisson', {'max_cohort_size': 3}),
    ('poisson', {'num_clients': 3}),
    ('poisson', {'max_cohort_size': 9, 'num_clients': 8}),
    ('cyclic_poisson', {'max_cohort_size': 3}),
    ('balls_in_bins', {'max_cohort_size': 3, 'num_clients': 8}),
    ('b_min_sep', {'max_cohort_size': 3, 'num_clients': 8}),
  ],
)
def test_incomplete_maxima_are_refused(kind, options):
  with pytest.raises(ValueError, match='cyclic_poisson take a maximum'):
    schedules.Amplification(kind, 0.1, **options)


def _in_groups(largest, guests=0):
  return schedules.CyclicPoisson(
    61, 5, 3, min_separation=3, max_cohort_size=largest, num_guests=guests
  )


def test_cohorts_of_groups_have_a_maximum_too():
  plain, cut = _in_groups(None), _in_groups(6)
  sizes = set()
  for round_num in range(1, 301):
    drawn, kept = plain.cohort(round_num), cut.cohort(round_num)
    assert len(kept) == min(len(drawn), 6) and set(kept) <= set(drawn)
    sizes.add(len(drawn))
  assert max(sizes) > 9
  # A client can only be displaced by those of its group of 20.
  assert cut.amplification == schedules.Amplification(
    'cyclic_poisson', 5 / 20, 3, max_cohort_size=6, num_clients=20
  )
  with pytest.raises(ValueError, match='21; take 5 .* to 20'):
    _in_groups(21)


def test_a_turn_of_a_group_costs_what_a_truncated_round_does():
  contract = participation.Participation(7, 3, 3, cyclic=True)
  record = accounting.PrivacyRecord(
    strategies.Toeplitz(np.array([1.0, 0.5]), 7),
    2.0,
    contract,
    _in_groups(6).amplification,
  )
  # Columns of C have a norm of at most 1.25^(1/2); a group has three turns.
  event = truncated_poisson.TruncatedPoissonDpEvent(20, 0.25, 6, 2 / 1.25**0.5)
  accountant = accountants.PldAccountant()
  accountant.compose(event, 3)
  assert record.epsilon(1e-5) == pytest.approx(accountant.get_epsilon(1e-5))
  plain = dataclasses.replace(
    record, amplification=_in_groups(None).amplification
  )
  assert record.epsilon(1e-5) > 1.1 * plain.epsilon(1e-5)


@pytest.mark.parametrize('groups', [1, 3])
def test_guests_take_places_as_clients_do(groups):
  def make(largest, guests=20):
    if groups > 1:
      return _in_groups(largest, guests)
    return schedules.Poisson(
      20, 5, 3, max_cohort_size=largest, num_guests=guests
    )

  clients, guests, full = np.zeros(61), np.zeros(20), 0
  schedule, plain = make(7), make(None, 0)
  for round_num in range(1, 901):
    cohort, invited = schedule.cohort(round_num), schedule.guests_of(round_num)
    if (round_num - 1) % groups:
      # Guests are of the first group, and change no other.
      assert not len(invited)
      np.testing.assert_array_equal(cohort, make(7, 0).cohort(round_num))
      continue
    assert set(cohort) <= set(plain.cohort(round_num))
    assert len(cohort) + len(invited) <= 7
    full += len(cohort) + len(invited) == 7
    clients[cohort] += 1
    guests[invited] += 1
  assert full > 0.8 * 900 / groups
  # Clients and guests, 20 of each, lose equally many places.
  taken = guests.sum()
  assert abs(clients.sum() - taken) < 4 * (2 * taken) ** 0.5
  assert guests.min() > 0.5 * guests.max() > 0
  assert schedule.amplification.num_clients == 20 + 20
  assert schedule.amplification.probability == 1 / 4
  # Without a maximum, nobody displaces anybody.
  np.testing.assert_array_equal(make(None).cohort(1), plain.cohort(1))
