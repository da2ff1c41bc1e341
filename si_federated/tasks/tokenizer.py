"""Splits English text into words and punctuation marks."""

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
  """Maps typographic marks to ASCII and drops other non-ASCII characters."""
  if text.isascii():
    return text
  return text.translate(_ASCII).encode('ascii', 'ignore').decode('ascii')


def replace_urls(text: str) -> str:
  """Replaces every web address with the token `<URL>`."""
  if '://' not in text and 'www.' not in text:
    return text
  return _URL.sub(f' {URL_TOKEN} ', text)


def tokenize(text: str) -> list[str]:
  """Tokenizes text like the Stack Overflow data.

  Tokens are lower-case ASCII, except `<URL>` for web addresses and `<CODE>`.
  Each punctuation mark is a token, except apostrophes and hyphens inside a
  word. Blank text gives an empty list.

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
