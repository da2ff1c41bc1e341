"""Reads the tables that users give, CSV and JSON lines, row by row."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import threading
from typing import IO, Any, Iterator, Mapping, Optional, Sequence

# The limit of one CSV field, in characters.
_MOST = 1 << 26
# csv has one limit for the whole process: it is set only while a row is read.
_LIMIT_LOCK = threading.Lock()
# Such as 12.0, which pandas makes of whole numbers next to an empty cell.
_WHOLE = re.compile(r'([+-]?\d+)(?:\.0*)?')
_WHOLE_NAME = re.compile(r'(0|-?[1-9]\d*)\.0+')
# More digits are no number that anyone means, and take Python too long.
_MOST_DIGITS = 400
_INT64 = 1 << 63


class MissingColumnsError(ValueError):
  """A table without the columns that are needed.

  Attributes:
    missing: The names of these columns.
    known: The names of those that it has.
  """

  def __init__(self, path: str, missing: Sequence[str], known: Sequence[str]):
    super().__init__(
      f'{path} has no column {" and no column ".join(missing)}; it has '
      f'{", ".join(known) or "none"}'
    )
    self.missing = missing
    self.known = known


class OddValueError(ValueError):
  """A value that is neither missing nor of the kind that is needed."""


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a table.

  Attributes:
    line: The line of the file on which it begins, from 1.
    values: The values by column: strings for CSV, JSON's values otherwise.
    problem: Why the row has no values, such as "not a JSON object"; empty for a
      good row.
    details: The problem of this row as a clause, such as "it has 2 fields".
    num_lines: How many lines are lost with a row that never ends; 1 otherwise.
  """

  line: int
  values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  problem: str = ''
  details: str = ''
  num_lines: int = 1

  @property
  def clause(self) -> str:
    """The problem of this row as a clause."""
    return self.details or f'it is {self.problem}'


def csv_rows(file: IO[str], path: str, columns: Sequence[str]) -> Iterator[Row]:
  """Yields the rows of comma-separated values after the header; no blank ones.

  Args:
    file: The text, opened with `newline=''`.
    path: The file, for messages.
    columns: The columns that must be there.

  Raises:
    MissingColumnsError: If the header lacks one of them.
    ValueError: If the header has one of them twice or cannot be read.
  """
  lines = _Lines(file)
  reader = csv.reader(lines)
  try:
    header = _next(reader) or []
  except csv.Error as error:
    raise ValueError(f'{path} is not a CSV file ({error}).') from error
  missing = [name for name in columns if name not in header]
  if missing:
    raise MissingColumnsError(path, missing, header)
  for name in columns:
    if header.count(name) > 1:
      raise ValueError(
        f'{path} has {header.count(name)} columns {name!r}; rename all but the '
        'one to be read.'
      )
  while True:
    line = lines.number + 1
    try:
      cells = _next(reader)
    except csv.Error as error:
      yield Row(
        line, problem='not a row of CSV', details=f'it is not CSV ({error})'
      )
      continue
    if cells is None:
      return
    if not cells:
      continue
    if lines.ended:
      # csv asks for more lines than there are only within quotes.
      yield Row(
        line,
        problem='lines of a quotation that is never closed',
        num_lines=lines.number - line + 1,
        details='it is not CSV (no mark closes the quotation that it opens)',
      )
    elif len(cells) != len(header):
      yield Row(
        line,
        problem='with more or fewer fields than columns',
        details=f'it has {len(cells)} fields, the header {len(header)}',
      )
    else:
      yield Row(line, dict(zip(header, cells)))


class _Lines:
  """Counts the lines that are read."""

  def __init__(self, file: IO[str]):
    self._file = file
    self.number = 0
    self.ended = False

  def __iter__(self) -> _Lines:
    return self

  def __next__(self) -> str:
    line = self._file.readline()
    if not line:
      self.ended = True
      raise StopIteration
    self.number += 1
    return line


def _next(reader: Iterator[list[str]]) -> Optional[list[str]]:
  with _LIMIT_LOCK:
    before = csv.field_size_limit(_MOST)
    try:
      return next(reader, None)
    finally:
      csv.field_size_limit(before)


def json_rows(file: IO[str], path: str) -> Iterator[Row]:
  """Yields the objects of JSON lines, without blank lines.

  Args:
    file: The text, opened with newline='\\n'.
    path: The file, for messages.

  Raises:
    ValueError: If the file is one JSON array over several lines.
  """
  first = True
  for number, line in enumerate(file, start=1):
    if not line.strip():
      continue
    details = ''
    try:
      values = json.loads(line, parse_int=_parse_int)
    except (ValueError, RecursionError) as error:
      values, details = None, f'it is not JSON ({error})'
    is_array = isinstance(values, list) and values[:1] and values[0]
    if first and (
      isinstance(is_array, dict) or (details and line.lstrip()[0] == '[')
    ):
      raise ValueError(
        f'{path} is one JSON array; write an object per line instead (pandas: '
        "to_json(orient='records', lines=True))."
      )
    first = False
    if isinstance(values, dict):
      yield Row(number, values)
    else:
      yield Row(number, problem='not a JSON object', details=details)


def _parse_int(digits: str) -> Any:
  # Python refuses the whole line for an integer of 4,300 digits.
  return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def is_missing(value: Any) -> bool:
  """Tells null, NaN, blank text and a column that is not there (None)."""
  return (
    value is None
    or (isinstance(value, float) and math.isnan(value))
    or (isinstance(value, str) and not value.strip())
  )


def text(value: Any) -> str:
  """Returns a text as it is; half a surrogate pair becomes a question mark.

  Raises:
    OddValueError: If it is neither text nor a whole number.
  """
  if isinstance(value, int) and not isinstance(value, bool):
    value = str(value)
  if not isinstance(value, str):
    raise OddValueError('not text')
  return value.encode(errors='replace').decode()


def name(value: Any, *, booleans: bool = False) -> str:
  """Returns the name of a user, a class or a tag.

  Whole numbers are whole, however they are written: 12, 12.0 and '12.0' are
  the name 12. Space around a name is no part of it.

  Args:
    value: Text or a number.
    booleans: Whether true and false are names.

  Raises:
    OddValueError: If it is something else.
  """
  if booleans and isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, float) and math.isfinite(value):
    return str(int(value)) if value.is_integer() else repr(value)
  found = text(value).strip()
  match = _WHOLE_NAME.fullmatch(found)
  return match.group(1) if match else found


def whole_number(value: Any) -> int:
  """Returns a whole number of 64 bits, also if written 3.0; 0 if missing.

  Raises:
    OddValueError: If it is something else.
  """
  if is_missing(value):
    return 0
  if isinstance(value, str):
    value = value.strip()
    match = _WHOLE.fullmatch(value)
    if match and len(value) <= _MOST_DIGITS:
      value = int(match.group(1))
    elif value.lower() == 'nan':
      return 0
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  if not isinstance(value, int) or isinstance(value, bool):
    raise OddValueError('not a whole number')
  if not -_INT64 <= value < _INT64:
    raise OddValueError('beyond 64 bits')
  return value
