"""Turns one docstring into sentences of English prose."""

from __future__ import annotations

import inspect
import re
from typing import Iterator

from si_federated.tasks.tokenizer import (
  CODE_TOKEN,
  URL_TOKEN,
  replace_urls,
  to_ascii,
  tokenize,
)


def _words(text: str) -> frozenset[str]:
  return frozenset(text.split(','))


# Sections of "name : type" entries with an indented description (numpydoc), or
# of "name (type): description" entries (Google style).
_ENTRY_SECTIONS = _words(
  'parameters,other parameters,keyword parameters,attributes,returns,return,'
  'yields,raises,warns,receives,args,arguments,keyword args,throws,'
  'keyword arguments,kwargs,call arguments,inputs,outputs,properties,fields,'
  'options,params,return value,class attributes,variables'
)
_DROPPED_SECTIONS = _words(
  'see also,references,reference,methods,input shape,output shape,'
  'call format,license,licence,copyright,author,authors,usage,shape,'
  'input type,output type,citation,bibliography'
)
_PROSE_DIRECTIVES = _words(
  'note,warning,tip,important,caution,attention,hint,danger,topic,admonition,'
  'deprecated,versionadded,versionchanged,versionremoved,rubric'
)
_VERSION_DIRECTIVES = ('deprecated', 'version')

_UNDERLINE = re.compile(r'([=\-~^"\'`#*+_.:<>])\1{2,}\s*')
_TABLE = re.compile(r'[+|][-=+|: ]{3,}[+|]?|[=\-]{2,}(?: +[=\-]{2,})+|\|.*\|')
_COLUMNS = re.compile(r'\S {3,}\S|\t')
_DIRECTIVE = re.compile(r'\.\.\s*(?:\w+:)?([\w-]+)\s*::\s*(.*)')
_FIELD = re.compile(r'(?::|@)(\w+)(?:\s+[^:]*)?:\s*(.*)')
_SILENT_FIELDS = _words('type,rtype,vartype,license,author,copyright')
_HEADING = re.compile(r'\**([A-Z][A-Za-z]*(?: [A-Za-z]+){0,2})\**\s*::?')
_BULLET = re.compile(r'(?:[-*+•]|\(?(?:\d{1,2}|[a-z])[.)])\s+(?=\S)')
_ENTRY = re.compile(
  r'[`*"\']*[\w.\[\], /*-]{1,60}?[`*"\']*\s*(?:\([^()]*(?:\([^()]*\))?[^()]*\)'
  r'|<[^<>]*>)?[`*]*\s*(?::|--|\s-)\s+(.*)'
)
_NUMPY_ENTRY = re.compile(r'[`*\w][\w., `*]*\s+:(?:\s|$)')
_ITEM_NAME = re.compile(
  r'(?:[`*"\']+[^`*"\']+[`*"\']+|[\w.]*[_.=][\w.=]*|\w+)'
  r'\s*(?:\([^()]*\))?\s*(?::|--|\s-)\s+'
)
_CODE_LINE = re.compile(
  r'(?:import \w|from [\w.]+ import|def \w|class \w+\s*[(:]|async def|@\w+'
  r'|return [\w.]*[(\[]|with [\w.]+\(|for \w+ in .*:$|if .*:$|while .*:$'
  r'|[$#%] ?\w|//|/\*|print\(|assert |else:|try:|except\b|raise \w+\(|<\?|<!)'
  r'|.*(?: [-+*/|&]?= |==|!=|<=|>=|[{};\\]\s*$|\\\w+\{|=>)'
  r'|[\w.]+\(.*\)(?:\s*->.*)?[:.]?$|.*->'
)

_ROLE = re.compile(r':[\w:+-]+:`([^`]*)`')
_LINK_TARGET = re.compile(r'`([^`<]+?)\s*<[^`>]*>`__?')
_MARKDOWN_LINK = re.compile(r'\[([^\]\[]+)\]\((?:[^()\s]*)\)')
_FOOTNOTE = re.compile(r'\s*\[[#\w*-]{1,20}\]_')
_MATH_ROLE = re.compile(r':math:`[^`]*`')
_MATH = re.compile(r'\$\$[^$]+\$\$|\$[^$\n]+\$|\\\\?\([^()]*\\\)')
_QUOTED_CODE = re.compile(r'(`+)\s*(.+?)\s*\1_{0,2}')
_STRONG = re.compile(r'(\*{1,2})(?=\S)([^*]+?)(?<=\S)\1')
_TAG = re.compile(r'</?[a-zA-Z]\w*(?:\s[^<>]*)?/?>(?<!<URL>)(?<!<CODE>)')
_CALL = re.compile(r'\b([A-Za-z_]\w*)\(\s*\)')
_DOTTED = re.compile(r'(?<![\w.])(?:[A-Za-z_]\w*\.)+([A-Za-z_]\w+)(?![\w.]?\w)')
_FILE_NAME = re.compile(
  r'\.(?:py|txt|json|cfg|ini|toml|html?|xml|csv|ya?ml|md|rst|cc?|h|so|dll|exe'
  r'|js|sh|log|org|com|net|gz|zip|tar|whl|png|jpe?g|pyc|proto|pbtxt)$'
)
_IDENTIFIER = re.compile(r'[~!]?\.?(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w*)(?:\(\))?')
_PLAIN = re.compile(r"[A-Za-z0-9_' -]+")

