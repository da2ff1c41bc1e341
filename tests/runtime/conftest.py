"""Fixtures of the runtimes' tests."""

from __future__ import annotations

import pytest

from si_federated import runtime


@pytest.fixture(scope='module')
def contexts():
  """Gives TFF's own context and the local one."""
  return runtime.set_tff_context(), runtime.set_local_context(num_threads=2)
