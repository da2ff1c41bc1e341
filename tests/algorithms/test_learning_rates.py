"""Learning rates that follow the round."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import LEARNING_RATE_SCHEDULES, OPTIMIZERS
from si_federated.privacy import workloads


def _rates(name, rounds, **options):
  schedule = LEARNING_RATE_SCHEDULES[name](
    learning_rate=2.0, total_rounds=rounds, **options
  )
  return [float(schedule(tf.constant(i))) for i in range(rounds)]


def test_constant_with_a_warm_up():
  assert _rates('constant', 6, warmup_rounds=4) == pytest.approx(
    [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
  )
  assert _rates('constant', 3) == [2.0, 2.0, 2.0]


def test_linear():
  assert _rates('linear', 5) == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0])
  assert _rates(
    'linear', 7, warmup_rounds=2, final_fraction=0.5
  ) == pytest.approx([1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0])


def test_cosine():
  half = 2.0 * (1 + np.cos(np.pi / 4)) / 2
  assert _rates('cosine', 5) == pytest.approx(
    [2.0, half, 1.0, 2.0 - half, 0.0], abs=1e-6
  )


def test_exponential():
  assert _rates('exponential', 3, final_fraction=0.01) == pytest.approx(
    [2.0, 0.2, 0.02]
  )


def test_cool_down():
  assert _rates('cool_down', 8) == pytest.approx([2.0] * 6 + [1.05, 0.1])
  assert _rates(
    'cool_down', 6, warmup_rounds=2, fraction=0.5, final_fraction=0.4
  ) == pytest.approx([1.0, 2.0, 2.0, 1.6, 1.2, 0.8])
  assert _rates('cool_down', 3, fraction=0) == [2.0] * 3


def test_cool_down_is_the_schedule_of_the_matrices():
  rates = workloads.cool_down(21, fraction=0.25)
  assert _rates('cool_down', 21) == pytest.approx((2.0 * rates).tolist())


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('constant', {'warmup_rounds': -1}, 'at least 0'),
    ('constant', {'warmup_rounds': 1.5}, 'whole number'),
    ('linear', {'final_fraction': 2}, 'from 0 to 1'),
    ('cool_down', {'fraction': 1.5}, 'from 0 to 1'),
    ('cool_down', {'fraction': 1, 'warmup_rounds': 1}, 'shorten one'),
    ('exponential', {'final_fraction': 0}, 'never reaches 0'),
  ],
)
def test_options_out_of_range_are_refused(name, options, message):
  with pytest.raises(ValueError, match=message):
    LEARNING_RATE_SCHEDULES[name](learning_rate=1.0, total_rounds=5, **options)


@pytest.mark.parametrize('name', list(OPTIMIZERS))
def test_every_optimizer_takes_a_schedule(name):
  schedule = LEARNING_RATE_SCHEDULES['linear'](
    learning_rate=1.0, total_rounds=3
  )
  optimizer = tff.learning.optimizers.schedule_learning_rate(
    OPTIMIZERS[name](learning_rate=1.0, gradient_clip_norm=1.0), schedule
  )
  weights = (tf.constant([1.0, 2.0]),)
  state = optimizer.initialize(
    tf.nest.map_structure(tf.TensorSpec.from_tensor, weights)
  )
  moved = []
  for _ in range(3):
    before = weights
    state, weights = optimizer.next(state, weights, (tf.constant([1.0, 0.5]),))
    moved.append(float(tf.reduce_sum(tf.abs(before[0] - weights[0]))))
  assert moved[0] > 0
  assert moved[2] == 0


def test_gradients_are_clipped_to_a_global_norm():
  optimizer = OPTIMIZERS['sgd'](learning_rate=1.0, gradient_clip_norm=1.0)
  weights = (tf.zeros([1]), tf.zeros([2]))
  specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, weights)

  def step(first, second):
    _, after = optimizer.next(
      optimizer.initialize(specs),
      weights,
      (tf.constant([first]), tf.constant([second, 0.0])),
    )
    return [w.numpy().tolist() for w in after]

  assert step(3.0, 4.0) == [[pytest.approx(-0.6)], [pytest.approx(-0.8), 0.0]]
  assert step(0.3, 0.4) == [[pytest.approx(-0.3)], [pytest.approx(-0.4), 0.0]]


def test_a_clip_norm_that_is_not_positive_raises():
  with pytest.raises(ValueError, match='gradient_clip_norm must be above 0'):
    OPTIMIZERS['sgd'](learning_rate=1.0, gradient_clip_norm=0.0)
