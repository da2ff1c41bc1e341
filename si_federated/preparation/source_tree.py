"""Reads a tree of source files, each as a client with its comments."""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Callable, Iterator
from typing import Optional

import tqdm

from si_federated.preparation import comment_prose, comment_scanner
from si_federated.preparation.records import Counts, Record, interval
from si_federated.tasks import text_files
from si_federated.tasks.docstring_corpus import mining

_LANGUAGES = {
  'c': 'c h cc cpp cxx c++ hh hpp hxx',
  'java': 'java',
  'javascript': 'js jsx mjs cjs ts tsx mts cts',
  'go': 'go',
  'rust': 'rs',
  'python': 'py pyi',
  'rst': 'rst',
  'markdown': 'md markdown',
}
_BY_SUFFIX = {
  f'.{suffix}': language
  for language, suffixes in _LANGUAGES.items()
  for suffix in suffixes.split()
}
_DOCUMENTS = ('rst', 'markdown')
# Code with more characters a line on average is not written by people.
_LONGEST_MEAN_LINE = 200


class _UnusableError(Exception):
  """A file is left out; the message is the reason."""


def read_tree(
  path: str,
  counts: Counts,
  *,
  is_new: Callable[[str], bool],
  encoding: Optional[str] = None,
) -> Iterator[Record]:
  """Yields a record for each file whose comments have English sentences.

  Files come in the order of their paths. Links and hidden folders, such as
  `.git`, are skipped.

  Args:
    path: The folder.
    counts: Counts files; its `parts` become the counts of comments and of
      sentences.
    is_new: Returns whether a sentence has not been seen before.
    encoding: The encoding of files that are not UTF-8; None leaves them out.

  Raises:
    ValueError: The path is not a folder, or the encoding is unknown.
  """
  if not os.path.isdir(path):
    raise ValueError(
      f'{path} is not a folder; give an unpacked source tree by --input.'
    )
  if encoding is not None:
    encoding = text_files.known_encoding(encoding, '--encoding')
  comments, sentences = Counts('comment'), Counts('sentence')
  counts.parts += [comments, sentences]
  total = sum(1 for _ in _files(path))
  bar = tqdm.tqdm(
    _files(path, counts),
    total=total,
    desc=f'Reading {os.path.basename(os.path.abspath(path))}',
    unit='file',
    mininterval=interval(),
  )
  for name in bar:
    counts.rows += 1
    language = _BY_SUFFIX.get(os.path.splitext(name)[1].lower())
    try:
      if language is None:
        raise _UnusableError('of other kinds than --source=comments reads')
      text = _read(os.path.join(path, name), encoding)
      found = tuple(
        _kept(_sentences(text, language, name, comments), sentences, is_new)
      )
      if not found:
        raise _UnusableError('without sentences to keep')
    except _UnusableError as error:
      counts.leave_out(str(error), name)
      continue
    client = os.fsencode(name).decode('utf-8', 'backslashreplace')
    yield Record(client=client, text='', tags=language or '', sentences=found)


def _files(path: str, counts: Optional[Counts] = None) -> Iterator[str]:
  """Yields the paths of all files below a folder, relative to it, in order."""

  def unreadable(error: OSError) -> None:
    if counts:
      counts.rows += 1
      where = os.path.relpath(error.filename, path)
      counts.leave_out('folders that cannot be read', where)

  for folder, folders, files in os.walk(path, onerror=unreadable):
    # Links to folders count as files, and are left out for being links.
    links = [n for n in folders if os.path.islink(os.path.join(folder, n))]
    folders[:] = sorted(
      n for n in folders if n not in links and not n.startswith('.')
    )
    for name in sorted(files + links):
      yield os.path.relpath(os.path.join(folder, name), path)


def _read(path: str, encoding: Optional[str]) -> str:
  """Returns a file's text, with a newline character at each end of line."""
  try:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
      raise _UnusableError('symbolic links')
    if not stat.S_ISREG(status.st_mode):
      raise _UnusableError('not regular files')
    if status.st_size > mining.MAX_BYTES:
      raise _UnusableError(f'larger than {mining.MAX_BYTES / 1e6:g} MB')
    with open(path, 'rb') as file:
      content = file.read()
  except OSError as error:
    raise _UnusableError('that cannot be read') from error
  text = _decode(content, encoding)
  return text.replace('\r\n', '\n').replace('\r', '\n')


def _decode(content: bytes, encoding: Optional[str]) -> str:
  marked = text_files.detect(content[:4])
  text = None
  for name in (marked, encoding):
    if name and (text is None or '\0' in text):
      try:
        text = codecs.decode(content, name)
      except UnicodeError:
        continue
  if '\0' in (text if text is not None else content.decode('latin-1')):
    raise _UnusableError('binary')
  if text is None:
    raise _UnusableError(
      'in another encoding than ' + (encoding or 'UTF-8; name it by --encoding')
    )
  return text


def _sentences(
  text: str, language: str, name: str, comments: Counts
) -> Iterator[str]:
  if language in _DOCUMENTS:
    yield from comment_prose.of_document(
      text, is_markdown=language == 'markdown'
    )
    return
  if len(text) > _LONGEST_MEAN_LINE * (text.count('\n') + 10):
    raise _UnusableError('minified')
  number = 0
  for number, comment in enumerate(
    comment_scanner.find_comments(text, language), start=1
  ):
    comments.rows += 1
    found, reasons = comment_prose.sentences(comment)
    for reason in reasons:
      if found:
        comments.drop(reason, name, number, 'comment')
    if not found:
      comments.leave_out(reasons[0], name, number, 'comment')
    yield from found
  if not number:
    raise _UnusableError('without comments')


def _kept(
  found: Iterator[str], sentences: Counts, is_new: Callable[[str], bool]
) -> Iterator[str]:
  for one in found:
    sentences.rows += 1
    if is_new(one):
      yield one
    else:
      sentences.left_out['repeated'] += 1
