"""The separation of b-min-separation sampling."""

from __future__ import annotations

from typing import Any

import pytest

from si_federated.privacy import separation_choice

_CASE: dict[str, Any] = {'num_clients': 64, 'clients_per_round': 1}


@pytest.mark.slow
def test_wider_bands_are_taken_while_errors_decrease():
  # With the usual samples, the rms errors of 8, 16, 32 and 48 rounds are 9.07,
  # 8.10, 7.80 and 7.94. Few samples do not tell the second from the third.
  assert separation_choice.choose_separation(
    256, target_epsilon=2.0, delta=1e-5, groups=8, **_CASE
  ) in (16, 32)


def test_one_group_is_poisson_sampling():
  assert (
    separation_choice.choose_separation(
      16, target_epsilon=0.5, delta=1e-3, groups=1, **_CASE
    )
    == 1
  )


def test_the_record_is_that_of_clients_that_pause():
  record = separation_choice.separated_record(16, separation=4, **_CASE)
  assert record is not None and record.amplification is not None
  assert record.strategy.bands == record.contract.min_separation == 4
  assert not record.contract.cyclic
  # One of 64 clients a round: of the 61 that do not pause, on average.
  assert record.amplification.kind == 'b_min_sep'
  assert record.amplification.probability == pytest.approx(1 / 61)
