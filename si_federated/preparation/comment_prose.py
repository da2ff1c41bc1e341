"""Turns a comment, or a document, into sentences of English prose."""

from __future__ import annotations

import inspect
import re

from si_federated.preparation.comment_scanner import Comment
from si_federated.tasks import tokenizer
from si_federated.tasks.docstring_corpus import cleaning

LICENCE = 'licences and copyright'
CODE = 'commented-out code'
NO_PROSE = 'no sentences of English'

_LICENCE = re.compile(
  r'spdx-|copyright|\(c\)\s+(?:19|20)\d\d|all rights reserved|general public'
  r'|licen[cs]ed? (?:under|terms|agreement|as published|version|for|to|is)'
  r'|(?:this|same|apache|bsd|mit|isc|mozilla) licen[cs]e|gpl(?:v2|\b)'
  r'|free software|permission is (?:hereby )?granted|redistribut'
  r'|without (?:any )?warrant|warranties|merchantability|liable for'
  r'|as is[\'"]|copy of the licen[cs]e|terms (?:and conditions )?of the'
  r'|endorse or promote|following disclaimer|without express',
  re.IGNORECASE,
)
# Consecutive words, separated by nothing but commas, are prose.
_PROSE = re.compile(r"(?:(?<![\w.>*&])[A-Za-z][a-z']*,?(?:\s+|[.;:]?$)){3}")
_CODE = re.compile(
  r'[{}]|#\s*(?:include|define|undef|if|ifdef|ifndef|else|endif|pragma)\b'
  r'|(?:if|for|while|switch|else if|return)\s*\(.*[{;)]$|\}?\s*else\b.{0,2}$'
  r'|(?:return|goto|break|continue|case|default|import|package|from|use|let'
  r'|var|const|static|struct|int|char|void|unsigned|u8|u16|u32|u64|bool|long)\b'
  r'.*[;:]$'
  r'|[\w.>\[\]()*&-]+\s*(?:[-+*/|&^%]|<<|>>|:)?=(?!=).*[;,({]?$'
  r'|[\w.:>-]+\s*\(.*\)\s*[;{,]$|.*;\s*\\?$|.*[{}\\]$'
)
# Marks of Doxygen, Javadoc and kernel-doc. The name of a parameter is removed,
# as the docstrings' cleaner does.
_NAMED_TAG = re.compile(
  r'^(\s*)[@\\](?:param|tparam|throws?|exception|property|retval|arg)\b'
  r'(?:\s*\[[\w, ]*\]|\s*\{[^{}]*\})*\s+[\w.$<>\[\]=*&]+(?:\s+[-:])?\s+',
  re.MULTILINE,
)
_TAG = re.compile(
  r'^(\s*)[@\\](?:brief|short|returns?|result|details?|note|remarks?|warning'
  r'|attention|todo|deprecated|description|internal|private|public|since|pre'
  r'|post|invariant|par|li|file(?:overview)?|apinote|implnote)\b'
  r'(?:\s*\{[^{}]*\})?:?[ \t]*|^(\s*)(?:Returns?|Context|Description):\s+',
  re.MULTILINE,
)
_INLINE_TAG = re.compile(r'\{@\w+\s+([^{}]*)\}')
_KERNEL_NAME = re.compile(
  r'\A(\s*)(?:(?:struct|union|enum|typedef|class)\s+)?[\w*]+(?:\(\))?\s+-+\s+'
)
_MEMBER = re.compile(r'\b[A-Za-z_]\w*(?:\[\w*\])?(?:->\s?(\w+)(?:\[\w*\])?)+')
_REFERENCE = re.compile(
  r'(?:(?<=[\s(,"\'])|^)'
  r'(?:&(?:struct|union|enum|typedef|enumerated)\s+|[%&$])(?=[A-Za-z_])'
  r'|(?:(?<=[\s(,"\'])|^)@(?=[A-Za-z_]\w*(?![\w.]*:(?:\s|$)))',
  re.MULTILINE,
)
# Patterns that the cleaner considers code, even within a sentence.
_OPERATION = re.compile(
  r'[\w.\[\]*&-]+(?:\([^()\n]*\))?\s*(?:==|!=|<=|>=|&&|\|\|| [-+*/|&]?= )\s*'
  r'[\w.\[\]*&-]+(?:\([^()\n]*\))?'
)
_AUTHOR = re.compile(
  r'\S@\S+\.\w|^\W*(?:authors?|written by|maintainers?)\b', re.I
)
# Data, such as a picture in base64.
_DATA = re.compile(r'(?<!\S)\S{200,}|[^\S\n]{200,}')
_SPACE = f' {tokenizer.CODE_TOKEN} '
_HTML_COMMENT = re.compile(r'<!--.*?(?:-->|\Z)', re.DOTALL)
_RULE = re.compile(r'[^\w\s]{3,}|[*/#%;]+')
_BORDER = re.compile(r'(?<!\s)\s+\*+/?$')
_LINE_MARK = re.compile(r'\s*(?://+[!<]*|#+[:!]?)\s?')
_STAR = re.compile(r'\s*\*+(?:\s|$)?')


