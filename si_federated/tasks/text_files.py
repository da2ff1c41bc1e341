"""Opens users' text files, plain or compressed, in a known encoding."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import lzma
import zlib
from typing import IO, BinaryIO, Iterator, Optional, cast

_CHUNK = 1 << 20
# UTF-32 comes first because its mark begins with that of UTF-16.
_MARKS = (
  (codecs.BOM_UTF8, 'utf-8-sig'),
  (codecs.BOM_UTF32_LE, 'utf-32'),
  (codecs.BOM_UTF32_BE, 'utf-32'),
  (codecs.BOM_UTF16_LE, 'utf-16'),
  (codecs.BOM_UTF16_BE, 'utf-16'),
)
_UTF8 = 'utf-8-sig'


@contextlib.contextmanager
def open_binary(
  path: str, stream: Optional[BinaryIO] = None
) -> Iterator[IO[bytes]]:
  """Opens a file and unpacks it if it is `.xz` or `.gz`.

  Args:
    path: The file.
    stream: The file, if it is open already; it stays open.

  Yields:
    A stream of the content.

  Raises:
    ValueError: If the file cannot be read or unpacked.
  """
  with contextlib.ExitStack() as stack:
    try:
      if stream is None:
        stream = stack.enter_context(open(path, 'rb'))
      if path.endswith('.xz'):
        yield stack.enter_context(lzma.open(stream))
      elif path.endswith('.gz'):
        yield cast(IO[bytes], stack.enter_context(gzip.open(stream)))
      else:
        yield stream
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
      raise ValueError(
        f'{path} cannot be read: it is damaged or incomplete ({error}); fetch '
        'it again.'
      ) from error
    except OSError as error:
      raise ValueError(f'{path} cannot be read ({error}).') from error


@contextlib.contextmanager
def open_text(
  path: str,
  *,
  encoding: Optional[str] = None,
  option: Optional[str] = None,
  newline: Optional[str] = None,
  stream: Optional[BinaryIO] = None,
) -> Iterator[IO[str]]:
  """Opens a text file strictly: it never replaces undecodable bytes.

  Without `encoding`, the byte order mark at the beginning gives the encoding
  (UTF-8, UTF-16 or UTF-32); without a mark it is UTF-8. Leading marks, even
  several, are not part of the text.

  Args:
    path: The file; `.xz` and `.gz` are unpacked.
    encoding: The encoding, by a name that Python knows.
    option: The option that sets `encoding`, for messages; None if none does.
    newline: See `open`.
    stream: The file, if it is open already; it stays open.

  Yields:
    The text.

  Raises:
    ValueError: If the file cannot be read or is in another encoding; the
      message names the first wrong byte and a remedy.
  """
  if encoding is not None:
    encoding = known_encoding(encoding, option)
  with open_binary(path, stream) as content:
    buffered = io.BufferedReader(cast(io.RawIOBase, content), _CHUNK)
    marked = _encoding(path, buffered.peek(4)[:4], encoding, option)
    for mark, name in _MARKS:
      # Some programs put a mark before text that has one.
      while name == marked and buffered.peek(8).startswith(mark * 2):
        buffered.read(len(mark))
    text = io.TextIOWrapper(buffered, encoding=marked, newline=newline)
    try:
      yield text
    except UnicodeDecodeError as error:
      position, line, reason = _first_wrong(path, marked)
      name = 'UTF-8' if marked == _UTF8 else marked
      raise ValueError(
        f'{path} is not {name} text ({reason} at position {position}, line '
        f'{line}); {_advice(path, "latin1", option)}.'
      ) from error
    finally:
      # Closed by their openers.
      with contextlib.suppress(ValueError):
        text.detach()
        buffered.detach()


def _encoding(
  path: str, head: bytes, given: Optional[str], option: Optional[str]
) -> str:
  """Returns the encoding of a file that begins with four bytes.

  Raises:
    ValueError: If the mark contradicts the given encoding, or there is neither
      and the file is not UTF-8.
  """
  marked = detect(head)
  if given is not None:
    if not any(head.startswith(mark) for mark, _ in _MARKS):
      return given
    # The order of bytes is in the mark.
    if codecs.lookup(given).name.startswith(marked.removesuffix('-sig')):
      return marked
    name = marked.removesuffix('-sig').upper()
    raise ValueError(
      f'{path} begins with the byte order mark of {name}, but '
      f'{option or "encoding"}={given}; leave that out.'
    )
  if marked == _UTF8 and b'\0' in head:
    order = 'le' if head[1:2] == b'\0' else 'be'
    bits = 32 if head.count(0) > 2 else 16
    raise ValueError(
      f'{path} is not UTF-8 text: there is a zero byte at position '
      f'{head.index(0)}, as in UTF-{bits} without a byte order mark; '
      f'{_advice(path, f"utf-{bits}{order}", option)}.'
    )
  return marked


def known_encoding(encoding: str, option: Optional[str] = None) -> str:
  """Returns an encoding's name; that of UTF-8 allows a leading mark.

  Args:
    encoding: The name that was given.
    option: The option that gave it, for the message.

  Raises:
    ValueError: If Python does not know it, or it is not for text, such as hex.
  """
  try:
    # The lookup of `TextIOWrapper`, which refuses codecs of bytes.
    io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return _UTF8 if codecs.lookup(encoding).name == 'utf-8' else encoding
  except (LookupError, ValueError):
    raise ValueError(
      f'{option or "encoding"}={encoding} is not a text encoding that Python '
      'knows; give one such as latin-1, cp1252 or utf-16.'
    ) from None


def detect(head: bytes) -> str:
  """Returns the encoding of a byte order mark, UTF-8 without one."""
  for mark, encoding in _MARKS:
    if head.startswith(mark):
      return encoding
  return _UTF8


def _advice(path: str, encoding: str, option: Optional[str]) -> str:
  by_option = f', or give {option}={encoding}' if option else ''
  return (
    f'if it is {encoding}, run `iconv -f {encoding} -t utf8 {path} > '
    f'NEW`{by_option}'
  )


def _first_wrong(path: str, encoding: str) -> tuple[int, int, str]:
  """Finds the first byte that is invalid in an encoding.

  Returns:
    Its position in the unpacked text, from 0; its line, from 1; and a clause
    about the error.
  """
  decoder = codecs.getincrementaldecoder(encoding)()
  consumed, line = 0, 1
  with open_binary(path) as content:
    while True:
      chunk = content.read(_CHUNK)
      try:
        line += decoder.decode(chunk, final=not chunk).count('\n')
      except UnicodeDecodeError as error:
        # The decoder keeps the bytes of an incomplete character.
        begin = consumed + len(chunk) - len(error.object)
        valid = error.object[: error.start]
        line += valid.decode(encoding, 'replace').count('\n')
        wrong = error.object[error.start]
        return begin + error.start, line, f'byte 0x{wrong:02x}, {error.reason},'
      except UnicodeError as error:
        return consumed, line, str(error)
      consumed += len(chunk)
      if not chunk:
        return consumed, line, 'its end is missing'
