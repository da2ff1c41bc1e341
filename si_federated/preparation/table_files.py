"""Reads tables of texts and users, as JSON lines or CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Optional, TypeVar

from si_federated.preparation import dates
from si_federated.preparation.records import Counts, Record, progress
from si_federated.tasks import table_rows, text_files

_Value = TypeVar('_Value')
_NO_DATE = 'not a date such as 2018-01-01 or 2018-01-01T10:00:00+01:00'


def read_table(
  path: str,
  counts: Counts,
  *,
  kind: str,
  text: str,
  client: str,
  is_html: bool,
  encoding: Optional[str] = None,
) -> Iterator[Record]:
  """Yields a record for each row that has a text and a user.

  Args:
    path: The file.
    counts: Counts all rows, those left out, and optional values left out.
    kind: `jsonl`, an object per line; or `csv`, whose first row names the
      columns.
    text: The column (or key) with the text.
    client: The column with the user's name.
    is_html: Whether texts have tags.
    encoding: See `text_files.open_text`.

  Raises:
    ValueError: If the file is damaged, in another encoding or without these
      columns.
  """
  is_csv = kind == 'csv'
  with (
    progress(path) as stream,
    text_files.open_text(
      path,
      encoding=encoding,
      option='--encoding',
      newline='' if is_csv else '\n',
      stream=stream,
    ) as file,
  ):
    try:
      for row in (
        table_rows.csv_rows(file, path, (text, client))
        if is_csv
        else table_rows.json_rows(file, path)
      ):
        counts.rows += row.num_lines
        if row.problem:
          for _ in range(row.num_lines):
            counts.leave_out(row.problem, path, row.line, 'line')
          continue
        record = _record(row, path, counts, text, client, is_html)
        if record is not None:
          yield record
    except table_rows.MissingColumnsError as error:
      flags = {text: '--text_column', client: '--client_column'}
      options = ' and '.join(flags[name] for name in error.missing)
      raise ValueError(f'{error}: name yours by {options}.') from error


def _record(
  row: table_rows.Row,
  path: str,
  counts: Counts,
  text: str,
  client: str,
  is_html: bool,
) -> Optional[Record]:
  """Returns the record of a row; None if the row is left out."""
  values = row.values
  place = (path, row.line, 'line')
  try:
    body = table_rows.text(values.get(text))
  except table_rows.OddValueError:
    counts.leave_out(f'without a text in {text!r}', *place)
    return None
  try:
    user = table_rows.name(values.get(client))
  except table_rows.OddValueError:
    user = ''
  if not user:
    counts.leave_out(f'without a user in {client!r}', *place)
    return None

  def optional(read: Callable[[Any], _Value], column: str, what: str):
    value = values.get(column)
    return counts.optional(read, value, f'{column}, which is {what}', place)

  name = table_rows.name
  number = 'not a 64-bit integer'
  return Record(
    client=user,
    text=body,
    is_html=is_html,
    creation_date=optional(dates.utc, 'creation_date', _NO_DATE) or '',
    title=optional(name, 'title', 'not text') or '',
    tags=optional(_tags, 'tags', 'neither text nor a list of texts') or '',
    score=optional(table_rows.whole_number, 'score', number) or 0,
    kind=optional(name, 'type', 'not text') or '',
    row=row.line,
  )


def _tags(value: Any) -> str:
  if not isinstance(value, list):
    return table_rows.name(value)
  return '|'.join(
    table_rows.name(tag) for tag in value if not table_rows.is_missing(tag)
  )
