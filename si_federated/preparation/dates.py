"""Converts dates to the format of TFF's Stack Overflow data."""

from __future__ import annotations

import datetime
import re

_DATE = re.compile(
  r'(\d{4}-\d\d-\d\d)'
  r'(?:[T ](\d\d:\d\d)(?:(:\d\d)(?:\.(\d*?)0*)?)?'
  r'(?:Z| ?UTC| ?([+-]\d\d)(?::?(\d\d))?)?)?'
)


def utc(date: object) -> str:
  """Returns a date in universal time, in the format of TFF's data.

  Args:
    date: A day, optionally with a time of day and a zone, such as `2018-01-01`,
      `2018-01-01T10:00:00.5Z` or `2018-01-01 10:00:00+01:00`. Without a time it
      is midnight, without a zone universal time.

  >>> utc('2008-08-10T08:28:52.100')
  '2008-08-10 08:28:52.1 UTC'
  >>> utc('2018-01-01T00:30:00+01:00')
  '2017-12-31 23:30:00 UTC'

  Raises:
    ValueError: If it is not a date.
  """
  found = _DATE.fullmatch(date.strip()) if isinstance(date, str) else None
  if not found:
    raise ValueError(f'{date!r} is not a date such as 2018-01-01T10:00:00.')
  day, minutes, seconds, fraction, hours_off, minutes_off = found.groups()
  # Also refuses days and times that do not exist.
  time = datetime.datetime.fromisoformat(
    f'{day}T{minutes or "00:00"}{seconds or ":00"}'
  )
  if hours_off:
    sign = -1 if hours_off[0] == '-' else 1
    try:
      time -= sign * datetime.timedelta(
        hours=int(hours_off[1:]), minutes=int(minutes_off or 0)
      )
    except OverflowError as error:
      raise ValueError(f'{date!r} is out of range.') from error
  fraction = f'.{fraction}' if fraction else ''
  # Unlike strftime, with four digits for every year.
  return f'{time.isoformat(sep=" ")}{fraction} UTC'
