"""Comments of source trees: finding, cleaning, leaving out and counting."""

from __future__ import annotations

import os
import pathlib

import pytest

from si_federated import preparation, tasks
from si_federated.preparation import comment_prose, comment_scanner, source_tree
from tests.preparation import prepared

_PROSE = 'The buffer is full when it has no free entry.'
_TOKENS = 'the buffer is full when it has no free entry .'
_OTHER = 'This lock must be held while the list is read.'
_OTHER_TOKENS = 'this lock must be held while the list is read .'


def _prepare(folder, output, **more):
  return preparation.prepare(
    preparation.Settings(
      'comments', str(folder), str(output), split='hash', **more
    )
  )


def _clients(output, summary):
  found = {}
  for split in summary['clients']:
    found.update(prepared.read_tokens(output, split))
  return found


@pytest.fixture
def tree(tmp_path):
  folder = tmp_path / 'tree'
  folder.mkdir()
  (folder / 'good.c').write_text(f'/* {_PROSE} */\nint x;\n')
  return folder


def _left_out(tree, tmp_path, **more):
  """Returns the reasons why files are left out, and all clients."""
  summary = _prepare(tree, tmp_path / 'out', **more)
  return summary['left_out'], _clients(tmp_path / 'out', summary)


_SCANNED = {
  'strings of c': (
    'c',
    'f("// no /* no", \'"\'); /* one */ int i = 1\'000; // two\n'
    'R"x(/* no )" */)x"; // three \\\n on\n',
    ['/* one */', '// two', '// three \\\n on'],
  ),
  'lines that follow each other': (
    'c',
    'int a; // one\n       // two\n\n// three\nint b;\n// four\n',
    ['// one\n       // two', '// three', '// four'],
  ),
  'an apostrophe without a second': (
    'c',
    "#error Don't\n// one\n/* no end",
    ['// one', '/* no end'],
  ),
  'text blocks of java': (
    'java',
    'String s = """\n // no \\""" /* no */ """; /** one */\n'
    "char c = '\"'; // two",
    ['/** one */', '// two'],
  ),
  'raw strings of go': (
    'go',
    'x := `\\` // one\ny := `/* no\n// no` /* two */',
    ['// one', '/* two */'],
  ),
  'nested comments and lifetimes of rust': (
    'rust',
    "/* a /* b */ c */ fn f<'a>(x: &'a str) {} // one\n"
    'let s = r#"// no " /* no"#; let q = \'"\'; /// two\n"// no\n// no"; //! 3',
    ['/* a /* b */ c */', '// one', '/// two', '//! 3'],
  ),
  'regular expressions and templates of javascript': (
    'javascript',
    's.replace(/[/*]"\'/g, "//no"); // one\n'
    'a = `//no ${ f({x: `//no`}) /* two */ } //no`; b = a / c; // three\n'
    'return /\\/*x/; // four\n<a>http://no</a>\n',
    ['// one', '/* two */', '// three', '// four'],
  ),
  'docstrings and comments of python': (
    'python',
    '#!/bin/x\n"""One # no."""\nx = "# no" # two\n'
    "def f():\n  r'''Three.'''\n  y = '''# no'''\n  # four\n  # five\n",
    ['#!/bin/x', 'One # no.', '# two', 'Three.', '# four\n  # five'],
  ),
}


@pytest.mark.parametrize('case', _SCANNED.values(), ids=_SCANNED)
def test_comments_are_found(case):
  language, text, expected = case
  found = comment_scanner.find_comments(text, language)
  assert [comment.text for comment in found] == expected


