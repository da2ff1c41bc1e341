from __future__ import annotations

import re

import numpy as np
import pytest

from si_federated.privacy import participation, schedules

_SIZES = {'num_clients': 60, 'clients_per_round': 5}
_SCHEDULES = {
  'uniform': lambda seed: schedules.Uniform(**_SIZES, seed=seed),
  'epochs': lambda seed: schedules.ShuffledEpochs(**_SIZES, seed=seed),
  'cycles': lambda seed: schedules.FixedCycles(**_SIZES, seed=seed),
  'short_cycles': lambda seed: schedules.FixedCycles(
    **_SIZES, seed=seed, min_separation=7
  ),
  'separation': lambda seed: schedules.MinSeparation(
    **_SIZES, seed=seed, min_separation=8
  ),
  'limited': lambda seed: schedules.MinSeparation(
    **_SIZES, seed=seed, min_separation=4, max_participations=6
  ),
  'poisson': lambda seed: schedules.Poisson(**_SIZES, seed=seed),
  'cyclic_poisson': lambda seed: schedules.CyclicPoisson(
    **_SIZES, seed=seed, min_separation=7
  ),
  'bins': lambda seed: schedules.BallsInBins(
    **_SIZES, seed=seed, min_separation=7
  ),
  'b_min_sep': lambda seed: schedules.BMinSep(
    **_SIZES, seed=seed, min_separation=7
  ),
}
_VARYING = {'poisson', 'cyclic_poisson', 'bins', 'b_min_sep'}


@pytest.mark.parametrize('name', _SCHEDULES)
def test_cohorts_are_a_function_of_seed_and_round(name):
  make = _SCHEDULES[name]
  schedule = make(3)
  in_order = [schedule.cohort(r) for r in range(1, 41)]
  for round_num in (40, 3, 17, 3):
    np.testing.assert_array_equal(
      make(3).cohort(round_num), in_order[round_num - 1]
    )
    np.testing.assert_array_equal(
      schedule.cohort(round_num), in_order[round_num - 1]
    )
  other = make(4)
  assert any(
    not np.array_equal(other.cohort(r), in_order[r - 1]) for r in range(1, 5)
  )
  with pytest.raises(ValueError, match='numbered from 1'):
    schedule.cohort(0)


@pytest.mark.parametrize('name', _SCHEDULES)
@pytest.mark.parametrize('rounds', [1, 12, 50])
def test_stated_contract_is_met(name, rounds):
  schedule = _SCHEDULES[name](5)
  recorder = participation.ParticipationRecorder(schedule.contract(rounds))
  for round_num in range(1, rounds + 1):
    cohort = schedule.cohort(round_num)
    assert all(cohort >= 0) and all(cohort < 60)
    if name not in _VARYING:
      assert len(cohort) == 5
    recorder.record(round_num, cohort)
  assert schedule.contract(rounds).rounds == rounds


def test_contracts():
  contract = participation.Participation
  stated = {name: make(0).contract(50) for name, make in _SCHEDULES.items()}
  assert stated == {
    'uniform': contract(50, 50, 1),
    'epochs': contract(50, 5, 1, block=12),
    'cycles': contract(50, 5, 12, cyclic=True),
    'short_cycles': contract(50, 8, 7, cyclic=True),
    'separation': contract(50, 7, 8),
    'limited': contract(50, 6, 4),
    'poisson': contract(50, 50, 1),
    'cyclic_poisson': contract(50, 8, 7, cyclic=True),
    'bins': contract(50, 8, 7, cyclic=True),
    'b_min_sep': contract(50, 8, 7),
  }


def test_only_independent_draws_are_amplified():
  earned = {name: make(0).amplification for name, make in _SCHEDULES.items()}
  assert earned.pop('poisson') == schedules.Amplification('poisson', 5 / 60)
  # 60 clients make 7 groups of 8.
  assert earned.pop('cyclic_poisson') == schedules.Amplification(
    'cyclic_poisson', 5 / 8, 7
  )
  assert earned.pop('bins') == schedules.Amplification(
    'balls_in_bins', 5 / 60, 7
  )
  # The rate 1 / 12 is p / (1 + 6 p).
  assert earned.pop('b_min_sep') == schedules.Amplification(
    'b_min_sep', 1 / 6, 7
  )
  assert set(earned.values()) == {None}


