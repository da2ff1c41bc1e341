"""Reads dumps of Stack Exchange sites: Posts.xml and Comments.xml.

Each line has one row of attributes; the schema is on
https://archive.org/details/stackexchange.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import IO
from xml.etree import ElementTree

from si_federated.preparation.records import Counts, Record, open_source

_CHUNK = 1 << 20
# Posts have at most 30,000 characters; longer rows mean another kind of file.
_MOST_BYTES = 1 << 26
_ROW = b'<row'
_KINDS = {'1': 'question', '2': 'answer'}
_DATE = re.compile(
  r'(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:(\.\d*?)0*)?(?:Z|\+00:00| UTC)?'
)
_ENDINGS = ('', '.xz')
_BAD_XML = 'not well-formed XML'
_NO_USER = 'without a user'
_BAD_VALUES = 'an attribute is missing or garbled'


def find_files(path: str) -> tuple[str, str | None]:
  """Finds the files of a dump.

  Args:
    path: The folder, or its file of posts, `.xml` or `.xml.xz`.

  Returns:
    The file of posts, and the file of comments in the same folder, if any.

  Raises:
    ValueError: If there is no file of posts.
  """
  if not os.path.exists(path):
    raise ValueError(
      f'There is no {path}; give the folder of a Stack Exchange dump, or its '
      'Posts.xml.'
    )
  folder = path if os.path.isdir(path) else os.path.dirname(path)
  posts = _beside(folder, 'Posts') if os.path.isdir(path) else path
  if posts is None:
    raise ValueError(
      f'{path} holds no Posts.xml or Posts.xml.xz; give the folder of a Stack '
      'Exchange dump.'
    )
  return posts, _beside(folder, 'Comments')


def _beside(folder: str, stem: str) -> str | None:
  for ending in _ENDINGS:
    path = os.path.join(folder, f'{stem}.xml{ending}')
    if os.path.isfile(path):
      return path
  return None


def read_posts(path: str, counts: Counts) -> Iterator[Record]:
  """Yields the questions and answers of a file of posts.

  Args:
    path: The file.
    counts: Counts all rows and those left out.

  Raises:
    ValueError: If the file has no rows or is damaged.
  """
  for row, values in _rows(path, counts):
    kind = _KINDS.get(values.get('PostTypeId', ''))
    if kind is None:
      # Such as tag wikis and elections.
      counts.leave_out('neither a question nor an answer', path, row)
      continue
    try:
      client = values.get('OwnerUserId', '')
      record = Record(
        client=str(int(client)) if client else '',
        text=values['Body'],
        is_html=True,
        number=int(values['Id']),
        parent=int(values['ParentId']) if kind == 'answer' else 0,
        creation_date=utc(values['CreationDate']),
        title=values.get('Title', ''),
        tags=_tags(values.get('Tags', '')),
        score=int(values.get('Score', '0')),
        kind=kind,
      )
    except (KeyError, ValueError):
      counts.leave_out(_BAD_VALUES, path, row)
      continue
    if record.client in ('', '-1'):
      # Still yielded: answers take their title from it.
      counts.leave_out(_NO_USER, path, row)
    yield record


def read_comments(path: str, counts: Counts) -> Iterator[Record]:
  """Yields the comments of a file; see `read_posts`."""
  for row, values in _rows(path, counts):
    try:
      client = values.get('UserId', '')
      record = Record(
        client=str(int(client)) if client else '',
        text=values['Text'],
        parent=int(values['PostId']),
        creation_date=utc(values['CreationDate']),
        score=int(values.get('Score', '0')),
        kind='comment',
      )
    except (KeyError, ValueError):
      counts.leave_out(_BAD_VALUES, path, row)
      continue
    if record.client in ('', '-1'):
      counts.leave_out(_NO_USER, path, row)
    else:
      yield record


def utc(date: str) -> str:
  """Returns a date in the format of TFF's Stack Overflow data.

  >>> utc('2008-08-10T08:28:52.100')
  '2008-08-10 08:28:52.1 UTC'

  Raises:
    ValueError: If it is not a date in universal time.
  """
  found = _DATE.fullmatch(date)
  if not found:
    raise ValueError(f'{date!r} is not a date such as 2008-08-10T08:28:52.100')
  day, time, fraction = found.groups()
  fraction = '' if fraction in (None, '.') else fraction
  return f'{day} {time}{fraction} UTC'


def _tags(text: str) -> str:
  """Converts `<a><b>`, or `|a|b|` in newer dumps, to `a|b`."""
  return '|'.join(tag for tag in re.split(r'[<>|]+', text) if tag)


def _rows(path: str, counts: Counts) -> Iterator[tuple[int, Mapping[str, str]]]:
  """Yields the number and the attributes of every row that can be parsed."""
  found = 0
  with open_source(path) as stream:
    for text in _split(stream, path):
      found += 1
      counts.rows += 1
      try:
        # Parsed separately, so that a garbled row costs no other.
        yield found, ElementTree.fromstring(text).attrib
      except (ElementTree.ParseError, ValueError, LookupError):
        counts.leave_out(_BAD_XML, path, found)
  if not found:
    raise ValueError(
      f'{path} has no rows of a Stack Exchange dump (<row ... />); give its '
      'Posts.xml.'
    )


def _split(stream: IO[bytes], path: str) -> Iterator[bytes]:
  """Yields the text of each row; `<` occurs nowhere else in such a file."""
  rest, begun = b'', False
  while chunk := stream.read(_CHUNK):
    *pieces, rest = (rest + chunk).split(_ROW)
    for piece in pieces:
      # The head of the file precedes the first row.
      if begun:
        yield _row_text(piece)
      begun = True
    if not begun:
      rest = rest[-len(_ROW) :]
    if len(rest) > _MOST_BYTES:
      raise ValueError(
        f'{path} has a row of more than {_MOST_BYTES >> 20} MB; it is not a '
        'dump of a Stack Exchange site.'
      )
  if begun:
    yield _row_text(rest)


def _row_text(piece: bytes) -> bytes:
  end = piece.rfind(b'/>')
  return _ROW + (piece[: end + 2] if end >= 0 else piece)
