"""Reads dumps of Stack Exchange sites: Posts.xml and Comments.xml.

Each line has one row of attributes; the schema is on
https://archive.org/details/stackexchange.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import IO
from xml.etree import ElementTree

from si_federated.preparation import dates
from si_federated.preparation.records import Counts, Record, progress
from si_federated.tasks import table_rows, text_files

_CHUNK = 1 << 20
# Posts have at most 30,000 characters; longer rows mean another kind of file.
_MOST_BYTES = 1 << 26
_ROW = b'<row'
_KINDS = {'1': 'question', '2': 'answer'}
_ENDINGS = ('', '.xz')
_BAD_XML = 'not well-formed XML'
_NO_USER = 'without a user'
_HEAD = 1 << 10
_DECLARED = re.compile(
  rb'(?:\xef\xbb\xbf)?<\?xml[^>]*?encoding=["\']([A-Za-z0-9._-]+)'
)
# Markup, whose content up to its end contains no other markup.
_ENDS = {b'<!--': b'-->', b'<![CDATA[': b']]>', b'<?': b'?>', _ROW: b'<'}
_MARKUP = re.compile(rb'<!--|<!\[CDATA\[|<\?|<row(?=[\s/>])')
_REFERENCE = re.compile(rb'&#(?:x([0-9a-fA-F]+)|([0-9]+));')
_FORBIDDEN = re.compile(rb'[\x00-\x08\x0b\x0c\x0e-\x1f]|\xef\xbf[\xbe\xbf]')


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
  posts = _find(folder, 'Posts') if os.path.isdir(path) else path
  if posts is None:
    raise ValueError(
      f'{path} has no Posts.xml or Posts.xml.xz; give the folder of a Stack '
      'Exchange dump.'
    )
  return posts, _find(folder, 'Comments')


def _find(folder: str, stem: str) -> str | None:
  for ending in _ENDINGS:
    path = os.path.join(folder, f'{stem}.xml{ending}')
    if os.path.isfile(path):
      return path
  return None


def read_posts(path: str, counts: Counts) -> Iterator[Record]:
  """Yields the questions and answers of a file of posts.

  Args:
    path: The file.
    counts: Counts all rows, those left out, and optional values left out.

  Raises:
    ValueError: If the file has no rows or is damaged.
  """
  for row, values in _rows(path, counts):
    kind = _KINDS.get(values.get('PostTypeId', ''))
    if kind is None:
      # For example, tag wikis and elections.
      counts.leave_out('neither a question nor an answer', path, row)
      continue
    record = _record(
      path, row, values, counts, user='OwnerUserId', text='Body',
      number='Id', parent='ParentId' if kind == 'answer' else '',
      is_html=True, kind=kind,
    )  # fmt: skip
    if record is not None:
      yield record


def read_comments(path: str, counts: Counts) -> Iterator[Record]:
  """Yields the comments of a file; see `read_posts`."""
  for row, values in _rows(path, counts):
    record = _record(
      path, row, values, counts, user='UserId', text='Text', number='',
      parent='PostId', is_html=False, kind='comment',
    )  # fmt: skip
    if record is not None and record.client:
      yield record


def _record(
  path: str,
  row: int,
  values: Mapping[str, str],
  counts: Counts,
  *,
  user: str,
  text: str,
  number: str,
  parent: str,
  is_html: bool,
  kind: str,
) -> Record | None:
  """Returns the record of a row, without invalid optional values.

  A row that is left out is still a record, without a client, if others take
  their title from it.
  """
  place = (path, row, 'row')

  def whole(name: str) -> int:
    read = table_rows.whole_number
    what = f'{name}, which is not a 64-bit integer'
    return counts.optional(read, values.get(name), what, place) or 0

  def needed(name: str) -> int:
    # Without it the text has no question.
    if name and table_rows.is_missing(values.get(name)):
      counts.drop(f'their {name}, which is missing', *place)
    return whole(name) if name else 0

  client = ''
  if text not in values:
    counts.leave_out(f'without {text}', path, row)
  else:
    with contextlib.suppress(ValueError):
      client = str(table_rows.whole_number(values.get(user)) or '')
    if client in ('', '-1'):
      client = ''
      counts.leave_out(_NO_USER, path, row)
  if not client and not number:
    return None
  what = 'CreationDate, which is not a date'
  date = counts.optional(dates.utc, values.get('CreationDate'), what, place)
  if client and table_rows.is_missing(values.get('CreationDate')):
    counts.drop('their CreationDate, which is missing', *place)
  return Record(
    client=client,
    text=values.get(text, ''),
    is_html=is_html,
    number=needed(number),
    parent=needed(parent),
    creation_date=date or '',
    title=values.get('Title', ''),
    tags=_tags(values.get('Tags', '')),
    score=whole('Score'),
    kind=kind,
    row=row,
  )


def _tags(text: str) -> str:
  """Converts `<a><b>`, or `|a|b|` in newer dumps, to `a|b`."""
  return '|'.join(tag for tag in re.split(r'[<>|]+', text) if tag)


def _rows(path: str, counts: Counts) -> Iterator[tuple[int, Mapping[str, str]]]:
  """Yields the number and the attributes of every row that can be parsed."""
  found = 0
  with (
    progress(path) as file,
    text_files.open_binary(path, file) as stream,
  ):
    head = stream.read(_HEAD)
    encoding = text_files.detect(head)
    if not encoding.startswith('utf-8'):
      raise ValueError(
        f'{path} is {encoding.upper()} text; convert it with '
        f'`iconv -f {encoding} -t utf8 {path} > NEW`.'
      )
    declared = _DECLARED.match(head)
    encoding = declared[1].decode() if declared else 'utf-8'
    try:
      text_files.known_encoding(encoding)
    except ValueError:
      raise ValueError(
        f'{path} declares the encoding {encoding}, which Python does not know; '
        'convert it to UTF-8 by iconv, and correct its first line.'
      ) from None
    for text in _split(head, stream, path):
      found += 1
      counts.rows += 1
      # Parsed one by one, so that a garbled row does not affect others.
      attributes = _parse(text, encoding)
      if attributes is None:
        plain = _without_forbidden(text)
        attributes = None if plain == text else _parse(plain, encoding)
        if attributes is None:
          counts.leave_out(_BAD_XML, path, found)
          continue
        counts.drop('characters that XML forbids', path, found)
      yield found, attributes
  if not found:
    raise ValueError(
      f'{path} has no rows of a Stack Exchange dump (<row ... />); give its '
      'Posts.xml.'
    )


def _parse(text: bytes, encoding: str) -> Mapping[str, str] | None:
  """Returns the attributes of one element; None if it is not well formed."""
  try:
    # Expat knows few encodings, Python all.
    return ElementTree.fromstring(text.decode(encoding)).attrib
  except (ElementTree.ParseError, ValueError):
    return None


def _without_forbidden(text: bytes) -> bytes:
  """Removes the characters that XML 1.0 forbids in any form (section 2.2)."""

  def reference(found: re.Match) -> bytes:
    digits, decimal = found.groups()
    try:
      number = int(digits, 16) if digits else int(decimal)
    except ValueError:  # More digits than Python accepts.
      return b''
    is_allowed = (
      number in (0x9, 0xA, 0xD)
      or 0x20 <= number <= 0xD7FF
      or 0xE000 <= number <= 0xFFFD
      or 0x10000 <= number <= 0x10FFFF
    )
    return found[0] if is_allowed else b''

  return _FORBIDDEN.sub(b'', _REFERENCE.sub(reference, text))


def _split(head: bytes, stream: IO[bytes], path: str) -> Iterator[bytes]:
  """Yields the text of each row outside comments.

  A row ends where the next markup begins, since values contain no `<`.

  Args:
    head: The bytes already read.
    stream: The rest.
    path: The file, for messages.
  """
  text, start, ended = head, 0, False
  while True:
    found = _MARKUP.search(text, start)
    if found is not None:
      end = text.find(_ENDS[found[0]], found.end())
      if end < 0 and not ended and len(text) - found.start() > _MOST_BYTES:
        raise ValueError(
          f'{path} has a row or a comment of more than {_MOST_BYTES >> 20} MB; '
          'it is not a dump of a Stack Exchange site.'
        )
      if found[0] == _ROW and (end >= 0 or ended):
        start = end if end >= 0 else len(text)
        yield _row_text(text[found.start() : start])
        continue
      if end >= 0 or ended:
        # A comment that never ends is not a comment: the rows in it count.
        start = found.end() if end < 0 else end + len(_ENDS[found[0]])
        continue
      start = found.start()
    elif ended:
      return
    else:
      # The text may end in the middle of the next mark.
      start = max(start, len(text) - len(b'<![CDATA['))
    chunk = stream.read(_CHUNK)
    text, start, ended = text[start:] + chunk, 0, not chunk


def _row_text(piece: bytes) -> bytes:
  """Closes the start tag of an element that has a separate end tag."""
  piece = piece.rstrip()
  is_open = piece.endswith(b'>') and not piece.endswith(b'/>')
  return piece[:-1] + b'/>' if is_open else piece
