"""Keeps Ctrl-C and SIGTERM from being lost in a round.

Python drops an exception that a signal's handler raises in a destructor, and
TensorFlow's eager iterators run some at every step: a program in a round would
go on as if nobody had pressed Ctrl-C.
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
  """Raises what a signal's handler raised, if that was lost.

  Raises:
    BaseException: Such as `KeyboardInterrupt`.
  """
  if _raised and threading.current_thread() is threading.main_thread():
    raise _raised.pop()


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Remembers what signals' handlers raise, for `check`, which ends it too.

  In threads other than the main one, which no signal interrupts, it does
  nothing.
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
