"""Tests that a signal is not lost where Python discards exceptions."""

from __future__ import annotations

import signal
import threading

import pytest

from si_federated.runtime import chunks, interrupts

pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


class _Interrupting:
  def __init__(self, number=signal.SIGINT):
    self._number = number

  def __del__(self):
    signal.raise_signal(self._number)


class _Actors:
  """Do each chunk at once."""

  count = 1
  free = True

  def __init__(self):
    self.done = []
    self.forgotten = False

  def submit(self, chunk, data):
    self.done.append((chunk, data))

  def wait(self):
    return self.done.pop(0)

  def forget(self):
    self.forgotten = True


def test_it_is_raised_at_the_next_check():
  with pytest.raises(KeyboardInterrupt), interrupts.kept():
    _Interrupting()
    interrupts.check()
    pytest.fail('should be interrupted')


def test_it_is_raised_at_the_end():
  with pytest.raises(KeyboardInterrupt), interrupts.kept():
    _Interrupting()


def test_it_is_raised_once():
  with pytest.raises(KeyboardInterrupt), interrupts.kept():
    signal.raise_signal(signal.SIGINT)
  interrupts.check()
  with interrupts.kept():
    interrupts.check()


def test_handlers_are_restored():
  def handle(number, frame):
    raise SystemExit(3)

  before = signal.signal(signal.SIGTERM, handle)
  try:
    with pytest.raises(SystemExit), interrupts.kept():
      _Interrupting(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is handle
  finally:
    signal.signal(signal.SIGTERM, before)


def test_handlers_that_do_not_raise_interrupt_nothing():
  calls = []
  before = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
  try:
    with interrupts.kept():
      _Interrupting(signal.SIGTERM)
      interrupts.check()
    assert calls == [1]
  finally:
    signal.signal(signal.SIGTERM, before)


def test_other_threads_are_left_alone():
  results = []

  def work():
    with interrupts.kept():
      interrupts.check()
    results.append('done')

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert results == ['done']


def test_a_cohort_ends_at_the_client_that_lost_it():
  actors = _Actors()
  drawn = []

  def draw(client):
    drawn.append(client)
    if client == 3:
      _Interrupting()
    return client

  with pytest.raises(KeyboardInterrupt), interrupts.kept():
    list(
      chunks.run(
        range(9),
        draw=draw,
        keep=lambda data: data,
        submit=actors.submit,
        actors=actors,
      )
    )
  assert drawn == [0, 1, 2, 3]
  assert actors.forgotten