def sentences(comment: Comment) -> tuple[list[str], tuple[str, ...]]:
  """Returns the sentences of a comment.

  They are cleaned like those of `si_federated.tasks.docstring_corpus`. Marks of
  comments and of documentation (Doxygen, Javadoc, kernel-doc) and paragraphs on
  licences are removed.

  Args:
    comment: The comment.

  Returns:
    Sentences as tokens joined by single spaces, and the reasons of omissions:
    some of `LICENCE`, `CODE` and `NO_PROSE`.
  """
  if len(comment.text.split(None, 2)) < 3:
    # Halves the time for generated headers.
    return [], (NO_PROSE,)
  paragraphs: list[str] = []
  reasons: set[str] = set()
  for paragraph in _paragraphs(_DATA.sub(_SPACE, _text(comment))):
    if _LICENCE.search(' '.join(paragraph)):
      reasons.add(LICENCE)
    elif _is_code(paragraph):
      reasons.add(CODE)
    else:
      paragraphs.append(_plain('\n'.join(paragraph)))
  found = cleaning.sentences('\n\n'.join(paragraphs)) if paragraphs else []
  if not found and not reasons:
    reasons.add(NO_PROSE)
  return found, tuple(sorted(reasons))


def of_document(text: str, *, is_markdown: bool) -> list[str]:
  """Returns the sentences of a document, cleaned like those of docstrings.

  Args:
    text: The document.
    is_markdown: Whether it is Markdown; otherwise it is reStructuredText.
  """
  if is_markdown:
    text = _HTML_COMMENT.sub('', text)
  text = _DATA.sub(_SPACE, text)
  found = []
  for sentence in cleaning.sentences(_REFERENCE.sub('', text)):
    if not _LICENCE.search(sentence):
      found.append(sentence)
  return found


def _text(comment: Comment) -> str:
  """Removes the marks of a comment."""
  if comment.kind == 'docstring':
    return comment.text
  lines = comment.text.split('\n')
  if comment.kind == 'line':
    return '\n'.join(_LINE_MARK.sub('', line, count=1) for line in lines)
  lines[0] = re.sub(r'^\s*/\*+[!<]*', '', lines[0])
  lines[-1] = re.sub(r'\**\*/\s*$', '', lines[-1])
  inner = [line for line in lines[1:] if line.strip()]
  starred = sum(line.lstrip().startswith('*') for line in inner)
  if 2 * starred > len(inner):
    lines[1:] = [_STAR.sub('', line, count=1) for line in lines[1:]]
  return '\n'.join(_BORDER.sub('', line) for line in lines)


def _paragraphs(text: str) -> list[list[str]]:
  """Returns each paragraph's lines, with indents but without rules."""
  found: list[list[str]] = [[]]
  for line in inspect.cleandoc(text).split('\n'):
    stripped = line.strip()
    if not stripped or _RULE.fullmatch(stripped):
      found.append([])
    else:
      found[-1].append(line)
  return [paragraph for paragraph in found if paragraph]


def _is_code(lines: list[str]) -> bool:
  return 2 * sum(map(_is_code_line, lines)) >= len(lines)


def _is_code_line(line: str) -> bool:
  line = line.strip()
  return bool(_CODE.match(line)) and not _PROSE.search(line)


def _plain(paragraph: str) -> str:
  """Removes marks that the docstrings' cleaner would consider code."""
  text = _NAMED_TAG.sub(r'\n\1', paragraph)
  text = _TAG.sub(r'\n\1\2', text)
  text = _INLINE_TAG.sub(r'`\1`', text)
  text = _KERNEL_NAME.sub(r'\1', text)
  text = _MEMBER.sub(r'\1', text)
  text = _REFERENCE.sub('', text)
  lines = []
  for line in text.split('\n'):
    if _is_code_line(line) or _AUTHOR.search(line):
      lines.append('')
      continue
    line = _OPERATION.sub(tokenizer.CODE_TOKEN, line)
    # A semicolon within a sentence, not at the end of a statement.
    if lines and lines[-1].endswith(';'):
      lines[-1] = f'{lines[-1]} {line.strip()}'
    else:
      lines.append(line)
  return '\n'.join(line.rstrip(';') for line in lines)
