"""The parts of a docstring that count as English prose."""

from __future__ import annotations

import pytest

from si_federated.tasks.docstring_corpus.cleaning import sentences


def test_sentences_are_split_and_tokenized():
  assert sentences(
    """Return the sum of two numbers.

    The first one, e.g. Dr. Smith's, is the larger of them. Is it always? It
    isn't; see https://example.org/page for the well-known cases.
    """
  ) == [
    'return the sum of two numbers .',
    "the first one , e . g . dr . smith's , is the larger of them .",
    "it isn't ; see <URL> for the well-known cases .",
  ]


NUMPY_STYLE = """Compute the mean of the values along an axis.

    Parameters
    ----------
    a : array_like, optional
        The values of which the mean is desired.
    axis : {None, int or tuple of ints}
        The axis along which the means are computed.

    Returns
    -------
    mean : ndarray
        A new array that holds the result.

    See Also
    --------
    average : Weighted average of all the values in an array.

    Examples
    --------
    The mean of a single row is a number:

    >>> import numpy as np
    >>> np.mean(a)
    2.5 is the output of this and not a sentence

    References
    ----------
    .. [1] A book about the means of many things.
    """


def test_numpy_style():
  assert sentences(NUMPY_STYLE) == [
    'compute the mean of the values along an axis .',
    'the values of which the mean is desired .',
    'the axis along which the means are computed .',
    'a new array that holds the result .',
    'the mean of a single row is a number :',
  ]


GOOGLE_STYLE = """Fetches the rows of a table from the server.

  Args:
    table (Table): The table that the rows are fetched from.
    keys: A sequence of strings that name the rows, which may go on for
      more than one line of text.

  Returns:
    A dictionary that maps the keys to the rows.

  Raises:
    IOError: An error that the server has sent occurred.
  """


def test_google_style():
  assert sentences(GOOGLE_STYLE) == [
    'fetches the rows of a table from the server .',
    'the table that the rows are fetched from .',
    'a sequence of strings that name the rows , which may go on for more than '
    'one line of text .',
    'a dictionary that maps the keys to the rows .',
    'an error that the server has sent occurred .',
  ]


def test_sphinx_fields():
  assert sentences(
    """Open a connection to the host.

    :param str host: The name of the host to be reached.
    :type host: the type of this is not a sentence to keep
    :return: A socket that is ready to be used.
    :rtype: socket or the like of it
    """
  ) == [
    'open a connection to the host .',
    'the name of the host to be reached .',
    'a socket that is ready to be used .',
  ]


@pytest.mark.parametrize(
  'block',
  [
    '```python\nthis is code in the block of it\n```',
    '~~~\nthis is code in the block of it\n~~~',
    '>>> f(x)\nthis is the output of the call',
    '>>> for a in b:\n...   this is in the loop',
    '.. code-block:: python\n\n   this is code in the block of it',
    '.. image:: a/picture/of/the/house.png\n   :alt: a picture of the house',
    '.. a comment that is for the authors of it',
    '+------+------+\n| this is in the | table of the row |\n+------+------+',
    '=====  =====\nthis is in the table of the row\n=====  =====',
    '| this is in the | table of the row |',
    'name      the value of the name      and a note',
    'A title of the section\n----------------------',
    'A title of the section\n======================',
    'function(the, arguments, of, a, call) -> int',
    'x = the_value if it is not None else a',
    'from the import of a thing',
    'def the_function_of(a, is, the):',
    'return self.the(value, of, a)',
    '{the: is, a: of}',
    'Short.',
    'alpha, beta, gamma, delta, epsilon, zeta, eta',
    'Dies ist ein Satz aus einer anderen Sprache.',
    '\u042d\u0442\u043e \u043f\u0440\u0435\u0434\u043b\u043e\u0436\u0435\u043d'
    '\u0438\u0435 the is of a and',
    '1 2 3 4 5 6 the 7 8 9',
  ],
)
def test_what_is_left_out(block):
  text = f'The first sentence of it.\n\n{block}\n\nThe last sentence of it.'
  assert sentences(text) == [
    'the first sentence of it .',
    'the last sentence of it .',
  ]


def test_literal_block_after_two_colons():
  assert sentences(
    'It is used in the following way::\n\n    this is code in the block\n\n'
    '    and so is the second of it\n\nThis is prose of the text again.'
  ) == [
    'it is used in the following way :',
    'this is prose of the text again .',
  ]


@pytest.mark.parametrize(
  ('text', 'cleaned'),
  [
    ('It returns ``None`` if the list is empty.',
     'it returns none if the list is empty .'),
    ('See :class:`~package.module.Thing` for all of the details.',
     'see thing for all of the details .'),
    ('Read `the manual <https://a.b/c>`_ before you call it.',
     'read the manual before you call it .'),
    ('Read [the manual](https://a.b/c) before you call it.',
     'read the manual before you call it .'),
    ('It is **very** important and *not* a joke at all [1]_.',
     'it is very important and not a joke at all .'),
    ('The value of `x[0] + 1` is what you get from it.',
     'the value of <CODE> is what you get from it .'),
    ('The norm :math:`\\sqrt{x}` is used by all of these.',
     'the norm <CODE> is used by all of these .'),
    ('Use tf.keras.layers.Dense for the output of the model.',
     'use dense for the output of the model .'),
    ('Put it into the file setup.py of your own project.',
     'put it into the file setup . py of your own project .'),
    ('.. note:: This is for the readers who need it.',
     'this is for the readers who need it .'),
    ('.. deprecated:: 1.2 Use the other function in its place.',
     'use the other function in its place .'),
    ('- ``name``: the name of the thing that is made.',
     'the name of the thing that is made .'),
    ('1. The first of the steps that are to be done.',
     'the first of the steps that are to be done .'),
  ],
)  # fmt: skip
def test_markup(text, cleaned):
  assert sentences(text) == [cleaned]


@pytest.mark.parametrize(
  'text',
  ['', '\n', '```', '>>>', '..', ':', '`', '::', '----', '\x00', '|' * 9],
)
def test_odd_docstrings_give_nothing(text):
  assert sentences(text) == []


def test_long_lines_without_sentences_give_nothing():
  # Patterns that backtrack would take hours.
  for text in ('a ' * 30_000, '`' * 30_000, '(' * 30_000, 'a.' * 30_000,
               'word, ' * 20_000, '*' * 30_000, '<a ' * 20_000):  # fmt: skip
    assert sentences(text) == []
    assert sentences('Args:\n  ' + text) == []
