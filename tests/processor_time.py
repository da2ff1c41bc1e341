"""Prints the processor time of the heaviest tests, in core-seconds.

  .venv/bin/python -m pytest -p tests.processor_time -m 'not slow' tests/models

This includes children of this process that have ended; a fixture's set-up
counts for the first test that uses it. Unlike wall time, it hardly depends on
what else the machine does. Don't combine it with `-n`: workers don't print.
"""

from __future__ import annotations

import resource
from typing import Any

_HEAVIEST = 30
_seconds: dict[str, float] = {}


def _total() -> float:
  used = [
    resource.getrusage(who)
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  ]
  return sum(each.ru_utime + each.ru_stime for each in used)


def _add(name: str) -> None:
  new = _total() - sum(_seconds.values())
  _seconds[name] = _seconds.get(name, 0.0) + new


def pytest_collection_finish() -> None:
  """Counts the start and all imports."""
  _add('(start and collection)')


def pytest_runtest_logreport(report: Any) -> None:
  """Counts a set-up, a call or a tear-down."""
  _add(report.nodeid)


def pytest_terminal_summary(terminalreporter: Any) -> None:
  """Prints the table."""
  _add('(end)')
  terminalreporter.section('processor time, core-seconds')
  heaviest = sorted(_seconds, key=lambda name: -_seconds[name])
  for name in heaviest[:_HEAVIEST]:
    terminalreporter.write_line(f'{_seconds[name]:7.1f}  {name}')
  terminalreporter.write_line(f'{sum(_seconds.values()):7.1f}  in all')
