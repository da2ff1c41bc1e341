"""Splits English text into the words and marks that the language tasks use."""

from __future__ import annotations

import re

URL_TOKEN = '<URL>'
CODE_TOKEN = '<CODE>'

_URL = re.compile(
  r'(?:\b(?:https?|ftp)://|\bwww\.)[^\s<>"\'`]*[^\s<>"\'`.,;:!?)\]}]'
)
_TOKEN = re.compile(
  rf"{URL_TOKEN}|{CODE_TOKEN}|[A-Za-z0-9_]+(?:['-][A-Za-z0-9_]+)*|[^\sA-Za-z0-9_]"
)
_ASCII = str.maketrans(
  {
    '\u2018': "'",
    '\u2019': "'",
    '\u201c': '"',
    '\u201d': '"',
    '\u2010': '-',
    '\u2011': '-',
    '\u2012': '-',
    '\u2013': '-',
    '\u2014': ' - ',
    '\u2026': '...',
    '\u00a0': ' ',
  }
)


def to_ascii(text: str) -> str:
  """Maps typographic marks to plain ones and drops what is not ASCII."""
  if text.isascii():
    return text
  return text.translate(_ASCII).encode('ascii', 'ignore').decode('ascii')


def replace_urls(text: str) -> str:
  """Puts the token `<URL>` in the place of every web address."""
  if '://' not in text and 'www.' not in text:
    return text
  return _URL.sub(f' {URL_TOKEN} ', text)


def tokenize(text: str) -> list[str]:
  """Splits text as the Stack Overflow data are split.

  Lower case, ASCII only, a token for a web address, and every punctuation mark
  a token of its own except apostrophes and hyphens inside a word.

  Args:
    text: Any text.

  Returns:
    Its tokens, in order; the empty list for blank text.

  >>> tokenize("Don't re-read https://x.org/a, it's 2.5 MB!")
  ["don't", 're-read', '<URL>', ',', "it's", '2', '.', '5', 'mb', '!']
  """
  text = replace_urls(to_ascii(text))
  if '<' not in text:
    return _TOKEN.findall(text.lower())
  return [
    token if token in (URL_TOKEN, CODE_TOKEN) else token.lower()
    for token in _TOKEN.findall(text)
  ]
