"""Who opts out and how examples are shared out."""

from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from si_federated.personalization import client_hashing


def _opted_out(fraction, seed=0, count=4000):
  return [
    i
    for i in range(count)
    if client_hashing.has_opted_out(f'client {i}', seed=seed, fraction=fraction)
  ]


@pytest.mark.parametrize('fraction', [0.0, 0.1, 0.3, 1.0])
def test_the_share_that_opts_out(fraction):
  share = len(_opted_out(fraction)) / 4000
  # Five standard deviations of a binomial.
  assert abs(share - fraction) <= 5 * (fraction * (1 - fraction) / 4000) ** 0.5


def test_opting_out_depends_on_seed_and_name_alone():
  assert _opted_out(0.3) == _opted_out(0.3)
  assert _opted_out(0.3) != _opted_out(0.3, seed=1)
  # Clients that opt out stay out with a larger fraction.
  assert set(_opted_out(0.2)) < set(_opted_out(0.3))


def test_order_follows_the_names():
  names = [f'client {i}' for i in range(50)]
  order = [names[i] for i in client_hashing.order_clients(names, seed=3)]
  assert sorted(order) == sorted(names) and order != names
  turned = [
    names[::-1][i] for i in client_hashing.order_clients(names[::-1], seed=3)
  ]
  assert turned == order
  assert client_hashing.order_clients(
    names, seed=4
  ) != client_hashing.order_clients(names, seed=3)


@hypothesis.given(
  size=st.integers(0, 200),
  fractions=st.sampled_from([(0.5, 0.5), (0.6, 0.2, 0.2), (0.98, 0.01, 0.01)]),
)
def test_every_row_goes_to_one_part(size, fractions):
  parts = client_hashing.split_rows(size, fractions, 'x', 7)
  if size < len(fractions):
    assert parts is None
  if parts is None:
    return
  np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(size))
  assert all(len(part) for part in parts)
  for part, fraction in zip(parts[1:], fractions[1:]):
    assert abs(len(part) - fraction * size) <= 1


def test_splits_of_two_clients_differ():
  both: list[Any] = [
    client_hashing.split_rows(40, (0.5, 0.5), 'experts', 0, name)
    for name in ('a', 'a', 'b')
  ]
  first, again, other = (parts[0] for parts in both)
  np.testing.assert_array_equal(first, again)
  assert list(first) != list(other)
