"""Tests of the curves' numbers against hand-computed ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from si_federated import reporting
from si_federated.reporting import curves


@pytest.fixture
def group(make_run):
  """Returns a function that makes one group of runs that differ in seed."""

  def build(*kinds):
    runs = [
      reporting.read_run(
        make_run(f'run{seed}', model_seed=seed, total_rounds=30, **kind)
      )
      for seed, kind in enumerate(kinds)
    ]
    (only,) = reporting.compare(runs).groups
    return only

  return build


def test_mean_and_range_over_seeds(group):
  one = curves.curve(
    group(
      {'perplexities': (90, 50, 40)},
      {'perplexities': (96, 44, 10)},
      {'perplexities': (99, 47, 40)},
    ),
    'eval/perplexity',
  )
  np.testing.assert_allclose(one.x, [0, 10, 20])
  np.testing.assert_allclose(one.mean, [95, 47, 30])
  np.testing.assert_allclose(one.low, [90, 44, 10])
  np.testing.assert_allclose(one.high, [99, 50, 40])
  assert one.tails == ()
  assert one.end == (20, 30)
  assert (one.start, one.lowest, one.highest) == (95, 10, 99)


def test_a_longer_run_becomes_a_tail(group):
  one = curves.curve(
    group({'perplexities': (90, 50)}, {'perplexities': (92, 52, 30, 20)}),
    'eval/perplexity',
  )
  np.testing.assert_allclose(one.x, [0, 10])
  np.testing.assert_allclose(one.mean, [91, 51])
  ((x, y),) = one.tails
  np.testing.assert_allclose(x, [10, 20, 30])
  np.testing.assert_allclose(y, [52, 30, 20])
  assert one.end == (30, 20)
  assert one.lowest == 20


def test_against_time_each_round_is_at_the_mean_time_of_the_runs(group):
  one = curves.curve(
    group({'seconds': 2.0}, {'seconds': 4.0}),
    'eval/perplexity',
    against='time',
  )
  np.testing.assert_allclose(one.x, [0, 30, 60, 90])


def test_without_times_there_is_no_curve_against_time(make_run):
  folder = make_run('a')
  (folder / 'metrics.csv').write_text('round_num,eval/perplexity\n0,9\n1,8\n')
  (only,) = reporting.compare([reporting.read_run(folder)]).groups
  one = curves.curve(only, 'eval/perplexity', against='time')
  assert one.end is None
  assert curves.curve(only, 'eval/perplexity').end == (1, 8)


def test_smoothing_is_a_trailing_mean(make_run):
  folder = make_run('a')
  (folder / 'metrics.csv').write_text(
    'round_num,train/loss\n1,9\n2,6\n3,3\n4,0\n'
  )
  (only,) = reporting.compare([reporting.read_run(folder)]).groups
  one = curves.curve(only, 'train/loss', window=3)
  np.testing.assert_allclose(one.mean, [9, 7.5, 6, 3])


def test_diverged_run_is_cut_on_request(group):
  diverged = group({'perplexities': (50, 40, math.nan, 700)})
  one = curves.curve(diverged, 'eval/accuracy')
  np.testing.assert_allclose(one.x, [0, 10, 20, 30])
  assert one.diverged == 1
  one = curves.curve(diverged, 'eval/accuracy', until_divergence=True)
  np.testing.assert_allclose(one.x, [0, 10])
  np.testing.assert_allclose(
    curves.curve(diverged, 'eval/perplexity').mean, [50, 40, 700]
  )
