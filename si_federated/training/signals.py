"""SIGTERM and Ctrl-C as one interrupt of a running loop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def as_interrupts(*, deferred: bool = False) -> Iterator[Callable[[], None]]:
  """Turns SIGTERM into the KeyboardInterrupt of Ctrl-C.

  In threads other than the main one, which no signal interrupts, it does
  nothing.

  Args:
    deferred: Whether both signals wait for the next call of the yielded
      function; a second signal interrupts at once.

  Yields:
    A function that raises KeyboardInterrupt if a deferred signal has arrived.
  """
  arrived = False

  def check() -> None:
    if arrived:
      raise KeyboardInterrupt

  def handle(unused_number: int, unused_frame: Any) -> None:
    nonlocal arrived
    if arrived or not deferred:
      raise KeyboardInterrupt
    arrived = True

  if threading.current_thread() is not threading.main_thread():
    yield check
    return
  numbers = [signal.SIGTERM, *([signal.SIGINT] if deferred else [])]
  previous = {number: signal.signal(number, handle) for number in numbers}
  try:
    yield check
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