@pytest.mark.parametrize('language', comment_scanner.LANGUAGES)
@pytest.mark.parametrize('mark', ['/*', "\\'", '"', 'r#"', '`${', '"""', '{/'])
def test_scanning_takes_linear_time(language, mark):
  """Quadratic time would take minutes."""
  text = mark * (200_000 // len(mark))
  for comment in comment_scanner.find_comments(text, language):
    assert comment.text in text


@pytest.mark.parametrize(
  'word', ['a', 'a.', 'a(', '(', ' ', '`', '*', '@a', '<a ', '{@a ', '/', '=']
)
def test_cleaning_takes_linear_time(word):
  """Long words, such as pictures in base64, do not slow it down."""
  data = word * (200_000 // len(word))
  comment = comment_scanner.Comment(f'/* {_PROSE}\n\n{data}\n */', 'block')
  assert comment_prose.sentences(comment)[0] == [_TOKENS]
  document = f'{_PROSE}\n\n{data}\n'
  assert comment_prose.of_document(document, is_markdown=True) == [_TOKENS]


_CLEANED = {
  'a box of stars': (
    f'/*****************\n * {_PROSE} *\n *****************/',
    [_TOKENS],
  ),
  'kernel-doc': (
    '/**\n * ring_full() - tells whether the ring has room\n'
    ' * @ring: the ring to look at, which is &struct ring\n *\n'
    ' * Return: %true if @ring->count is what it must be.\n */',
    [
      'tells whether the ring has room',
      'the ring to look at , which is ring',
      'true if count is what it must be .',
    ],
  ),
  'doxygen': (
    '/*!\n * \\brief Sends all of the frames.\n'
    ' * \\param[in] n how many of them are sent\n */',
    ['sends all of the frames .', 'how many of them are sent'],
  ),
  'javadoc': (
    '/** Reads the {@link Table} of all <b>users</b>.\n'
    ' * @param name the name of the table\n * @return what was found in it */',
    [
      'reads the table of all users .',
      'the name of the table',
      'what was found in it',
    ],
  ),
  'a sentence with a test and a semicolon in it': (
    '/* If n == 0 then the list is empty;\n * we return to the caller. */',
    ['if <CODE> then the list is empty ; we return to the caller .'],
  ),
  'prose around a line of code': (
    f'/* {_PROSE}\n *   x = f(y);\n * {_OTHER} */',
    [_TOKENS, _OTHER_TOKENS],
  ),
  'an author': (
    f'/* Written by A. Person <a@person.org>\n * {_PROSE} */',
    [_TOKENS],
  ),
  'a licence below a description': (
    f'/* {_PROSE}\n *\n * This program is free software; you can do what\n'
    ' * you like with it if you are able to.\n */',
    [_TOKENS],
  ),
}


@pytest.mark.parametrize('case', _CLEANED.values(), ids=_CLEANED)
def test_comments_are_cleaned(case):
  text, expected = case
  (comment,) = comment_scanner.find_comments(text, 'c')
  assert comment_prose.sentences(comment)[0] == expected


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    ('/* SPDX-License-Identifier: GPL-2.0 */', comment_prose.LICENCE),
    ('// Copyright (C) 2020 of the authors of it.', comment_prose.LICENCE),
    ('/* if (x == y) {\n *   f(x);\n * }\n */', comment_prose.CODE),
    ('// return the_value_of(this, and, that);', comment_prose.CODE),
    ('// for (i = 0; i < n; i++)\n//   sum += i;', comment_prose.CODE),
    ('/* #define SIZE 3 */', comment_prose.CODE),
    ('/* ------------ */', comment_prose.NO_PROSE),
    ('/* DMA channel 3 */', comment_prose.NO_PROSE),
  ],
)
def test_other_text_than_prose_is_left_out_with_a_reason(text, reason):
  (comment,) = comment_scanner.find_comments(text, 'c')
  assert comment_prose.sentences(comment) == ([], (reason,))


