"""The words or characters of a language task and their ids."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, Iterable, Iterator, Mapping, Sequence

import numpy as np

from si_federated import files
from si_federated.tasks import tokenizer

PADDING_WORD = '<PAD>'
OUT_OF_VOCABULARY_WORD = '<UNK>'
BEGINNING_WORD = '<BOS>'
END_WORD = '<EOS>'

# Visible symbols for white space, which files of one token per line, and text
# split at spaces, cannot represent.
_PICTURES = {
  ' ': '\N{SYMBOL FOR SPACE}',
  '\n': '\N{SYMBOL FOR LINE FEED}',
  '\r': '\N{SYMBOL FOR CARRIAGE RETURN}',
  '\t': '\N{SYMBOL FOR HORIZONTAL TABULATION}',
}
_TO_PICTURES = str.maketrans(_PICTURES)
_FROM_PICTURES = str.maketrans({v: k for k, v in _PICTURES.items()})


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """The most frequent words and four special ids.

  Padding is 0, words are 1..V in the order of `words`, out-of-vocabulary is
  V + 1, beginning V + 2 and end V + 3, as in TensorFlow Federated's Stack
  Overflow baseline.

  >>> v = Vocabulary(('the', 'cat'))
  >>> v.size, v.encode('The black cat'), v.decode([1, 3, 2])
  (6, [1, 3, 2], ['the', '<UNK>', 'cat'])

  Attributes:
    words: The V words, most frequent first.
  """

  # File name in a run's folder, different for each kind of vocabulary.
  FILE_NAME: ClassVar[str] = 'vocabulary.txt'

  words: tuple[str, ...]

  def __post_init__(self):
    if not self.words:
      raise ValueError('A vocabulary needs at least one word; got none.')
    if len(set(self.words)) != len(self.words):
      raise ValueError('A word occurs twice in the vocabulary; list it once.')
    for word in self.words:
      if not word or '\n' in word or '\r' in word:
        raise ValueError(
          f'{word!r} cannot be a word of a vocabulary: give words that are not '
          'empty and have no line breaks.'
        )

  @property
  def padding(self) -> int:
    """Id that pads sentences to a common length."""
    return 0

  @property
  def out_of_vocabulary(self) -> int:
    """Id of all words that are not in `words`."""
    return len(self.words) + 1

  @property
  def beginning(self) -> int:
    """Id that opens a sentence; never a label."""
    return len(self.words) + 2

  @property
  def end(self) -> int:
    """Id that closes a sentence unless it is cut."""
    return len(self.words) + 3

  @property
  def size(self) -> int:
    """Number of ids, V + 4: the `vocab_size` of a model."""
    return len(self.words) + 4

  @property
  def never_suggested(self) -> list[int]:
    """Ids to exclude from suggestions: all special ids except the end."""
    return [self.padding, self.out_of_vocabulary, self.beginning]

  @functools.cached_property
  def begins_word(self) -> np.ndarray:
    """`[size]` bool: False for ids that continue a word."""
    return np.ones([self.size], bool)

  @functools.cached_property
  def _names(self) -> tuple[str, ...]:
    return (
      PADDING_WORD,
      *self.words,
      OUT_OF_VOCABULARY_WORD,
      BEGINNING_WORD,
      END_WORD,
    )

  @functools.cached_property
  def _ids(self) -> Mapping[str, int]:
    return {word: index for index, word in enumerate(self.words, start=1)}

  def encode(self, text: str) -> list[int]:
    """Lower-cases text, splits it like the data and returns word ids.

    Adds no beginning or end; unlisted words are out-of-vocabulary.
    """
    ids, unknown = self._ids, self.out_of_vocabulary
    return [ids.get(word, unknown) for word in tokenizer.tokenize(text)]

  def encode_all(self, texts: Sequence[str]) -> Iterator[list[int]]:
    """Yields the ids of each text, as from `encode`."""
    return map(self.encode, texts)

  def decode(self, ids: Iterable[int]) -> list[str]:
    """Returns the word of each id, with special ids as `<PAD>`, `<UNK>`, etc.

    Raises:
      ValueError: An id is outside 0..size - 1.
    """
    ids = [int(i) for i in np.asarray(ids, dtype=np.int64).ravel()]
    for i in ids:
      if not 0 <= i < self.size:
        raise ValueError(
          f'{i} is not an id of this vocabulary of {self.size} ids.'
        )
    return [self._names[i] for i in ids]

  def text_of(self, ids: Iterable[int]) -> str:
    """Returns ids as readable text, with spaces between words.

    Raises:
      ValueError: An id is outside 0..size - 1.
    """
    return ' '.join(self.decode(ids))

  def save(self, path: str) -> None:
    """Writes the words to a UTF-8 file, one per line."""
    text = ''.join(word + '\n' for word in self.words)
    # `load` drops a byte order mark; a word that begins with one must keep it.
    mark = '\ufeff' if text.startswith('\ufeff') else ''
    files.write_atomically(path, mark + text)

  @classmethod
  def load(cls, path: str) -> Vocabulary:
    """Reads a file that `save` wrote.

    Raises:
      ValueError: The file is missing, not UTF-8 or not a valid word list.
    """
    try:
      with open(path, encoding='utf-8-sig', newline='\n') as file:
        text = file.read()
      if not text.endswith('\n'):
        raise ValueError('its last line is not complete')
      return cls(tuple(text[:-1].split('\n')))
    except FileNotFoundError:
      raise ValueError(
        f'There is no vocabulary file {path}; a training run writes it as '
        f'{cls.FILE_NAME} into its folder.'
      ) from None
    except ValueError as error:
      raise ValueError(
        f'{path} is not a vocabulary (one word per line in UTF-8): {error}'
      ) from None


@dataclasses.dataclass(frozen=True)
class CharacterVocabulary(Vocabulary):
  """The characters of a task whose tokens are characters.

  Case is preserved. Unicode control pictures represent space, line feed,
  carriage return and tab, both in `words` and in the file.

  >>> v = CharacterVocabulary(('a', '\N{SYMBOL FOR SPACE}'))
  >>> v.encode('a aA'), v.text_of([1, 2, 1])
  ([1, 2, 1, 3], 'a a')
  """

  FILE_NAME: ClassVar[str] = 'characters.txt'

  def __post_init__(self):
    super().__post_init__()
    for word in self.words:
      if len(word) != 1 or word in _PICTURES:
        raise ValueError(f'{word!r} is not a single visible character.')

  def encode(self, text: str) -> list[int]:
    """Returns the id of each character; adds no beginning or end."""
    ids, unknown = self._ids, self.out_of_vocabulary
    return [ids.get(character, unknown) for character in visible(text)]

  def text_of(self, ids: Iterable[int]) -> str:
    """Returns ids as text, with white space restored.

    Raises:
      ValueError: An id is outside 0..size - 1.
    """
    return ''.join(self.decode(ids)).translate(_FROM_PICTURES)


def visible(text: str) -> str:
  """Replaces spaces, line ends and tabs with Unicode control pictures.

  >>> visible('a b') == 'a\N{SYMBOL FOR SPACE}b'
  True
  """
  return text.translate(_TO_PICTURES)