_ABBREVIATION = re.compile(
  r'(?:\b(?:e\.g|i\.e|etc|vs|cf|fig|eq|eqs|al|no|dr|mr|resp|approx|sec|ch|vol'
  r'|ed|pp|p|def|viz|ie|eg|st)|\b[A-Z])\.$',
  re.IGNORECASE,
)
_SENTENCE_END = re.compile(r'(?<=[.!?])["\')]*\s+(?=[A-Z0-9"\'(`<\[])')
_FUNCTION_WORDS = _words(
  'the,a,an,is,are,was,be,been,of,to,in,on,for,from,with,by,as,at,if,it,its,'
  'this,that,these,those,and,or,not,no,can,will,may,must,should,would,when,'
  'which,what,where,who,how,whether,has,have,had,do,does,did,but,than,then,'
  'there,into,only,all,any,each,other,you,we,they,your,our,their,so,because,'
  'while,until,after,before,between,using,used,use,per,such,more,one'
)
_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")
MIN_WORDS = 4
MAX_TOKENS = 100


def _paragraphs(text: str) -> Iterator[str]:
  """Yields the paragraphs of prose of a docstring, one string each."""
  paragraph: list[str] = []
  section = ''
  section_indent = 0
  fence = ''
  skip_indent = None
  in_example = in_table = False
  lines = text.split('\n')
  for number, line in enumerate(lines):
    stripped = line.strip()
    indent = len(line) - len(line.lstrip())
    if fence:
      if stripped.startswith(fence):
        fence = ''
      continue
    if not stripped:
      if paragraph:
        yield ' '.join(paragraph)
        paragraph = []
      in_example = in_table = False
      continue
    if in_example or in_table:
      continue
    if skip_indent is not None:
      if indent > skip_indent:
        continue
      skip_indent = None
    if stripped.startswith(('```', '~~~')):
      if paragraph:
        yield ' '.join(paragraph)
        paragraph = []
      # A fence that is closed on the same line opens no block.
      if stripped.count(stripped[:3]) == 1:
        fence = stripped[:3]
      continue
    if _UNDERLINE.fullmatch(stripped):
      if len(paragraph) == 1:
        section, section_indent = paragraph[0].lower().rstrip(':'), indent
        paragraph = []
      continue
    if _TABLE.fullmatch(stripped):
      paragraph, in_table = [], True
      continue

    starts_new, kept = _classify(
      stripped,
      in_entries=section in _ENTRY_SECTIONS,
      is_entry=indent <= section_indent,
      has_description=_indent_of(lines, number + 1) > indent,
    )
    if starts_new and paragraph:
      yield ' '.join(paragraph)
      paragraph = []
    if kept is None:
      if stripped.startswith(('>>>', 'In [')):
        in_example = True
      elif stripped.startswith(('..', ':', '@')):
        skip_indent = indent
      continue
    heading = _HEADING.fullmatch(stripped)
    if heading and _is_section(heading.group(1).lower()):
      if paragraph:
        yield ' '.join(paragraph)
        paragraph = []
      section, section_indent = heading.group(1).lower(), indent
      if section in _DROPPED_SECTIONS:
        section, skip_indent = '', indent
      continue
    if section in _DROPPED_SECTIONS:
      below = lines[number + 1].strip() if number + 1 < len(lines) else ''
      if indent >= section_indent and not _UNDERLINE.fullmatch(below):
        continue
      section = ''
    if section and indent < section_indent:
      section = ''
    if kept.endswith('::'):
      kept, skip_indent = kept[:-1], indent
    if kept:
      paragraph.append(kept)
  if paragraph:
    yield ' '.join(paragraph)


def _is_section(name: str) -> bool:
  return (
    name in _ENTRY_SECTIONS
    or name in _DROPPED_SECTIONS
    or name in ('example', 'examples', 'note', 'notes', 'usage example')
  )


def _indent_of(lines: list[str], number: int) -> int:
  """Returns the indent of a line, -1 if it is blank or does not exist."""
  if number >= len(lines) or not lines[number].strip():
    return -1
  return len(lines[number]) - len(lines[number].lstrip())