def test_an_epoch_has_each_client_once():
  schedule = _SCHEDULES['epochs'](1)
  epochs = [
    np.concatenate([schedule.cohort(12 * e + r) for r in range(1, 13)])
    for e in range(2)
  ]
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(60))
  assert not np.array_equal(*epochs)


def test_poisson_takes_each_client_at_its_rate():
  counts = np.zeros(60)
  schedule = _SCHEDULES['poisson'](2)
  sizes = []
  for round_num in range(1, 1201):
    cohort = schedule.cohort(round_num)
    counts[cohort] += 1
    sizes.append(len(cohort))
  # 100 expected of each, standard deviation sqrt(1200 * 11 / 144) = 9.6.
  assert counts.min() > 60
  assert counts.max() < 140
  assert np.mean(sizes) == pytest.approx(5, abs=0.3)
  # A fixed size would have variance 0; that of the binomial is 4.58.
  assert np.var(sizes) == pytest.approx(4.58, rel=0.25)


def test_clients_that_pause_have_one_rate_from_the_first_round_on():
  sizes, first = [], np.zeros(7)
  for seed in range(300):
    schedule = _SCHEDULES['b_min_sep'](seed)
    cohorts = [schedule.cohort(r) for r in range(1, 31)]
    sizes.append([len(cohort) for cohort in cohorts])
    (returns,) = np.nonzero(np.isin(np.concatenate(cohorts[1:]), cohorts[0]))
    first[0] += len(returns)
    for gap in range(1, 7):
      first[gap] += np.isin(cohorts[gap], cohorts[0]).sum()
  # Over 300 cohorts: five standard errors of sqrt(60 (1 - 1 / 12) / 12 / 300).
  np.testing.assert_allclose(np.mean(sizes, axis=0), 5, atol=0.62)
  assert np.mean(sizes) == pytest.approx(5, abs=0.1)
  # Clients of the first round return, but not in the next six rounds.
  assert first[0] > 300
  assert not first[1:].any()
  # The third of the 60 clients that were pausing cannot all return at once.
  returned = [
    np.isin(_SCHEDULES['b_min_sep'](seed).cohort(8), cohort).sum()
    for seed in range(300)
    for cohort in [_SCHEDULES['b_min_sep'](seed).cohort(1)]
  ]
  # Each of the 5 that are available again joins with probability 1 / 6.
  assert np.mean(returned) == pytest.approx(5 / 6, abs=0.28)


def test_without_pause_or_choice_it_is_a_simpler_sampling():
  free = schedules.BMinSep(**_SIZES, seed=0, min_separation=1)
  assert free.amplification == schedules.Amplification('poisson', 1 / 12)
  counts = np.bincount(
    np.concatenate([free.cohort(r) for r in range(1, 1201)]), minlength=60
  )
  # 100 expected of each, standard deviation 9.6.
  assert counts.min() > 60 and counts.max() < 140
  full = schedules.BMinSep(**_SIZES, seed=0, min_separation=12)
  assert full.amplification == schedules.Amplification('b_min_sep', 1.0, 12)
  for round_num in range(1, 13):
    np.testing.assert_array_equal(
      full.cohort(round_num), full.cohort(round_num + 12)
    )


def test_each_client_draws_its_group():
  counts, sizes = np.zeros([7, 60]), []
  for seed in range(300):
    schedule = _SCHEDULES['bins'](seed)
    cohorts = [schedule.cohort(r) for r in range(1, 8)]
    for group, cohort in enumerate(cohorts):
      counts[group, cohort] += 1
      sizes.append(len(cohort))
      np.testing.assert_array_equal(schedule.cohort(group + 15), cohort)
  # 25 expected in each, with standard deviation 4.8.
  assert counts.min() > 5 and counts.max() < 50
  # 60 draws of one in twelve: a fixed size would have variance 0.
  assert np.mean(sizes) == pytest.approx(5, abs=0.3)
  assert np.var(sizes) == pytest.approx(4.58, rel=0.25)


