"""A few of the kills that `make soak` does by the hundred."""

from __future__ import annotations

import pytest

from tests import soak


@pytest.mark.slow
@pytest.mark.parametrize('recipe', list(soak.RECIPES))
def test_killed_at_random_moments_nothing_is_lost(recipe, tmp_path):
  counts = soak.soak(recipe, tmp_path, rounds=40, kills=5, seed=1)
  assert sum(counts.values()) >= 3
