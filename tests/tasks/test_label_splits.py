"""Tests of held-out labelled data, and of the rest's division over clients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from si_federated.tasks import label_splits

_LABELS = np.array([0, 1, 0, 2, 1, 0, 2, 0, 1, 0], np.int32)


def _sorted(parts):
  return sorted(np.concatenate(parts).tolist())


@pytest.mark.parametrize('name', ['dirichlet', 'iid', 'label'])
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
  # Almost all examples of each class go to one client.
  assert (shares(1e-3).max(axis=0) > 490).all()
  between = shares(0.5)
  assert even.std() < between.std() < shares(1e-3).std()


def test_majorities_by_hand():
  # Four classes of 100; each is a majority class of three of six clients.
  labels = np.repeat(np.arange(4), 100)
  parts = label_splits.by_majority(labels, 6, seed=0, majority=0.6)
  counts = np.array([np.bincount(labels[p], minlength=4) for p in parts])
  # A class gives 0.3 to three clients and 0.2 to three, 1.5 of a client's 66.
  assert np.sort(counts, axis=1).tolist() == [[13, 13, 19, 19]] * 6
  assert (counts > 13).sum(axis=0).tolist() == [3, 3, 3, 3]
  together = np.concatenate(parts)
  assert len(set(together.tolist())) == len(together)
  again = label_splits.by_majority(labels, 6, seed=0, majority=0.6)
  assert [p.tolist() for p in parts] == [p.tolist() for p in again]
  other = label_splits.by_majority(labels, 6, seed=1, majority=0.6)
  assert [p.tolist() for p in parts] != [p.tolist() for p in other]


def test_majorities_at_the_ends():
  labels = np.repeat(np.arange(5), 40)

  def counts(majority):
    parts = label_splits.by_majority(labels, 5, seed=2, majority=majority)
    return np.array([np.bincount(labels[p], minlength=5) for p in parts])

  alone = counts(1.0)
  assert np.sort(alone, axis=1).tolist() == [[0, 0, 0, 20, 20]] * 5
  assert alone.sum(axis=0).tolist() == [40] * 5
  # Two of five classes by chance.
  assert (counts(0.4) == 8).all()


@given(
  labels=st.lists(st.integers(0, 3), min_size=12, max_size=90),
  number=st.integers(1, 5),
  majority=st.floats(0.3, 1.0),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_majorities_keep_to_their_part(labels, number, majority):
  labels = np.array(labels)
  try:
    parts = label_splits.by_majority(labels, number, seed=0, majority=majority)
  except ValueError:  # Too few classes or examples, as is tested below.
    assume(False)
    return
  assert len(set(_sorted(parts))) == sum(map(len, parts))
  for part in parts:
    counts = np.bincount(labels[part], minlength=4)
    # Each class is rounded down.
    size = 2 * (counts.max() + 1) / majority if majority > 0.5 else len(labels)
    assert 1 <= len(part) <= size + 4


@pytest.mark.parametrize('majority', [0.0, 1.1, float('nan')])
def test_majority_refuses(majority):
  with pytest.raises(ValueError, match='majority must be above 0'):
    label_splits.by_majority(_LABELS, 2, seed=0, majority=majority)
  with pytest.raises(ValueError, match='three classes'):
    label_splits.by_majority(_LABELS[:2], 1, seed=0)
  with pytest.raises(ValueError, match='too few examples'):
    label_splits.by_majority(_LABELS, 9, seed=0)


@pytest.mark.parametrize(
  'alpha', [0.0, -1.0, 1e-300, 1e300, float('inf'), float('nan')]
)
def test_dirichlet_refuses(alpha):
  with pytest.raises(ValueError, match='alpha must be from 0.0001 to 1000000;'):
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


@pytest.mark.parametrize('alpha', [1e-4, 1e6])
def test_dirichlet_at_the_ends_of_its_range(alpha):
  labels = np.arange(4000) % 4
  parts = label_splits.dirichlet(labels, 5, seed=3, alpha=alpha)
  assert sorted(np.concatenate(parts).tolist()) == list(range(4000))
  sizes = [len(part) for part in parts]
  if alpha < 1:
    # Each class has one owner; a client without any got an example.
    assert all(size == 1 or size > 990 for size in sizes)
  else:
    assert max(sizes) - min(sizes) < 20
