"""Keeps Ctrl-C and SIGTERM from being lost in a round.

Python discards an exception that a signal handler raises inside a destructor,
and TensorFlow's eager iterators run destructors at every step, so that a
program could miss Ctrl-C in the middle of a round. This module remembers what
the program's own handlers raise.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_raised: list[BaseException] = []


def check() -> None:
  """Raises the exception of a signal handler if Python discarded it.

  Raises:
    BaseException: The handler's exception, such as `KeyboardInterrupt`.
  """
  if _raised and threading.current_thread() is threading.main_thread():
    raise _raised.pop()


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Remembers exceptions of signal handlers, and raises them at the end.

  It does nothing outside the main thread: signals interrupt no other thread.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = {number: signal.getsignal(number) for number in _SIGNALS}

  def handle(number: int, frame: Any) -> None:
    handler: Any = before[signal.Signals(number)]
    try:
      handler(number, frame)
    except BaseException as error:
      _raised.append(error)
      raise

  changed = [number for number in _SIGNALS if callable(before[number])]
  _raised.clear()
  try:
    for number in changed:
      signal.signal(number, handle)
    yield
    check()
  finally:
    for number in changed:
      signal.signal(number, before[number])
    _raised.clear()
