"""SIGTERM and Ctrl-C as one interrupt of a running loop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupts:
  """The signals that have arrived.

  Attributes:
    arrived: Whether one has arrived. Its KeyboardInterrupt can surface as
      another error: TensorFlow converts exceptions raised in its callbacks.
  """

  def __init__(self, deferred: bool):
    self.arrived = False
    self._deferred = deferred

  def raise_deferred(self) -> None:
    """Raises KeyboardInterrupt if a deferred signal has arrived."""
    if self.arrived:
      raise KeyboardInterrupt

  def handle(self, unused_number: int, unused_frame: Any) -> None:
    """Handles a signal; the second one interrupts at once."""
    waits = self._deferred and not self.arrived
    self.arrived = True
    if not waits:
      raise KeyboardInterrupt


@contextlib.contextmanager
def as_interrupts(*, deferred: bool = False) -> Iterator[Interrupts]:
  """Turns SIGTERM into the KeyboardInterrupt of Ctrl-C.

  It has no effect in threads other than the main one, which get no signals.

  Args:
    deferred: Whether the first signal waits for the next `raise_deferred`.

  Yields:
    The signals that have arrived.
  """
  interrupts = Interrupts(deferred)
  if threading.current_thread() is not threading.main_thread():
    yield interrupts
    return
  previous = {
    number: signal.signal(number, interrupts.handle)
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  try:
    yield interrupts
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
