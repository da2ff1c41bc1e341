from __future__ import annotations

import io

import numpy as np
import pytest

from si_federated.privacy import participation

Participation = participation.Participation


@pytest.mark.parametrize(
  'arguments', [(0, 1, 1), (5, 0, 1), (5, 1, 0), (5, 1.5, 1), (5, True, 1)]
)
def test_impossible_contracts_are_refused(arguments):
  with pytest.raises(ValueError, match='a contract needs'):
    Participation(*arguments)


def test_participations_are_those_that_fit():
  assert Participation(2048, 6, 342).participations == 6
  assert Participation(2048, 7, 342).participations == 6
  assert Participation(2048, 3, 342).participations == 3
  assert Participation(2053, 7, 342).participations == 7


def test_covers():
  contract = Participation(100, 4, 20)
  assert contract.covers(Participation(100, 4, 20))
  assert contract.covers(Participation(90, 3, 25))
  assert contract.covers(Participation(100, 4, 20, cyclic=True))
  # A single participation has no separation to keep.
  assert contract.covers(Participation(100, 1, 1))
  assert not contract.covers(Participation(101, 4, 20))
  assert not contract.covers(Participation(100, 5, 20))
  assert not contract.covers(Participation(100, 4, 19))
  cyclic = Participation(100, 5, 20, cyclic=True)
  assert not cyclic.covers(contract)
  assert not cyclic.covers(Participation(100, 3, 30, cyclic=True))
  assert cyclic.covers(Participation(100, 3, 40, cyclic=True))
  with pytest.raises(ValueError, match='uniform meets only'):
    contract.check_covers(Participation(100, 100, 1), what='uniform')


def test_recorder_observes_participation():
  recorder = participation.ParticipationRecorder()
  rounds = {1: ['a', 'b'], 2: ['c'], 4: [], 6: ['b', 'c'], 9: ['b']}
  for round_num, cohort in rounds.items():
    recorder.record(round_num, cohort)
  assert recorder.max_participations == 3
  assert recorder.min_separation == 3
  assert recorder.num_clients == 3
  assert recorder.observed() == Participation(9, 3, 3)


def test_observed_without_returning_clients():
  recorder = participation.ParticipationRecorder()
  with pytest.raises(ValueError, match='No round'):
    recorder.observed()
  recorder.record(1, np.arange(3))
  recorder.record(2, np.arange(3, 6))
  assert recorder.min_separation is None
  assert recorder.observed() == Participation(2, 1, 2)


@pytest.mark.parametrize(
  ('round_num', 'cohort', 'message'),
  [
    (12, [9, 7], '4 rounds after its last'),
    (14, [9, 8], 'beyond the 2'),
    (8, [9], 'in order'),
    (12, [9, 9], 'twice'),
    (12, ['x'], 'all whole numbers or all strings'),
    (12, [1.5], 'float'),
    (16, [9], 'past the 15 rounds'),
  ],
)
def test_broken_contract_raises_and_records_nothing(round_num, cohort, message):
  recorder = participation.ParticipationRecorder(Participation(15, 2, 5))
  for earlier, clients in ((1, [8]), (6, [8]), (8, [7])):
    recorder.record(earlier, clients)
  before = recorder.state()
  with pytest.raises(ValueError, match=message):
    recorder.record(round_num, cohort)
  for key, value in recorder.state().items():
    np.testing.assert_array_equal(value, before[key])


def test_cyclic_contract_refuses_another_phase():
  recorder = participation.ParticipationRecorder(
    Participation(20, 4, 5, cyclic=True)
  )
  recorder.record(1, [0])
  recorder.record(6, [0])
  with pytest.raises(ValueError, match='7 rounds after'):
    recorder.record(13, [0])
  recorder.record(16, [0])
  assert recorder.observed() == Participation(16, 3, 5, cyclic=True)


@pytest.mark.parametrize('names', [np.arange(30), [f'é{i}' for i in range(30)]])
def test_state_goes_through_a_file(names):
  contract = Participation(60, 20, 3)
  recorder = participation.ParticipationRecorder(contract)
  for round_num in range(1, 11):
    start = 10 * (round_num % 3)
    recorder.record(round_num, names[start : start + 10])
  file = io.BytesIO()
  np.savez(file, **recorder.state())
  file.seek(0)
  other = participation.ParticipationRecorder(contract)
  other.restore(dict(np.load(file, allow_pickle=False)))
  assert other.observed() == recorder.observed() == Participation(10, 4, 3)
  with pytest.raises(ValueError, match='1 rounds after'):
    other.record(11, names[10:12])
  other.record(11, names[20:30])
  assert other.max_participations == 4


def test_empty_state_goes_through():
  recorder = participation.ParticipationRecorder()
  recorder.restore(participation.ParticipationRecorder().state())
  recorder.record(1, ['a'])
  assert recorder.num_clients == 1


@pytest.mark.parametrize('damage', ['missing', 'length', 'maximum', 'type'])
def test_damaged_state_is_refused(damage):
  recorder = participation.ParticipationRecorder()
  recorder.record(1, [4, 5])
  state = recorder.state()
  if damage == 'missing':
    del state['counts']
  elif damage == 'length':
    state['counts'] = state['counts'][:1]
  elif damage == 'maximum':
    state['observed'] = np.array([1, 2, 0])
  else:
    state['clients'] = state['clients'].astype(float)
  with pytest.raises(ValueError, match='older checkpoint'):
    recorder.restore(state)


def test_once_in_each_block():
  contract = Participation(9, 3, 1, block=3)
  assert contract.participations == 3
  assert Participation(9, 9, 1, block=4).participations == 3
  assert 'once in each 3 rounds' in str(contract)
  recorder = participation.ParticipationRecorder(contract)
  recorder.record(3, [7])
  # The last round of a block and the first of the next.
  recorder.record(4, [7, 8])
  assert recorder.observed() == Participation(4, 2, 1, block=3)
  recorder.check(7, [7])
  for round_num in (5, 6):
    with pytest.raises(ValueError, match='twice in a block of 3 rounds'):
      recorder.check(round_num, [7])
  for other, covered in (
    (Participation(9, 3, 3), True),
    (Participation(9, 1, 1), True),
    (Participation(9, 2, 1, block=6), True),
    (Participation(9, 3, 2), False),
    (Participation(9, 3, 1, block=4), False),
    (Participation(9, 3, 3, cyclic=True), True),
  ):
    assert contract.covers(other) == covered, other
  assert Participation(9, 3, 1).covers(contract)
  assert not Participation(9, 3, 2).covers(contract)
  for cyclic, block in ((True, 3), (False, -1)):
    with pytest.raises(ValueError, match='block is'):
      Participation(9, 3, 3, cyclic, block)