def test_check_in_is_uniform_over_available_clients():
  counts = np.zeros(60)
  for seed in range(300):
    schedule = _SCHEDULES['separation'](seed)
    counts[schedule.cohort(9)] += 1
  # 25 expected, standard deviation under 5.
  assert counts.min() > 5
  assert counts.max() < 50


def test_running_out_of_clients_is_reported():
  schedule = schedules.MinSeparation(
    num_clients=10,
    clients_per_round=2,
    seed=0,
    min_separation=2,
    max_participations=1,
  )
  schedule.cohort(5)
  with pytest.raises(ValueError, match='Only 0 clients remain for round 6'):
    schedule.cohort(6)


def _lasts(rounds, **sizes):
  """Returns whether a schedule has clients for all rounds, by asking."""
  schedule = schedules.MinSeparation(**sizes)
  try:
    for round_num in range(1, rounds + 1):
      assert len(schedule.cohort(round_num)) == sizes['clients_per_round']
  except ValueError:
    return False
  return True


@pytest.mark.parametrize('most', [1, 2, 3])
def test_missing_clients_are_known_before_the_first_round(most):
  found = set()
  for seed in range(4):
    for clients in (12, 16, 23, 30):
      sizes = {
        'num_clients': clients,
        'clients_per_round': 3,
        'seed': seed,
        'min_separation': 4,
        'max_participations': most,
      }
      for rounds in (3, 8, 11, 13, 20):
        lasts = _lasts(rounds, **sizes)
        found.add(lasts)
        schedule = schedules.MinSeparation(**sizes)
        if lasts:
          schedule.check_rounds(rounds)
          continue
        with pytest.raises(
          ValueError, match='suffice for every seed'
        ) as raised:
          schedule.check_rounds(rounds)
        words = re.fullmatch(
          r'.* make (\d+) of .* max_participations=(\d+) or (\d+) clients,.*',
          str(raised.value),
        )
        assert words
        most_rounds, enough_times, enough_clients = map(int, words.groups())
        assert _lasts(most_rounds, **sizes)
        assert not _lasts(most_rounds + 1, **sizes)
        # These suffice for other seeds, too.
        for other in range(3):
          for change in (
            {'max_participations': enough_times},
            {'num_clients': enough_clients},
          ):
            assert _lasts(rounds, **{**sizes, **change, 'seed': other})
  assert found == {False, True}


@pytest.mark.parametrize('name', sorted({*_SCHEDULES} - {'limited'}))
def test_schedules_without_retiring_clients_last(name):
  schedule = _SCHEDULES[name](0)
  schedule.check_rounds(200)
  sizes = [len(schedule.cohort(round_num)) for round_num in range(1, 201)]
  assert name in _VARYING or set(sizes) == {5}


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda **k: schedules.Uniform(**{**k, 'clients_per_round': 99}), 'size'),
    (lambda **k: schedules.Uniform(**{**k, 'clients_per_round': 0}), 'needs'),
    (lambda **k: schedules.FixedCycles(**k, min_separation=13), 'at most 12'),
    (lambda **k: schedules.MinSeparation(**k, min_separation=13), 'at most 12'),
    (
      lambda **k: schedules.MinSeparation(**k, min_separation=0),
      'take 1 to 12',
    ),
    (lambda **k: schedules.CyclicPoisson(**k, min_separation=13), 'at most 12'),
    (lambda **k: schedules.BMinSep(**k, min_separation=13), 'at most 12'),
  ],
)
def test_impossible_schedules_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make(**_SIZES, seed=0)


@pytest.mark.parametrize(
  'arguments',
  [
    ('uniform', 0.1),
    ('poisson', 0.0),
    ('poisson', 0.1, 2),
    ('balls_in_bins', 0.4, 3),
  ],
)
def test_impossible_amplifications_are_refused(arguments):
  with pytest.raises(ValueError, match='amplification|probability|groups'):
    schedules.Amplification(*arguments)
