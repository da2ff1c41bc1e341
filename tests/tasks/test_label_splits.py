"""Tests of what is held out of labelled data, and of who has the rest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from si_federated.tasks import label_splits

_LABELS = np.array([0, 1, 0, 2, 1, 0, 2, 0, 1, 0], np.int32)


def _sorted(parts):
  return sorted(np.concatenate(parts).tolist())


@pytest.mark.parametrize('name', sorted(label_splits.SPLITS))
@given(
  labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
  seed=st.integers(0, 9),
  data=st.data(),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_every_example_is_in_one_client(name, labels, seed, data):
  number = data.draw(st.integers(1, len(labels)))
  split = label_splits.SPLITS[name]
  parts = split(np.array(labels), number, seed=seed)
  assert len(parts) == number
  assert _sorted(parts) == list(range(len(labels)))
  assert min(map(len, parts)) >= 1
  again = split(np.array(labels), number, seed=seed)
  assert [p.tolist() for p in parts] == [p.tolist() for p in again]


def test_iid_sizes_differ_by_one():
  parts = label_splits.iid(_LABELS, 3, seed=0)
  assert [len(part) for part in parts] == [4, 3, 3]
  other = label_splits.iid(_LABELS, 3, seed=1)
  assert [p.tolist() for p in parts] != [p.tolist() for p in other]


def test_by_label_cuts_the_sorted_labels():
  parts = label_splits.by_label(_LABELS, 5, seed=0)
  # Sorted: 0 0 0 0 0 1 1 1 2 2.
  assert [_LABELS[part].tolist() for part in parts] == [
    [0, 0],
    [0, 0],
    [0, 1],
    [1, 1],
    [2, 2],
  ]


def test_dirichlet_extremes():
  labels = np.repeat(np.arange(4), 500)

  def shares(alpha):
    parts = label_splits.dirichlet(labels, 5, seed=3, alpha=alpha)
    return np.array([np.bincount(labels[p], minlength=4) for p in parts])

  even = shares(1e6)
  np.testing.assert_allclose(even, 100, atol=3)
  # Each class goes to one client almost whole.
  assert (shares(1e-3).max(axis=0) > 490).all()
  between = shares(0.5)
  assert even.std() < between.std() < shares(1e-3).std()


@pytest.mark.parametrize('alpha', [0.0, -1.0, float('inf'), float('nan')])
def test_dirichlet_refuses(alpha):
  with pytest.raises(ValueError, match='alpha must be positive'):
    label_splits.dirichlet(_LABELS, 2, seed=0, alpha=alpha)


def test_hold_out_is_stratified():
  labels = np.repeat([0, 1], [100, 20])
  train, validation, test = label_splits.hold_out(
    labels, (0.1, 0.2), classes=('a', 'b'), seed=0
  )
  assert _sorted([train, validation, test]) == list(range(120))
  counts = [np.bincount(labels[p]).tolist() for p in (train, validation, test)]
  assert counts == [[70, 14], [10, 2], [20, 4]]
  others = label_splits.hold_out(labels, (0.1, 0.2), classes=('a', 'b'), seed=1)
  assert train.tolist() != others[0].tolist()


def test_hold_out_leaves_something_of_small_classes():
  labels = np.array([0, 0, 0, 1, 1, 1, 1])
  parts = label_splits.hold_out(labels, (0.45, 0.45), classes='ab', seed=0)
  counts = [np.bincount(labels[part]).tolist() for part in parts]
  assert counts == [[1, 2], [1, 1], [1, 1]]
  with pytest.raises(ValueError, match="Class 'b' has 2 examples"):
    label_splits.hold_out(labels[:-2], (0.1, 0.1), classes='ab', seed=0)
