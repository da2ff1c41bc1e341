"""Reads tables of texts and users: JSON lines and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from si_federated.preparation import dump
from si_federated.preparation.records import Counts, Record, open_source

# The limit of one CSV field.
_MOST_BYTES = 1 << 26


def read_jsonl(
  path: str, counts: Counts, *, text: str, client: str, is_html: bool
) -> Iterator[Record]:
  """Yields a record for each line, a JSON object.

  Args:
    path: The file.
    counts: Counts all rows and those left out.
    text: The entry with the text.
    client: The entry with the user's name.
    is_html: Whether texts have tags.

  Raises:
    ValueError: If the file is damaged.
  """
  with open_source(path) as stream:
    for row, line in enumerate(stream, start=1):
      if not line.strip():
        continue
      counts.rows += 1
      try:
        values = json.loads(line)
        if not isinstance(values, dict):
          raise ValueError('not an object')
      except (ValueError, RecursionError):
        counts.leave_out('not a JSON object', path, row)
        continue
      yield from _records(values, path, row, counts, text, client, is_html)


def read_csv(
  path: str, counts: Counts, *, text: str, client: str, is_html: bool
) -> Iterator[Record]:
  """Yields a record for each row after the first, which names the columns.

  See `read_jsonl`.

  Raises:
    ValueError: If a column is missing.
  """
  csv.field_size_limit(_MOST_BYTES)
  with open_source(path) as stream:
    lines = io.TextIOWrapper(
      stream, encoding='utf-8-sig', errors='replace', newline=''
    )
    rows = csv.reader(lines)
    try:
      header = next(rows, [])
    except csv.Error as error:
      raise ValueError(f'{path} is not a CSV file ({error}).') from error
    for flag, column in (('text', text), ('client', client)):
      if column not in header:
        raise ValueError(
          f'{path} has no column {column!r} but {", ".join(header) or "none"}; '
          f'name the right one by --{flag}_column.'
        )
    row = 1
    while True:
      row += 1
      try:
        cells = next(rows)
      except StopIteration:
        return
      except csv.Error:
        counts.rows += 1
        counts.leave_out('not a row of CSV', path, row)
        continue
      if not cells:
        continue
      counts.rows += 1
      if len(cells) != len(header):
        counts.leave_out('with more or fewer fields than columns', path, row)
        continue
      values = dict(zip(header, cells))
      yield from _records(values, path, row, counts, text, client, is_html)


def _records(
  values: Mapping[str, Any],
  path: str,
  row: int,
  counts: Counts,
  text: str,
  client: str,
  is_html: bool,
) -> Iterator[Record]:
  """Yields the record of a row, unless the row is left out."""
  if not isinstance(values.get(text), str):
    counts.leave_out(f'without a text in {text!r}', path, row)
    return
  user = values.get(client)
  if not isinstance(user, (str, int)) or not str(user).strip():
    counts.leave_out(f'without a user in {client!r}', path, row)
    return
  try:
    date = values.get('creation_date') or ''
    tags = values.get('tags') or ''
    record = Record(
      client=str(user).strip(),
      text=values[text],
      is_html=is_html,
      creation_date=dump.utc(date) if date else '',
      title=str(values.get('title') or ''),
      tags='|'.join(map(str, tags)) if isinstance(tags, list) else str(tags),
      score=int(values.get('score') or 0),
      kind=str(values.get('type') or ''),
    )
  except (TypeError, ValueError):
    counts.leave_out('with a garbled creation_date or score', path, row)
    return
  yield record
