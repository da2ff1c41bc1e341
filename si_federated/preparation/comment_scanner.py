"""Finds the comments of a source file without parsing its language."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Optional

# Each pattern matches comments, and tokens that may contain the marks of one.
# `line` is a comment up to the end of its line, `block` the beginning of a
# comment that ends at `*/`, `raw` the beginning of a string without escapes,
# which ends at `close` with the content of `mark`. All else is skipped, even
# escapes outside of strings, so that no position is scanned twice.
_ESCAPE = r'\\.'
_DOUBLE = r'"(?:[^"\\\n]|\\.)*"'
_SINGLE = r"'(?:[^'\\\n]|\\.)*'"
_LINE = r'(?P<line>//[^\n]*)'
_BLOCK = r'(?P<block>/\*)'
# A backslash at the end of a line continues a comment in C.
_C_LINE = r'(?P<line>//(?:[^\n\\]|\\.)*)'
# Digits may be grouped by apostrophes.
_C_NUMBER = r"\d(?:'?\w)*"
_C_RAW = r'\b(?:u8|[uUL])?R"(?P<mark>[^\s()\\"]{0,16})(?P<raw>\()'
_RUST_RAW = r'\bb?r(?P<mark>#*)(?P<raw>")'
_RUST_CHARACTER = r"'(?:[^'\\\n]|\\(?:u\{\w*\}|x\w\w|.))'"
_TEXT_BLOCK = r'"""(?:[^\\]|\\.)*?"""'


def _compile(*alternatives: str) -> re.Pattern[str]:
  return re.compile('|'.join(alternatives), re.DOTALL)


@dataclasses.dataclass(frozen=True)
class _Language:
  """How comments of a language begin, and how raw strings end."""

  pattern: re.Pattern[str]
  close: str = ''
  nested: bool = False


_C = _Language(
  _compile(_C_RAW, _DOUBLE, _SINGLE, _C_LINE, _BLOCK, _C_NUMBER, _ESCAPE),
  close='){}"',
)
_JAVA = _Language(
  _compile(_TEXT_BLOCK, _DOUBLE, _SINGLE, _LINE, _BLOCK, _ESCAPE)
)
_GO = _Language(
  _compile('(?P<mark>)(?P<raw>`)', _DOUBLE, _SINGLE, _LINE, _BLOCK, _ESCAPE),
  close='`{}',
)
_RUST = _Language(
  _compile(
    _RUST_RAW,
    r'"(?:[^"\\]|\\.)*"',
    _RUST_CHARACTER,
    _LINE,
    _BLOCK,
    _ESCAPE,
  ),
  close='"{}',
  nested=True,
)
_BLOCK_MARK = re.compile(r'/\*|\*/')
_FAMILIES = {'c': _C, 'java': _JAVA, 'go': _GO, 'rust': _RUST}
# A colon before slashes: a web address, as in the text of JSX.
_SCRIPT = _compile(
  _DOUBLE,
  _SINGLE,
  r'(?P<line>(?<!:)//[^\n]*)',
  _BLOCK,
  r'(?P<template>`)',
  r'(?P<slash>/)',
  r'(?P<brace>[{}])',
  _ESCAPE,
)
_TEMPLATE = re.compile(r'\\.|(?P<code>\$\{)|`', re.DOTALL)
_REGULAR_EXPRESSION = re.compile(
  r'/(?:[^/\\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+/'
)
# After a name, a number or a bracket a slash divides; otherwise it begins a
# regular expression.
_OPERAND = re.compile(r'[\w$)\]}]\s*\Z')
_KEYWORD = re.compile(
  r'\b(?:return|typeof|case|in|of|void|delete|do|else)\s*\Z'
)
_PYTHON = _compile(
  r'(?P<string>(?:\b[rRuUbB]{1,2})?(?P<quote>"""|\'\'\')'
  r'(?P<body>(?:[^\\]|\\.)*?)(?P=quote))',
  _DOUBLE,
  _SINGLE,
  r'(?P<line>#[^\n]*)',
  _ESCAPE,
)


@dataclasses.dataclass(frozen=True)
class Comment:
  """A comment as written, including its marks.

  Attributes:
    text: The text. Line comments on consecutive lines are one comment.
    kind: `line`, `block`, or `docstring`, which has no marks.
  """

  text: str
  kind: str


