"""The end of a client's training, and the weights that it keeps."""

from __future__ import annotations

import math
from typing import Any

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from si_federated.personalization import early_stopping

_SPEC = (tf.TensorSpec([None, 2], tf.int32), tf.TensorSpec([None, 2], tf.int32))


class _Scripted:
  """A learner whose weights are the number of epochs of training."""

  def __init__(self, losses):
    self._losses = losses
    self.seen = []

  def initial_states(self):
    return 0

  def evaluate(self, trained, fixed, batches):
    del fixed, batches
    return {'loss': self._losses[min(trained, len(self._losses) - 1)]}

  def train(self, trained, fixed, states, batches):
    del fixed
    rows = np.concatenate([x.numpy() for x, _ in batches])
    assert len(rows) % 3 == 0
    self.seen.extend(np.split(rows[:, 0], len(rows) // 3))
    return trained + len(rows) // 3, states + 1


def _fit(losses, **options):
  learner: Any = _Scripted(losses)
  examples = np.array([[1, 5, 5], [2, 5, 5], [3, 5, 5]], np.int32)
  options = {
    'batch_size': 2,
    'max_epochs': 20,
    'epochs_per_validation': 1,
    'patience': 2,
    'min_drop': 0.1,
    'words': ('x', 0, 'client'),
    **options,
  }
  fitted = early_stopping.fit(
    learner,
    0,
    None,
    train=examples,
    validation=examples[:1],
    element_spec=_SPEC,
    **options,
  )
  return fitted, learner


@pytest.mark.parametrize(
  ('losses', 'epochs', 'best'),
  [
    # Progress, then two validations without any.
    ([3.0, 2.0, 1.0, 1.0, 1.2, 0.0], 4, 2),
    # It is worse from the start.
    ([1.0, 2.0, 3.0], 2, 0),
    # Drops below min_drop are not progress, but have the best weights.
    ([1.0, 0.95, 0.92], 2, 2),
    # But they add up relative to the last progress.
    ([1.0, 0.95, 0.85, 0.84, 0.83], 4, 4),
    # NaN is not progress.
    ([1.0, 0.5, math.nan, math.nan, 0.1], 3, 1),
    ([math.nan, math.nan], 1, 0),
  ],
)
def test_worked_out(losses, epochs, best):
  fitted, _ = _fit([*losses, losses[-1]])
  assert (fitted.epochs, fitted.best_epoch) == (epochs, best)
  assert fitted.trained == best
  if not math.isnan(losses[best]):
    assert fitted.validation_loss == losses[best]


def test_max_epochs_end_a_training_that_makes_progress():
  falling = [10.0 - epoch for epoch in range(10)]
  fitted, learner = _fit(falling, max_epochs=5)
  assert fitted.epochs == fitted.trained == 5
  assert len(learner.seen) == 5


def test_epochs_per_validation():
  # Only every third epoch is validated; the last interval is shorter.
  losses = [9.0, 0.0, 0.0, 5.0, 0.0, 0.0, 4.0, 3.0]
  fitted, learner = _fit(losses, epochs_per_validation=3, max_epochs=7)
  assert (fitted.epochs, fitted.best_epoch) == (7, 7)
  assert len(learner.seen) == 7


def test_each_epoch_has_all_examples_in_an_order_of_its_own():
  falling = [30.0 - epoch for epoch in range(21)]
  _, learner = _fit(falling)
  assert all(sorted(epoch) == [1, 2, 3] for epoch in learner.seen)
  assert len({tuple(epoch) for epoch in learner.seen}) > 1
  # The order does not depend on how epochs are grouped.
  _, grouped = _fit(falling, epochs_per_validation=4)
  np.testing.assert_array_equal(learner.seen, grouped.seen)
  _, other = _fit(falling, words=('x', 0, 'other'))
  assert not np.array_equal(learner.seen, other.seen)


@hypothesis.given(
  st.lists(st.floats(0, 2), min_size=1, max_size=30),
  st.integers(1, 4),
  st.floats(0, 0.5),
)
def test_against_brute_force(losses, patience, min_drop):
  stopping = early_stopping.EarlyStopping(patience=patience, min_drop=min_drop)
  counted: list[float] = []
  since = 0
  for position, loss in enumerate(losses):
    if not counted or loss < counted[-1] - min_drop:
      counted.append(loss)
      since = 0
    else:
      since += 1
    assert stopping.update(loss) == all(
      loss < before for before in losses[:position]
    )
    assert stopping.should_stop == (since >= patience)
    assert stopping.lowest == min(losses[: position + 1])
