"""Reads users' tables (CSV and JSON lines) row by row."""

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
# The csv module has one limit for the whole process, so it is changed only
# while reading a row.
_LIMIT_LOCK = threading.Lock()
# A number such as 12.0: pandas writes integers like this if a cell is empty.
_WHOLE = re.compile(r'([+-]?\d+)(?:\.0*)?')
_WHOLE_NAME = re.compile(r'(0|-?[1-9]\d*)\.0+')
# Longer numbers are not meaningful, and Python takes too long to parse them.
_MOST_DIGITS = 400
_INT64 = 1 << 63


class MissingColumnsError(ValueError):
  """A table lacks required columns.

  Attributes:
    missing: The names of the missing columns.
    known: The names of its columns.
  """

  def __init__(self, path: str, missing: Sequence[str], known: Sequence[str]):
    super().__init__(
      f'{path} has no column {" and no column ".join(missing)}; it has '
      f'{", ".join(known) or "none"}'
    )
    self.missing = missing
    self.known = known


class OddValueError(ValueError):
  """A value that is not missing, but of the wrong kind."""


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a table.

  Attributes:
    line: The number, from 1, of the line on which it begins.
    values: The values by column: strings for CSV, JSON's values otherwise.
    problem: Why the row has no values, such as "not a JSON object"; empty for a
      good row.
    details: The problem of this row as a clause, such as "it has 2 fields".
    num_lines: The number of lines that an unclosed quotation includes; 1 for
      other rows.
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
  """Yields the rows of comma-separated values, except header and blank rows.

  Args:
    file: The text, opened with `newline=''`.
    path: The file, for messages.
    columns: The columns that the header must have.

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
        details='it is not CSV (it opens a quotation that is never closed)',
      )
    elif len(cells) != len(header):
      yield Row(
        line,
        problem='with more or fewer fields than columns',
        details=f'it has {len(cells)} fields, but the header {len(header)}',
      )
    else:
      yield Row(line, dict(zip(header, cells)))


class _Lines:
  """Counts lines as they are read."""

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
  """Yields the objects of JSON lines, except blank lines.

  Args:
    file: The text, opened with newline='\\n'.
    path: The file, for messages.

  Raises:
    ValueError: If the file is one JSON array over several lines.
  """
  first = True
  for number, line in enumerate(file, start=1):
    # Marks inside a file come from concatenated files.
    line = line.lstrip('\ufeff')
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
  # Python rejects the whole line if it contains an integer of 4,300 digits.
  return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def is_missing(value: Any) -> bool:
  """Returns whether a value is null, NaN, blank text or absent (None)."""
  return (
    value is None
    or (isinstance(value, float) and math.isnan(value))
    or (isinstance(value, str) and not value.strip())
  )


def text(value: Any) -> str:
  """Returns text unchanged, except that unpaired surrogates become `?`.

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

  Integers have one name, however they are written: 12, 12.0 and '12.0' are the
  name 12. White space around a name is removed.

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
  """Returns a 64-bit integer, even if written as 3.0; 0 if missing.

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
