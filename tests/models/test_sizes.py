"""Tests of sizes by name."""

from __future__ import annotations

from typing import Any, Dict

import numpy as np
import pytest

from si_federated.models import sizes

DEFAULTS = {'width': 8, 'depth': 2, 'heads': None}
PUBLISHED = {'small': {'width': 16, 'depth': 3}, 'large': {'width': 32}}


def _resolve(size=None, **given):
  return sizes.resolve(
    size,
    given={**dict.fromkeys(DEFAULTS), **given},
    defaults=DEFAULTS,
    published=PUBLISHED,
  )


@pytest.mark.parametrize(
  ('size', 'given', 'expected'),
  [
    (None, {}, (8, 2, None)),
    (None, {'width': 5, 'heads': 4}, (5, 2, 4)),
    (None, {'width': np.int64(5), 'depth': 3.0}, (5, 3, None)),
    ('small', {}, (16, 3, None)),
    ('small', {'heads': 4}, (16, 3, 4)),
    ('small', {'width': 16}, (16, 3, None)),
    ('large', {}, (32, 2, None)),
    ('large', {'depth': 7}, (32, 7, None)),
  ],
)
def test_given_before_published_before_default(size, given, expected):
  resolved = _resolve(size, **given)
  assert list(resolved) == list(DEFAULTS)
  assert tuple(resolved.values()) == expected
  assert all(type(v) in (int, type(None)) for v in resolved.values())


@pytest.mark.parametrize(
  ('size', 'given', 'message'),
  [
    ('tiny', {}, "size must be one of small, large, but it is 'tiny'"),
    ('small', {'width': 8}, "size='small' sets width=16, but width=8"),
    ('small', {'depth': 2}, "size='small' sets depth=3, but depth=2"),
    (None, {'width': 0}, 'width must be a positive whole number'),
    ('small', {'heads': 1.5}, 'heads must be a positive whole number'),
    (None, {'width': 'wide'}, "positive whole number, but it is 'wide'"),
    (None, {'width': True}, 'positive whole number, but it is True'),
    (None, {'width': float('nan')}, 'positive whole number, but it is nan'),
    (None, {'width': float('inf')}, 'positive whole number, but it is inf'),
  ],
)
def test_contradictions_and_bad_values_are_refused(size, given, message):
  with pytest.raises(ValueError, match=message):
    _resolve(size, **given)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'vocab_size': 0}, 'vocab_size must be a positive'),
    ({'num_layers': -1}, 'num_layers must be a positive'),
    ({'dropout': 1.0}, 'dropout must be at least 0 and below 1'),
    ({'dropout': -0.1}, 'dropout must be at least 0 and below 1'),
    ({'dropout': float('nan')}, 'dropout must be at least 0 and below 1'),
  ],
)
def test_common_options_out_of_range_are_refused(options, message):
  good: Dict[str, Any] = {'vocab_size': 10, 'num_layers': 1, 'dropout': 0.5}
  sizes.check_common(**good)
  with pytest.raises(ValueError, match=message):
    sizes.check_common(**{**good, **options})
