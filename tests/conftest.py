"""What all tests share."""

from __future__ import annotations

import os
import signal

import pytest

# Else a package that TFF imports sets it to a lower one, which the binaries
# under test would inherit.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from si_federated import runtime

# A shell's background jobs ignore Ctrl-C, and so would the programs under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope='session')
def _local_runtime():
  """Keeps TFF from its default: a worker that outlives the tests.

  It would hold their output's pipe, and whoever reads that would wait forever.
  """
  runtime.set_local_context()