def _classify(
  line: str, *, in_entries: bool, is_entry: bool, has_description: bool
) -> tuple[bool, str | None]:
  """Returns whether a line opens a paragraph, and its prose, if any."""
  if line.startswith(('>>>', '... ', 'In [', 'Out[')) or line == '...':
    return True, None
  directive = _DIRECTIVE.match(line)
  if directive:
    name, rest = directive.group(1).lower(), directive.group(2)
    if name not in _PROSE_DIRECTIVES:
      return True, None
    if name.startswith(_VERSION_DIRECTIVES):
      rest = rest.partition(' ')[2]
    return True, rest
  if line.startswith('..') and not line.startswith('...'):
    return True, None
  field = _FIELD.match(line)
  if field and line[0] in ':@' and not _ROLE.match(line):
    silent = field.group(1).lower() in _SILENT_FIELDS
    return True, None if silent else field.group(2)
  if _COLUMNS.search(line):
    return True, ''
  if in_entries and _NUMPY_ENTRY.match(line):
    return True, ''
  if in_entries and is_entry and has_description:
    entry = _ENTRY.match(line)
    return True, entry.group(1) if entry else ''
  bullet = _BULLET.match(line)
  if bullet:
    rest = line[bullet.end() :]
    name = _ITEM_NAME.match(rest)
    rest = rest[name.end() :] if name else rest
    return True, '' if _CODE_LINE.match(rest) else rest
  if in_entries:
    entry = _ENTRY.match(line)
    if entry:
      return True, entry.group(1)
  if _CODE_LINE.match(line):
    return True, ''
  return False, line


def _inline(paragraph: str) -> str:
  """Replaces inline markup by plain words."""
  # The cheap tests save most of the time: most paragraphs lack each mark.
  text = paragraph
  if '$' in text or '\\' in text:
    text = _MATH.sub(f' {CODE_TOKEN} ', text)
  if ']' in text:
    text = _FOOTNOTE.sub('', _MARKDOWN_LINK.sub(r'\1', text))
  if '`' in text:
    text = _ROLE.sub(r'`\1`', _LINK_TARGET.sub(r'\1', text))
  if '://' in text or 'www.' in text:
    text = replace_urls(text)
  if '`' in text:
    text = _QUOTED_CODE.sub(_code_word, text)
  if '*' in text:
    text = _STRONG.sub(r'\2', text)
  if '<' in text:
    text = _TAG.sub(' ', text)
  if '(' in text:
    text = _CALL.sub(r'\1', text)
  return _DOTTED.sub(_last_name, text) if '.' in text else text


def _code_word(match: re.Match[str]) -> str:
  content = match.group(2).partition(' <')[0]
  identifier = _IDENTIFIER.fullmatch(content)
  if identifier and not _FILE_NAME.search(content):
    return identifier.group(1)
  if URL_TOKEN in content or _PLAIN.fullmatch(content):
    return content
  return CODE_TOKEN


def _last_name(match: re.Match[str]) -> str:
  if _FILE_NAME.search(match.group()):
    return match.group()
  return match.group(1)


def split_sentences(text: str) -> Iterator[str]:
  """Splits a paragraph at the ends of its sentences."""
  start = 0
  for match in _SENTENCE_END.finditer(text):
    head = text[start : match.start()]
    if _ABBREVIATION.search(head):
      continue
    yield text[start : match.end()]
    start = match.end()
  yield text[start:]


def _is_english(tokens: list[str]) -> bool:
  """Whether tokens are prose, not code, names or another language."""
  if not MIN_WORDS <= len(tokens) <= MAX_TOKENS:
    return False
  words = [token for token in tokens if _WORD.fullmatch(token)]
  if len(words) < MIN_WORDS or len(words) < 0.65 * len(tokens):
    return False
  if tokens.count(CODE_TOKEN) > 0.2 * len(tokens):
    return False
  return sum(word in _FUNCTION_WORDS for word in words) >= 0.12 * len(words)


def sentences(docstring: str) -> list[str]:
  """Returns the sentences of English prose of a docstring.

  Code blocks, doctests, tables, directives, signatures and the names and types
  of arguments are left out; the descriptions of arguments stay. Web addresses
  become `<URL>`, quoted code that is not a plain name `<CODE>`.

  Args:
    docstring: The docstring as written in the source.

  Returns:
    Sentences as tokens joined by single spaces, in order.
  """
  found = []
  text = inspect.cleandoc(docstring)
  if ':math:' in text:
    text = _MATH_ROLE.sub(CODE_TOKEN, text)
  for paragraph in _paragraphs(text):
    if len(to_ascii(paragraph)) < 0.95 * len(paragraph):
      continue
    for sentence in split_sentences(_inline(paragraph)):
      tokens = tokenize(sentence)
      if _is_english(tokens):
        found.append(' '.join(tokens))
  return found
