"""Comparison of a process on TFF's runtime and on the local one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import attrs
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff


def assert_same(ours: Any, theirs: Any, path='', rtol=1e-4, atol=1e-5):
  """Compares nested values and the Python types at every level."""

  def each(keys, pairs):
    for key, (one, other) in zip(keys, pairs):
      assert_same(one, other, f'{path}.{key}', rtol, atol)

  assert type(ours) is type(theirs), path
  if isinstance(ours, dict):
    assert list(ours) == list(theirs), path
    each(ours, zip(ours.values(), theirs.values()))
  elif attrs.has(type(ours)):
    names = [field.name for field in attrs.fields(type(ours))]
    each(names, [(getattr(ours, n), getattr(theirs, n)) for n in names])
  elif isinstance(ours, (list, tuple)):
    assert len(ours) == len(theirs), path
    each(range(len(ours)), zip(ours, theirs))
  elif isinstance(ours, tf.data.Dataset):
    assert ours.element_spec == theirs.element_spec, path
    one, other = (list(data.as_numpy_iterator()) for data in (ours, theirs))
    assert_same(one, other, path, rtol, atol)
  elif isinstance(ours, (np.ndarray, np.generic)):
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, path
    if math.isinf(rtol):
      return
    if ours.dtype.kind == 'f':
      np.testing.assert_allclose(
        np.asarray(ours), np.asarray(theirs), rtol, atol, err_msg=path
      )
    else:
      np.testing.assert_array_equal(ours, theirs, err_msg=path)
  else:
    assert ours == theirs, path


def assert_parity(contexts, process, datasets, rounds=2):
  """Runs a process on both runtimes from TFF's initial state.

  Some initial states contain the time, as the seed of random draws.
  """
  reference, local = contexts
  tff.framework.set_default_context(reference)
  states = [process.initialize()]
  expected = []
  for round_num in range(rounds):
    expected.append(process.next(states[-1], datasets(round_num)))
    states.append(expected[-1][0])
  tff.framework.set_default_context(local)
  # Its values may differ because of the time, but not its types.
  assert_same(process.initialize(), states[0], rtol=math.inf, atol=math.inf)
  state = states[0]
  for round_num in range(rounds):
    output = process.next(state, datasets(round_num))
    assert_same(output, expected[round_num])
    state = output[0]
  return state, states[0]


def mark_slow(names: Iterable[str], slow: set[str]) -> list[Any]:
  """Returns names as parameters of a test, some of them marked as slow."""
  return [
    pytest.param(name, marks=[pytest.mark.slow] * (name in slow))
    for name in names
  ]
