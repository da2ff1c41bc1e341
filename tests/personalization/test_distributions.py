"""Distributions over clients, by brute force."""

from __future__ import annotations

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from si_federated.personalization import distributions

_VALUES = st.lists(st.floats(-100, 100), min_size=1, max_size=45)


@hypothesis.given(_VALUES, st.sampled_from(['loss', 'accuracy']))
def test_describe(values, metric):
  described = distributions.describe(values, metric=metric)
  ordered = sorted(values)
  for percent in (10, 25, 50, 75, 90):
    place = percent / 100 * (len(values) - 1)
    low, high = math.floor(place), math.ceil(place)
    expected = ordered[low] + (place - low) * (ordered[high] - ordered[low])
    assert described['quantiles'][str(percent)] == pytest.approx(
      expected, abs=1e-9
    )
  assert described['mean'] == pytest.approx(sum(values) / len(values), abs=1e-9)
  count = max(1, math.ceil(len(values) / 10))
  worst = ordered[-count:] if metric == 'loss' else ordered[:count]
  assert described['worst_tenth'] == pytest.approx(sum(worst) / count, abs=1e-9)


def test_what_is_not_finite_is_counted_apart():
  described = distributions.describe([1.0, math.nan, 3.0], metric='loss')
  assert described['num_not_finite'] == 1
  assert described['mean'] == 2.0
  nothing = distributions.describe([math.nan], metric='loss')
  assert nothing['num_not_finite'] == 1 and math.isnan(nothing['mean'])
  with pytest.raises(ValueError, match='no clients'):
    distributions.describe([], metric='loss')


def test_compare_counts_who_got_worse():
  before = [
    {'loss': 1.0, 'accuracy': 0.5},
    {'loss': 1.0, 'accuracy': 0.5},
    {'loss': 1.0, 'accuracy': 0.5},
    {'loss': 1.0, 'accuracy': math.nan},
  ]
  after = [
    {'loss': 2.0, 'accuracy': 0.4},
    {'loss': 0.5, 'accuracy': 0.6},
    {'loss': math.nan, 'accuracy': 0.5},
    {'loss': 1.0, 'accuracy': math.nan},
  ]
  compared = distributions.compare(before, after)
  # One rose, one became NaN.
  assert compared['loss']['num_worse'] == 2
  assert compared['accuracy']['num_worse'] == 1
  change = compared['loss']['change']
  assert change['quantiles']['50'] == 0.0
  assert change['worst_tenth'] == 1.0
  assert compared['accuracy']['change']['worst_tenth'] == pytest.approx(-0.1)
  np.testing.assert_allclose(
    compared['accuracy']['after']['mean'], (0.4 + 0.6 + 0.5) / 3
  )
