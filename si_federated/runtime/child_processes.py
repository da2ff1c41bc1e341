"""Silences a library, and ends the processes that it started."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import sys
import time
import uuid
from collections.abc import Iterator

_VARIABLE = 'SI_FEDERATED_STARTED_BY'
_END_TIMEOUT_SECS = 5.0


@contextlib.contextmanager
def silence() -> Iterator[None]:
  """Discards the output of this process, including that of native code."""
  sys.stdout.flush()
  sys.stderr.flush()
  kept = [(stream, os.dup(stream)) for stream in (1, 2)]
  nowhere = os.open(os.devnull, os.O_WRONLY)
  try:
    for stream, _ in kept:
      os.dup2(nowhere, stream)
    yield
  finally:
    for stream, copy in kept:
      os.dup2(copy, stream)
      os.close(copy)
    os.close(nowhere)


class MarkedProcesses:
  """Tracks processes by a mark in the environment that they inherit."""

  def __init__(self):
    self._mark = f'{os.getpid()}.{uuid.uuid4().hex}'

  @contextlib.contextmanager
  def mark(self) -> Iterator[None]:
    """Marks the processes started in this scope, and their descendants."""
    os.environ[_VARIABLE] = self._mark
    try:
      yield
    finally:
      del os.environ[_VARIABLE]

  def living(self) -> list[int]:
    """Returns the ids of the marked processes; none without /proc."""
    entry = f'{_VARIABLE}={self._mark}'.encode()
    found = []
    for folder in pathlib.Path('/proc').glob('[0-9]*'):
      # A process may have ended, or belong to another user. Zombies have an
      # empty environment.
      with contextlib.suppress(OSError):
        if entry in (folder / 'environ').read_bytes().split(b'\0'):
          found.append(int(folder.name))
    return found

  def end(self) -> None:
    """Kills the marked processes and waits until they have ended."""
    deadline = time.monotonic() + _END_TIMEOUT_SECS
    while (living := self.living()) and time.monotonic() < deadline:
      for pid in living:
        with contextlib.suppress(ProcessLookupError):
          os.kill(pid, signal.SIGKILL)
      time.sleep(0.02)
