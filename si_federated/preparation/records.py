"""Records of text, and counts of rows that are left out."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Optional, TypeVar

import tqdm

from si_federated.tasks import table_rows

_Value = TypeVar('_Value')


@dataclasses.dataclass(frozen=True)
class Record:
  """A text and its author.

  Attributes:
    client: The user; empty for a post that only provides others' titles.
    text: The text, as HTML if `is_html`.
    is_html: Whether to remove tags.
    number: The number with which other posts refer to this one; 0 for none.
    parent: The number of the post with the title, tags and score; 0 for this
      one.
    creation_date: A date such as `2010-01-08 09:34:05 UTC`, or empty.
    title: The title.
    tags: The tags, separated by bars.
    score: The score.
    kind: `question`, `answer`, `comment`, or the source's own word.
    row: The number of its row or line in the file.
    sentences: The sentences of the text, as words separated by single spaces;
      None if the text has yet to be split.
  """

  client: str
  text: str
  is_html: bool = False
  number: int = 0
  parent: int = 0
  creation_date: str = ''
  title: str = ''
  tags: str = ''
  score: int = 0
  kind: str = ''
  row: int = 0
  sentences: Optional[tuple[str, ...]] = None


class Counts:
  """Counts rows, and by reason the rows and values that are left out.

  Attributes:
    noun: The word for a row in messages.
    rows: The number of rows read, good or bad.
    left_out: The number of rows left out for each reason.
    dropped: The number of optional values left out for each reason, without
      their rows.
    first: The first row for each reason, such as `FILE, row 7`.
    parts: Counts of the parts of rows, such as the comments of files.
  """

  def __init__(self, noun: str = 'row'):
    self.noun = noun
    self.rows = 0
    self.left_out: collections.Counter[str] = collections.Counter()
    self.dropped: collections.Counter[str] = collections.Counter()
    self.first: dict[str, str] = {}
    self.parts: list[Counts] = []

  def leave_out(
    self, reason: str, path: str, row: int = 0, unit: str = 'row'
  ) -> None:
    """Counts a row that is left out.

    Args:
      reason: The end of the sentence "rows were left out: ".
      path: The file.
      row: The row's number in the file, from 1; 0 for the file itself.
      unit: The unit of the number, such as `row` or `line`.
    """
    self.left_out[reason] += 1
    place = f'{os.path.basename(path)}, {unit} {row}' if row else path
    self.first.setdefault(reason, place)

  def drop(self, reason: str, path: str, row: int, unit: str = 'row') -> None:
    """Counts an optional value that is left out of a used row.

    Args:
      reason: The end of the sentence "rows are used without ".
      path: See `leave_out`.
      row: See `leave_out`.
      unit: See `leave_out`.
    """
    self.dropped[reason] += 1
    self.first.setdefault(reason, f'{os.path.basename(path)}, {unit} {row}')

  def optional(
    self,
    read: Callable[[Any], _Value],
    value: Any,
    what: str,
    place: tuple[str, int, str],
  ) -> Optional[_Value]:
    """Reads an optional value, and counts it if it is invalid.

    Args:
      read: Returns the value, or raises ValueError.
      value: The raw value.
      what: Its name and fault, as in "rows are used without their WHAT".
      place: The file, the row and the unit, as in `drop`.

    Returns:
      The value; None if it is missing or invalid.
    """
    if table_rows.is_missing(value):
      return None
    try:
      return read(value)
    except ValueError:
      self.drop(f'their {what}', *place)
      return None

  def as_json(self) -> dict[str, Any]:
    """Returns the counts as `preparation.json` has them."""
    found: dict[str, Any] = {
      'rows': self.rows,
      'left_out': dict(self.left_out),
      'dropped': dict(self.dropped),
      'first_left_out': self.first,
    }
    if self.parts:
      found['parts'] = {f'{part.noun}s': part.as_json() for part in self.parts}
    return found

  def sentences(self) -> list[str]:
    """Returns a sentence for each reason, rows that are left out first."""
    found: list[str] = []
    for counter, what in (
      (self.left_out, 'were left out: '),
      (self.dropped, 'are used without '),
    ):
      for reason, number in counter.most_common():
        first = self.first.get(reason)
        where = f' (the first: {first})' if first else ''
        found.append(
          f'{number:,} of {self.rows:,} {self.noun}s {what}{reason}{where}.'
        )
    for part in self.parts:
      found += part.sentences()
    return found


@contextlib.contextmanager
def progress(path: str) -> Iterator[BinaryIO]:
  """Opens a file, with a progress bar that counts bytes on disk.

  Args:
    path: The file.

  Yields:
    The file, for the functions of `si_federated.tasks.text_files`.
  """
  with (
    open(path, 'rb') as raw,
    tqdm.tqdm(
      total=os.path.getsize(path),
      desc=f'Reading {os.path.basename(path)}',
      unit='B',
      unit_scale=True,
      mininterval=interval(),
    ) as bar,
  ):
    yield io.BufferedReader(_Counted(raw, bar), 1 << 20)


def interval() -> float:
  """Returns the minimum number of seconds between updates of a progress bar."""
  return 0.2 if sys.stderr.isatty() else 10.0


class _Counted(io.RawIOBase):
  """A raw stream that reports the bytes read to a progress bar."""

  def __init__(self, raw: BinaryIO, bar: tqdm.tqdm):
    super().__init__()
    self._raw = raw
    self._bar = bar

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    data = self._raw.read(len(buffer))
    buffer[: len(data)] = data
    self._bar.update(len(data))
    return len(data)