def test_a_tree_becomes_data_of_the_task(tmp_path):
  """One client per language; repeated sentences stay with the first one."""
  tree = tmp_path / 'tree'
  (tree / 'b').mkdir(parents=True)
  (tree / '.git').mkdir()
  (tree / '.git' / 'x.c').write_text(f'/* {_PROSE} */')
  texts = {
    'a.rst': 'Title of the page\n=====\n\n.. code::\n\n  x = 1\n\n'
    'We read all of the rows.\n\n.. a comment of this page is not read\n',
    'b.md': '# Title of the page\n\nSee [the page](http://x.org/y) for it.\n\n'
    '<!-- this is a comment\nof the page -->\n```\nthis is it for you\n```\n',
    'b/a.py': 'def f():\n  """Returns the first of these rows."""\n',
    'b/b.rs': '/// The rows are in the table.\nfn f() {}\n',
    'b/c.go': '// Rows of it are in the table.\n',
    'b/d.ts': '/** All of the rows are in it. */\n',
    'b/e.java': '/** None of the rows are in it. */\n',
    'b/f.hpp': f'// {_PROSE}\n/* {_OTHER} */\n',
    'b/g.c': f'// {_OTHER}\n// The number of rows in it.\n',
  }
  for name, text in texts.items():
    (tree / name).write_text(text)
  summary = _prepare(tree, tmp_path / 'out')
  assert _clients(tmp_path / 'out', summary) == {
    'a.rst': ['we read all of the rows .'],
    'b.md': ['see the page for it .'],
    'b/a.py': ['returns the first of these rows .'],
    'b/b.rs': ['the rows are in the table .'],
    'b/c.go': ['rows of it are in the table .'],
    'b/d.ts': ['all of the rows are in it .'],
    'b/e.java': ['none of the rows are in it .'],
    'b/f.hpp': [_TOKENS, _OTHER_TOKENS],
    'b/g.c': ['the number of rows in it .'],
  }
  assert summary['rows'] == 9
  assert summary['left_out'] == {}
  assert summary['parts']['sentences']['rows'] == 11
  assert summary['parts']['sentences']['left_out'] == {'repeated': 1}
  assert sum(summary['sentences'].values()) == 10
  assert sum(summary['words'].values()) == 80


def test_the_same_tree_gives_the_same_files(tree, tmp_path):
  (tree / 'b.c').write_text(f'/* {_OTHER} */')
  outputs = [tmp_path / 'out1', tmp_path / 'out2']
  for output in outputs:
    _prepare(tree, output)
  for name in ('sqlite', 'word_count', 'tag_count'):
    first, second = (o / f'stackoverflow.{name}' for o in outputs)
    assert first.read_bytes() == second.read_bytes()


def test_links_are_not_followed(tree, tmp_path):
  """Neither loops, nor links to outside files, nor broken links."""
  (tmp_path / 'outside.c').write_text(f'/* {_OTHER} */')
  (tree / 'loop').symlink_to(tree)
  (tree / 'file.c').symlink_to(tmp_path / 'outside.c')
  (tree / 'gone.c').symlink_to('nowhere')
  reasons, clients = _left_out(tree, tmp_path)
  assert sum(reasons.values()) == 3
  assert reasons['symbolic links'] == 2
  assert clients == {'good.c': [_TOKENS]}


def test_latin_1_is_left_out_or_read_by_encoding(tree, tmp_path):
  text = f'/* {_OTHER} */ // B\xf6rse\n'
  (tree / 'old.c').write_bytes(text.encode('latin-1'))
  reasons, clients = _left_out(tree, tmp_path)
  assert reasons == {'in another encoding than UTF-8; name it by --encoding': 1}
  assert set(clients) == {'good.c'}
  reasons, clients = _left_out(
    tree, tmp_path, encoding='latin-1', overwrite=True
  )
  assert reasons == {}
  assert clients['old.c'] == [_OTHER_TOKENS]


def test_marks_of_encodings_are_not_text(tree, tmp_path):
  (tree / 'a.c').write_text(f'// {_OTHER}', encoding='utf-8-sig')
  (tree / 'b.c').write_text('// All of it is here.', encoding='utf-16')
  reasons, clients = _left_out(tree, tmp_path)
  assert reasons == {}
  assert clients['a.c'] == [_OTHER_TOKENS]
  assert clients['b.c'] == ['all of it is here .']


