"""Tests of how text becomes sentences of words."""

from __future__ import annotations

import pytest

from si_federated.preparation import text


@pytest.mark.parametrize(
  ('source', 'expected'),
  [
    ('<p>What does "A &amp; B" mean?</p>', ['what does " a & b " mean ?']),
    # Sentences end at their marks and at the ends of paragraphs.
    (
      "<p>I don't know. You do</p>\n<ul><li>One<li>Two</ul>",
      ["i don't know .", 'you do', 'one', 'two'],
    ),
    # Inline elements are part of their sentence, blocks of code of none.
    (
      '<p>Use <code>sort(x)</code>, <b>not</b>:</p><pre><code>x.sort()</code>'
      '</pre><p>It re-sorts.</p>',
      ['use sort ( x ) , not :', 'it re-sorts .'],
    ),
    (
      '<p>See <a href="https://a.org/b">this</a> or https://c.org/d?e=1.</p>',
      ['see this or <URL> .'],
    ),
    ('<p>caf&eacute; &#8220;na\u00efve&#8221; \u4f60\u597d 5&lt;6</p>',
     ['caf " nave " 5 < 6']),
    ('<p>never closed <b>at all', ['never closed at all']),
    ('</pre></pre><p>stray ends</p>', ['stray ends']),
    ('<p></p><br>  \n', []),
    ('<pre>only code</pre>', []),
    ('&lt;p&gt;shown&lt;/p&gt;', ['< p > shown < / p >']),
  ],
)  # fmt: skip
def test_html(source, expected):
  assert list(text.sentences(source, is_html=True)) == expected


def test_plain_text_keeps_what_looks_like_html():
  found = list(text.sentences('a <b> &amp; c\nd\n\ne', is_html=False))
  assert found == ['a < b > & amp ; c d', 'e']


def test_titles_are_one_line():
  assert text.title('How to\nmake IT?') == 'how to make it ?'