LANGUAGES = (*_FAMILIES, 'javascript', 'python')


def find_comments(text: str, language: str) -> Iterator[Comment]:
  """Yields the comments of a source file, in order.

  Comment marks in a string, a character or a regular expression do not count. A
  file that is invalid in its language gives unspecified comments, but no error.

  Args:
    text: The file's text, with newline characters between lines.
    language: One of `LANGUAGES`; `javascript` includes TypeScript. Comments of
      `python` include its docstrings.
  """
  if language == 'python':
    spans = _scan_python(text)
  elif language == 'javascript':
    spans = _scan_script(text)
  else:
    spans = _scan(text, _FAMILIES[language])
  return _joined(text, spans)


_Span = tuple[int, int, str]


def _joined(text: str, spans: Iterator[_Span]) -> Iterator[Comment]:
  """Joins line comments that continue on the next line."""
  held: Optional[_Span] = None
  for start, end, kind in spans:
    if held and held[2] == kind == 'line':
      between = text[held[1] : start]
      if between.count('\n') == 1 and not between.strip():
        held = (held[0], end, kind)
        continue
    if held:
      yield Comment(text[held[0] : held[1]], held[2])
    held = (start, end, kind)
  if held:
    yield Comment(text[held[0] : held[1]], held[2])


def _scan(text: str, language: _Language) -> Iterator[_Span]:
  position = 0
  while found := language.pattern.search(text, position):
    position = found.end()
    kind = found.lastgroup
    if kind == 'line':
      yield found.start(), position, 'line'
    elif kind == 'block':
      position = _block_end(text, position, language.nested)
      yield found.start(), position, 'block'
    elif kind == 'raw':
      position = _after(text, language.close.format(found['mark']), position)


def _after(text: str, mark: str, position: int) -> int:
  """Returns the position after the next mark, or the end if there is none."""
  found = text.find(mark, position)
  return len(text) if found < 0 else found + len(mark)


def _block_end(text: str, position: int, nested: bool) -> int:
  if not nested:
    return _after(text, '*/', position)
  depth = 1
  for mark in _BLOCK_MARK.finditer(text, position):
    depth += 1 if mark[0] == '/*' else -1
    if not depth:
      return mark.end()
  return len(text)


def _scan_script(text: str) -> Iterator[_Span]:
  # The number of open braces in each `${` around the position.
  depths: list[int] = []
  position = 0
  while found := _SCRIPT.search(text, position):
    start, position = found.span()
    kind = found.lastgroup
    if kind == 'line':
      yield start, position, 'line'
    elif kind == 'block':
      position = _after(text, '*/', position)
      yield start, position, 'block'
    elif kind == 'slash':
      before = text[max(start - 40, 0) : start]
      if not _OPERAND.search(before) or _KEYWORD.search(before):
        expression = _REGULAR_EXPRESSION.match(text, start)
        position = expression.end() if expression else position
    elif kind == 'template':
      position = _template(text, position, depths)
    elif kind == 'brace' and depths:
      if text[start] == '{':
        depths[-1] += 1
      elif depths[-1]:
        depths[-1] -= 1
      else:
        depths.pop()
        position = _template(text, position, depths)


def _template(text: str, position: int, depths: list[int]) -> int:
  """Returns where code continues: after a template, or in its next `${`."""
  while found := _TEMPLATE.search(text, position):
    position = found.end()
    if found.lastgroup == 'code':
      depths.append(0)
      return position
    if found[0] == '`':
      return position
  return len(text)


def _scan_python(text: str) -> Iterator[_Span]:
  # The last character of code before the position.
  last = ':'
  position = 0
  while found := _PYTHON.search(text, position):
    start, end = found.span()
    between = text[position:start]
    code = between.rstrip()
    last = code[-1] if code else last
    # The string begins its line.
    opens = position == 0 or '\n' in between
    opens = opens and not between.rpartition('\n')[2].strip()
    position = end
    if found.lastgroup == 'line':
      yield start, end, 'line'
      continue
    if found.lastgroup == 'string' and last == ':' and opens:
      yield *found.span('body'), 'docstring'
    last = text[end - 1]
