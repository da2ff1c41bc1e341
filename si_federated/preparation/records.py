"""Records of text, and counts of rows that are left out."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gzip
import io
import lzma
import os
import sys
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO, cast

import tqdm


@dataclasses.dataclass(frozen=True)
class Record:
  """A text and its author.

  Attributes:
    client: The user.
    text: The text, as HTML if `is_html`.
    is_html: Whether to remove tags.
    number: The number by which other posts refer to this one; 0 for none.
    parent: The number of the post that title, tags and score come from; 0 for
      this one.
    creation_date: Such as `2010-01-08 09:34:05 UTC`; may be empty.
    title: The title.
    tags: The tags, separated by bars.
    score: The score.
    kind: `question`, `answer`, `comment`, or the source's own word.
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


class Counts:
  """Counts of the rows that were read and of those left out, by reason.

  Attributes:
    rows: The number of rows read, good or bad.
    left_out: The number of rows left out for each reason.
    first: The first row of each reason, such as `FILE, row 7`.
  """

  def __init__(self):
    self.rows = 0
    self.left_out: collections.Counter[str] = collections.Counter()
    self.first: dict[str, str] = {}

  def leave_out(self, reason: str, path: str, row: int) -> None:
    """Counts a row that is left out.

    Args:
      reason: The end of the sentence "rows were left out: ".
      path: The file.
      row: The row's number in the file, from 1.
    """
    self.left_out[reason] += 1
    self.first.setdefault(reason, f'{os.path.basename(path)}, row {row}')

  def sentences(self) -> list[str]:
    """Returns a sentence for each reason."""
    return [
      f'{number:,} of {self.rows:,} rows were left out: {reason} (the first: '
      f'{self.first[reason]}).'
      for reason, number in self.left_out.most_common()
    ]


class DamagedFileError(ValueError):
  """A file that ends early or is not an archive of its kind."""


@contextlib.contextmanager
def open_source(path: str) -> Iterator[IO[bytes]]:
  """Opens a file, unpacked if it is `.xz` or `.gz`, with a progress bar.

  The bar counts bytes on disk.

  Args:
    path: The file.

  Yields:
    A stream of the content.

  Raises:
    DamagedFileError: If unpacking fails.
  """
  size = os.path.getsize(path)
  with (
    open(path, 'rb') as raw,
    tqdm.tqdm(
      total=size,
      desc=f'Reading {os.path.basename(path)}',
      unit='B',
      unit_scale=True,
      mininterval=interval(),
    ) as bar,
  ):
    counted = _Counted(raw, bar)
    stream: BinaryIO = io.BufferedReader(counted, 1 << 20)
    try:
      if path.endswith('.xz'):
        with lzma.open(stream) as unpacked:
          yield unpacked
      elif path.endswith('.gz'):
        with gzip.open(stream) as unpacked:
          yield cast(IO[bytes], unpacked)
      else:
        yield stream
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
      raise DamagedFileError(
        f'{path} is damaged or incomplete ({error}); fetch it again.'
      ) from error


def interval() -> float:
  """Returns the minimum number of seconds between updates of a progress bar."""
  return 0.2 if sys.stderr.isatty() else 10.0


class _Counted(io.RawIOBase):
  """A raw stream that reports to a progress bar what is read from it."""

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
