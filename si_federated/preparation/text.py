"""Splits HTML or plain text into sentences like those of TFF's data."""

from __future__ import annotations

import html.parser
from collections.abc import Iterator

from si_federated.tasks import tokenizer
from si_federated.tasks.docstring_corpus import cleaning

# Block elements: sentences do not continue across them.
_BLOCKS = frozenset(
  [
    'address', 'article', 'aside', 'blockquote', 'br', 'center', 'dd', 'div',
    'dl', 'dt', 'figcaption', 'figure', 'footer', 'form', 'h1', 'h2', 'h3',
    'h4', 'h5', 'h6', 'header', 'hr', 'li', 'main', 'nav', 'ol', 'p', 'pre',
    'section', 'table', 'tbody', 'td', 'tfoot', 'th', 'thead', 'tr', 'ul',
  ]
)  # fmt: skip
# Elements whose content is not prose.
_LEFT_OUT = frozenset(['pre', 'script', 'style'])


class _Paragraphs(html.parser.HTMLParser):
  """Collects the text of HTML by paragraph, with references resolved."""

  def __init__(self):
    super().__init__(convert_charrefs=True)
    self.found: list[list[str]] = [[]]
    self._depth = 0

  def handle_starttag(self, tag, attrs):
    if tag in _LEFT_OUT:
      self._depth += 1
    if tag in _BLOCKS:
      self.found.append([])

  def handle_endtag(self, tag):
    if tag in _LEFT_OUT and self._depth:
      self._depth -= 1
    if tag in _BLOCKS:
      self.found.append([])

  def handle_data(self, data):
    if not self._depth:
      self.found[-1].append(data)


def sentences(text: str, *, is_html: bool) -> Iterator[str]:
  """Yields the sentences of a text, words separated by single spaces.

  As in TFF's data, text is lower-case ASCII with character references resolved.
  Punctuation marks are separate words, except apostrophes and hyphens within
  words, and a web address becomes one word. Differs from TFF's data, whose
  rules are only partly published: code blocks (`<pre>`) are left out, and our
  own rule finds sentences.

  Args:
    text: The text.
    is_html: Whether it has tags and character references.
  """
  if is_html:
    parser = _Paragraphs()
    parser.feed(text)
    parser.close()
    paragraphs = [''.join(parts) for parts in parser.found]
  else:
    paragraphs = text.split('\n\n')
  for paragraph in paragraphs:
    line = ' '.join(paragraph.split())
    for sentence in cleaning.split_sentences(line):
      words = tokenizer.tokenize(sentence)
      if words:
        yield ' '.join(words)


def title(text: str) -> str:
  """Returns the words of a title, separated by single spaces."""
  return ' '.join(tokenizer.tokenize(text))
