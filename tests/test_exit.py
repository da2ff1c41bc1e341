"""Tests that Python exits quietly, whichever rooms were imported."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize('room', ['aggregators', 'privacy'])
def test_nothing_is_printed_at_exit(room):
  # Frozen objects die last, when their modules are gone; pytest freezes them.
  code = f'import gc, si_federated.{room}; gc.freeze()'
  done = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', code],
    capture_output=True,
    text=True,
    check=True,
  )
  assert (done.stdout, done.stderr) == ('', '')
