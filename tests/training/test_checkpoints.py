from __future__ import annotations

import collections
import errno
import logging
import os
from typing import Any, NamedTuple

import numpy as np
import pytest

from si_federated.training import checkpoints


class _State(NamedTuple):
  global_model_weights: Any
  finalizer: Any


def _state(value: float, rows: int = 3) -> _State:
  return _State(
    collections.OrderedDict(
      trainable=(
        np.full([rows, 2], value, np.float32),
        np.full([2], value, np.float32),
      ),
      non_trainable=(),
    ),
    collections.OrderedDict(step=np.int32(value), z=[], a=np.float32(value)),
  )


def _assert_equal(one: _State, other: _State):
  np.testing.assert_equal(
    tuple(one.global_model_weights['trainable']),
    tuple(other.global_model_weights['trainable']),
  )
  assert list(one.finalizer.items()) == list(other.finalizer.items())
  assert type(one) is type(other)
  assert one.finalizer['step'].dtype == other.finalizer['step'].dtype


@pytest.fixture
def saved(tmp_path):
  store = checkpoints.Checkpoints(tmp_path)
  for round_num in (2, 4, 10, 12):
    store.save(_state(round_num), round_num, {'note': round_num})
  return store


def test_restores_the_newest_in_the_structure_of_the_state(saved):
  state, round_num, facts = saved.restore(_state(0))
  assert round_num == 12
  assert facts['note'] == 12
  _assert_equal(state, _state(12))


def test_keeps_the_newest_three_and_no_temporary_file(saved, tmp_path):
  assert sorted(os.listdir(tmp_path)) == [
    'round_000004.npz',
    'round_000010.npz',
    'round_000012.npz',
  ]


def test_without_checkpoints_the_initial_state_is_returned(tmp_path):
  store = checkpoints.Checkpoints(tmp_path / 'none')
  state, round_num, facts = store.restore(_state(5))
  assert (round_num, facts) == (0, {})
  _assert_equal(state, _state(5))


def _truncate(path):
  os.truncate(path, os.path.getsize(path) // 2)


def _garble(path):
  with open(path, 'r+b') as file:
    # In the middle of an array's values, so that no header shows it.
    content = file.read()
    where = content.index(np.full([3, 2], 12, np.float32).tobytes())
    file.seek(where + 5)
    file.write(b'\x99')


def _empty(path):
  os.truncate(path, 0)


@pytest.mark.parametrize('damage', [_truncate, _garble, _empty])
def test_falls_back_and_says_so(saved, damage, caplog):
  newest = saved.newest()[0]
  damage(newest)
  with caplog.at_level(logging.WARNING):
    state, round_num, _ = saved.restore(_state(0))
  assert round_num == 10
  _assert_equal(state, _state(10))
  assert newest in caplog.text
  # The next save of round 12 must not meet the bad file.
  assert newest not in saved.newest()


def test_all_garbled_is_an_error_not_a_new_start(saved):
  for path in saved.newest():
    _truncate(path)
  with pytest.raises(checkpoints.CheckpointError, match='No checkpoint'):
    saved.restore(_state(0))


def test_a_checkpoint_that_cannot_be_read_now_is_not_set_aside(
  saved, monkeypatch
):
  before = saved.newest()

  def fail(*unused_args, **unused_kwargs):
    raise OSError(errno.EIO, 'Input/output error')

  monkeypatch.setattr(np, 'load', fail)
  with pytest.raises(OSError, match=r'\.npz cannot be read \(Input/output'):
    saved.restore(_state(0))
  assert saved.newest() == before


def test_a_checkpoint_of_another_model_is_refused(saved):
  with pytest.raises(
    checkpoints.CheckpointError, match='another model.*trainable/0'
  ):
    saved.restore(_state(0, rows=4))


def test_read_weights_needs_no_structure(saved):
  weights = checkpoints.read_weights(saved.newest()[0])
  assert [w.shape for w in weights] == [(3, 2), (2,)]
  assert weights[0][0, 0] == 12


def test_a_pickle_is_not_read(tmp_path):
  np.savez(
    tmp_path / 'round_000001.npz', facts=np.array([{'a': 1}], dtype=object)
  )
  with pytest.raises(checkpoints.CheckpointError):
    checkpoints.read_weights(str(tmp_path / 'round_000001.npz'))
