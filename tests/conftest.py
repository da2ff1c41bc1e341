"""What all tests share."""

from __future__ import annotations

import pytest

from si_federated import runtime


@pytest.fixture(autouse=True, scope='session')
def _local_runtime():
  """Keeps TFF from its default: a worker that outlives the tests.

  It would hold their output's pipe, and whoever reads that would wait forever.
  """
  runtime.set_local_context()
