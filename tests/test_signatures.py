"""Tests of functions that accept the options of others."""

from __future__ import annotations

import inspect

import pytest

from si_federated import signatures


def _base(model, scale=1, *, units: int = 8, dropout: float = 0.0): ...


def _build(**options):
  """Builds something."""
  return options


def test_options_of_a_function():
  options = signatures.options_of(_base, without=('units',), dropout=0.5)
  assert [(option.name, option.default) for option in options] == [
    ('dropout', 0.5)
  ]


def test_defaults_name_and_errors_of_a_wrapped_function():
  build = signatures.wrap(_build, _build, signatures.options_of(_base))
  assert build(units=3) == {'units': 3, 'dropout': 0.0}
  assert [*inspect.signature(build).parameters] == ['units', 'dropout']
  assert build.__doc__ == 'Builds something.'
  with pytest.raises(TypeError, match=r"^_build\(\) .*'unit'$"):
    build(unit=3)