def test_an_unknown_encoding_and_a_file_are_refused(tree, tmp_path):
  with pytest.raises(ValueError, match='--encoding=x is not a text encoding'):
    _prepare(tree, tmp_path / 'out', encoding='x')
  with pytest.raises(
    ValueError, match='is not a folder; give an unpacked source'
  ):
    _prepare(tree / 'good.c', tmp_path / 'out')


@pytest.mark.parametrize(
  ('content', 'reason'),
  [
    (b'// ' + b'generated ' * 5_000_000, 'larger than 4 MB'),
    (b'int x;\n', 'without comments'),
    (b'', 'without comments'),
    (b'f(a);' * 1000 + f'/* {_OTHER} */'.encode(), 'minified'),
    (b'\x7fELF\0\1\2\xff', 'binary'),
    (b'// A \0 that is in the text of it.', 'binary'),
    (f'/* {_PROSE} */'.encode(), 'without sentences to keep'),
  ],
  ids=['50 MB', 'no comments', 'empty', 'minified', 'elf', 'zero', 'repeated'],
)
def test_odd_files_are_left_out_with_a_reason(tree, tmp_path, content, reason):
  (tree / 'odd.c').write_bytes(content)
  reasons, clients = _left_out(tree, tmp_path)
  assert reasons == {reason: 1}
  assert clients == {'good.c': [_TOKENS]}


def test_files_of_other_kinds_are_counted(tree, tmp_path):
  (tree / 'x.S').write_text(f'/* {_OTHER} */')
  os.mkfifo(tree / 'pipe.c')
  reasons, _ = _left_out(tree, tmp_path)
  assert reasons == {
    'of other kinds than --source=comments reads': 1,
    'not regular files': 1,
  }


def test_ends_of_lines_of_other_systems(tree, tmp_path):
  (tree / 'a.c').write_bytes(f'// {_OTHER}\r\nint x;\r\n'.encode())
  lines = b'/* All of it\r\n * is here.\r\n *\r\n * This is the end. */\r\n'
  (tree / 'b.c').write_bytes(lines)
  (tree / 'c.c').write_bytes(b'// One of them is old.\rint a;\r')
  _, clients = _left_out(tree, tmp_path)
  assert clients['a.c'] == [_OTHER_TOKENS]
  assert clients['b.c'] == ['all of it is here .', 'this is the end .']
  assert clients['c.c'] == ['one of them is old .']


def test_a_file_that_cannot_be_read(tree, tmp_path, monkeypatch):
  (tree / 'closed.c').write_text(f'/* {_OTHER} */')

  def refuse(path, *args, **more):
    if os.path.basename(path) == 'closed.c':
      raise PermissionError(13, 'Permission denied', path)
    return open(path, *args, **more)

  # Tests may run as the superuser, who can read every file.
  monkeypatch.setattr(source_tree, 'open', refuse, raising=False)
  reasons, clients = _left_out(tree, tmp_path)
  assert reasons == {'that cannot be read': 1}
  assert clients == {'good.c': [_TOKENS]}


def test_a_name_that_is_not_text(tree, tmp_path):
  name = os.path.join(os.fsencode(tree), b'b\xf6.c')
  with open(name, 'wb') as file:
    file.write(f'// {_OTHER}'.encode())
  reasons, clients = _left_out(tree, tmp_path)
  assert reasons == {}
  assert clients['b\\xf6.c'] == [_OTHER_TOKENS]


def test_the_task_trains_on_it(tmp_path):
  tree = tmp_path / 'tree'
  tree.mkdir()
  for number in range(40):
    (tree / f'{number}.c').write_text(f'/* The {number} is in it. */')
  _prepare(tree, tmp_path / 'out')
  task = tasks.TASKS['stackoverflow'](
    data_dir=str(tmp_path / 'out'), vocab_size=20
  )
  assert task.vocabulary.words[:3] == ('.', 'in', 'is')
  assert pathlib.Path(tmp_path / 'out' / 'preparation.json').exists()
