"""What sources of text have in common: records, and counts of what is odd."""

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
  """A text and who wrote it.

  Attributes:
    client: The user.
    text: The text, as HTML if `is_html`.
    is_html: Whether tags are to be removed.
    number: The number of a post, by which others name it; 0 for none.
    parent: The number of the post that title, tags and score are taken from, if
      it is another one; else 0.
    creation_date: As `2010-01-08 09:34:05 UTC`; may be empty.
    title: Its title.
    tags: Its tags, with bars between them.
    score: Its score.
    kind: `question`, `answer`, `comment`, or what the source says.
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
  """How many rows were read, and how many left out, for which reason.

  Attributes:
    rows: Rows read, good or bad.
    left_out: Rows by the reason for which they were left out.
    first: Of each reason the first row, as `FILE, row 7`.
  """

  def __init__(self):
    self.rows = 0
    self.left_out: collections.Counter[str] = collections.Counter()
    self.first: dict[str, str] = {}

  def leave_out(self, reason: str, path: str, row: int) -> None:
    """Counts a row that is left out.

    Args:
      reason: Why, as the end of "rows were left out: ".
      path: The file.
      row: The row's number in it, the first being 1.
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
  """A file ends early or is no archive of its kind."""


@contextlib.contextmanager
def open_source(path: str) -> Iterator[IO[bytes]]:
  """Opens a file, unpacked if it is `.xz` or `.gz`, with a progress bar.

  The bar counts the bytes of the file as it is on disk.

  Args:
    path: The file.

  Yields:
    The stream of its content.

  Raises:
    DamagedFileError: If it can't be unpacked.
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
  """Returns the least seconds between two states of a progress bar."""
  return 0.2 if sys.stderr.isatty() else 10.0


class _Counted(io.RawIOBase):
  """A raw stream that tells a progress bar what is read from it."""

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
