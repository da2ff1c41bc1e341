"""Subword vocabularies: SentencePiece models of the training words."""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import os
import re
from typing import Any, Callable, ClassVar, Iterable, Iterator, Sequence

import numpy as np

from si_federated import files
from si_federated.tasks import tokenizer
from si_federated.tasks.classification_task import ClassificationTask
from si_federated.tasks.docstring_corpus.source_files import store_folder
from si_federated.tasks.populations import ClientPopulation
from si_federated.tasks.store_writer import SPLITS, StoreWriter
from si_federated.tasks.task import Task
from si_federated.tasks.token_arrays import MAX_WORDS, UNLISTED, TokenArrays
from si_federated.tasks.token_store import (
  open_or_build,
  open_store,
  progress_bar,
  try_open_store,
)
from si_federated.tasks.vocabulary import CharacterVocabulary, Vocabulary

# Prefix of pieces that begin a word; SentencePiece's symbol for a space.
BOUNDARY = '\N{LOWER ONE EIGHTH BLOCK}'
# Words that are never split.
_LOGGER = logging.getLogger(__name__)

_WHOLE = (tokenizer.URL_TOKEN, tokenizer.CODE_TOKEN)
# Increment to invalidate existing stores.
_VERSION = 1
_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True)
class SubwordVocabulary(Vocabulary):
  """The pieces of a SentencePiece model, with the ids of `Vocabulary`.

  Piece i of the model has id i, starting at 1. A word with a character that no
  piece contains is out-of-vocabulary as a whole. Text is lower-cased and split
  into words like the data; no piece spans two words.

  Attributes:
    words: The V pieces; `BOUNDARY` prefixes those that begin a word.
    model: The bytes of the model file.
  """

  FILE_NAME: ClassVar[str] = 'vocabulary.model'

  model: bytes = dataclasses.field(repr=False)

  @classmethod
  def from_model(cls, model: bytes) -> SubwordVocabulary:
    """Returns the vocabulary of a model from `train_model`.

    Raises:
      ValueError: The model is of another kind, or the package sentencepiece is
        missing.
    """
    processor = _processor(model)
    pieces = [processor.id_to_piece(i) for i in range(len(processor))]
    specials = (processor.bos_id(), processor.eos_id(), processor.pad_id())
    if processor.unk_id() != 0 or specials != (-1, -1, -1):
      raise ValueError('its special pieces are not those of this project')
    return cls(tuple(pieces[1:]), model)

  @functools.cached_property
  def _model(self) -> Any:
    return _processor(self.model)

  @functools.cached_property
  def begins_word(self) -> np.ndarray:
    """`[size]` bool: False for ids that continue a word."""
    begins = [piece.startswith(BOUNDARY) for piece in self.words]
    return np.array([True, *begins, True, True, True])

  def encode_words(self, words: Sequence[str]) -> list[list[int]]:
    """Returns the ids of the pieces of each word."""
    unknown = [self.out_of_vocabulary]
    return [
      ids if ids and 0 not in ids else unknown
      for ids in self._model.encode(list(words), num_threads=1)
    ]

  def encode(self, text: str) -> list[int]:
    """Lower-cases text, splits it like the data and returns piece ids."""
    words = self.encode_words(tokenizer.tokenize(text))
    return [i for ids in words for i in ids]

  def text_of(self, ids: Iterable[int]) -> str:
    """Joins pieces into words and words with spaces.

    Raises:
      ValueError: An id is outside 0..size - 1.
    """
    ids = list(ids)
    parts = [
      piece if 0 < i <= len(self.words) else BOUNDARY + piece
      for i, piece in zip(ids, self.decode(ids))
    ]
    return ''.join(parts).replace(BOUNDARY, ' ').strip()

  def save(self, path: str) -> None:
    """Writes the model in SentencePiece's file format."""
    files.write_atomically(path, self.model)

  @classmethod
  def load(cls, path: str) -> SubwordVocabulary:
    """Reads a file that `save` wrote.

    Raises:
      ValueError: The file is missing or not such a model, or the package
        sentencepiece is missing.
    """
    _package()
    try:
      with open(path, 'rb') as file:
        return cls.from_model(file.read())
    except (OSError, ValueError) as error:
      raise ValueError(
        f'{path} is not a vocabulary of pieces ({error}); a training run with '
        f'--vocabulary=sentencepiece writes it as {cls.FILE_NAME} into its '
        'folder.'
      ) from error


def sentencepiece(*, size: int = 4096) -> Callable[[Any], Any]:
  """Subword pieces of a unigram model (Kudo 2018, arXiv 1804.10959).

  The model is trained on the training clients' words and their counts. This is
  equivalent to training on sentences because no piece spans two words. Training
  it is not private, which privacy.json records. It uses all words listed in the
  task's store, at most 65,534, regardless of `--vocab_size`; any other word
  becomes the unknown piece. All splits are then stored as pieces next to the
  word store.

  Sentences are cut to `sequence_length` pieces. Losses and perplexities are per
  piece; raise the perplexity to the power of `tokens_per_word` in the run's
  task.json to get the perplexity per word.

  Args:
    size: V, the maximum number of pieces without the special ids: 4096 pieces
      give 4,100 ids. Short texts may give fewer pieces.

  Returns:
    A function that converts a task of words to a task of pieces.

  Raises:
    ValueError: `size` is out of range, or the package sentencepiece is missing.
      The returned function also raises it for a task of characters, for text
      with more than `size` distinct characters, and if the store cannot be
      written.
  """
  if not 1 <= size <= MAX_WORDS:
    raise ValueError(f'size must be from 1 to {MAX_WORDS}; got {size}.')
  _package()
  return functools.partial(_task_of_pieces, size=size)


def train_model(counts: Iterable[tuple[str, int]], size: int) -> bytes:
  """Trains a SentencePiece model, deterministically.

  Args:
    counts: Words and their counts in the text.
    size: The maximum number of pieces, without the unknown piece.

  Returns:
    The bytes of the model file.

  Raises:
    ValueError: There are no words, or more than `size` distinct characters.
  """
  # Skip entries with white space: the tokenizer yields none, and a tab would
  # end the field.
  counts = [
    (word, count)
    for word, count in counts
    if count > 0 and [word] == word.split()
  ]
  if not counts:
    raise ValueError('There are no words to learn subwords from.')
  present = {word for word, _ in counts}
  characters = {character for word in present for character in word}
  target = io.BytesIO()
  try:
    _package().SentencePieceTrainer.train(
      sentence_iterator=(f'{word}\t{count}' for word, count in counts),
      input_format='tsv',
      model_writer=target,
      model_type='unigram',
      vocab_size=size + 1,
      hard_vocab_limit=False,
      normalization_rule_name='identity',
      # Rare characters get no piece unless they are ASCII.
      character_coverage=0.9995,
      required_chars=''.join(sorted(filter(str.isascii, characters))),
      user_defined_symbols=[BOUNDARY + w for w in _WHOLE if w in present],
      unk_id=0,
      bos_id=-1,
      eos_id=-1,
      pad_id=-1,
      num_threads=1,  # The order of summation changes the model.
      minloglevel=2,
    )
  except RuntimeError as error:
    reason = str(error).rpartition('] ')[2].strip().rstrip('.')
    # Its sizes count the unknown piece.
    if needed := re.search(r'required_chars\. \d+ vs (\d+)', reason):
      raise ValueError(
        f'--vocabulary=sentencepiece:size={size} is too small: the characters '
        f'of these {len(counts)} words alone need {int(needed[1]) - 1} pieces.'
      ) from error
    raise ValueError(
      f'SentencePiece cannot learn {size} pieces from these '
      f'{len(counts)} words ({reason}); give another size.'
    ) from error
  model = target.getvalue()
  found = _processor(model).get_piece_size() - 1
  if found < size:
    _LOGGER.warning(
      '%d pieces were requested; these %d words give %d.',
      size,
      len(counts),
      found,
    )
  return model


def _package() -> Any:
  try:
    import sentencepiece as package
  except ImportError as error:
    raise ValueError(
      'Subword vocabularies need the package sentencepiece; install it by '
      "pip install 'si_federated[subword]', or leave out --vocabulary."
    ) from error
  return package


def _processor(model: bytes) -> Any:
  try:
    if not model:
      raise RuntimeError('it is empty')
    return _package().SentencePieceProcessor(model_proto=model)
  except RuntimeError as error:
    raise ValueError(f'SentencePiece cannot read it: {error}') from error


def _task_of_pieces(
  task: Task | ClassificationTask, *, size: int
) -> Task | ClassificationTask:
  if isinstance(task, ClassificationTask):
    return task.recode(
      lambda counts: SubwordVocabulary.from_model(
        train_model(counts.items(), size)
      )
    )
  if isinstance(task.vocabulary, CharacterVocabulary):
    raise ValueError(
      f'Task {task.name} predicts characters, which have no subwords; leave '
      'out --vocabulary=sentencepiece.'
    )
  folder = task.train.arrays.folder
  if folder is None:
    vocabulary, arrays = _in_memory(task, size)
  else:
    vocabulary, arrays = _in_store(task.name, os.path.dirname(folder), size)
  train, validation, test = (
    ClientPopulation(arrays[split], len(vocabulary.words), task.sequence_length)
    for split in SPLITS
  )
  return Task(
    task.name, vocabulary, task.sequence_length, train, validation, test
  )


def _in_memory(
  task: Task, size: int
) -> tuple[SubwordVocabulary, dict[str, TokenArrays]]:
  words = task.vocabulary.words
  vocabulary = _learn(words, task.train.arrays, size)
  table = _PieceTable(words, vocabulary)
  arrays = {
    split: TokenArrays.from_clients(
      {
        name: [part.tolist() for part in np.split(ranks, np.cumsum(sizes)[:-1])]
        for name, ranks, sizes in _clients(getattr(task, split).arrays, table)
      }
    )
    for split in SPLITS
  }
  return vocabulary, arrays


def _in_store(
  name: str, folder: str, size: int
) -> tuple[SubwordVocabulary, dict[str, TokenArrays]]:
  source = open_store(folder)
  key = {
    'words': source.meta['key'],
    'size': size,
    'sentencepiece': _package().__version__,
    'version': _VERSION,
  }
  target = store_folder(folder, suffix=f'.sentencepiece-{size}', task=name)
  store = try_open_store(target, key=key)
  if store is None:
    vocabulary = _learn(source.words, source.splits['train'], size)
    table = _PieceTable(source.words, vocabulary)

    def fill(writer: StoreWriter) -> None:
      writer.add_file(SubwordVocabulary.FILE_NAME, vocabulary.model)
      total = sum(len(a.client_offsets) - 1 for a in source.splits.values())

      def clients():
        for split, arrays in source.splits.items():
          for client in _clients(arrays, table):
            yield (split, *client)

      for client in progress_bar(
        clients(), total=total, label='Cutting words into pieces'
      ):
        writer.add_ranks(*client)

    store = open_or_build(target, fill, key=key, words=vocabulary.words)
  model = os.path.join(store.folder, SubwordVocabulary.FILE_NAME)
  return SubwordVocabulary.load(model), dict(store.splits)


def _learn(
  words: Sequence[str], train: TokenArrays, size: int
) -> SubwordVocabulary:
  counts = np.zeros([UNLISTED + 1], np.int64)
  for start in range(0, len(train.tokens), _CHUNK):
    block = train.tokens[start : start + _CHUNK]
    counts += np.bincount(block, minlength=len(counts))
  return SubwordVocabulary.from_model(
    train_model(zip(words, counts.tolist()), size)
  )


class _PieceTable:
  """The pieces of each word as ranks; the last entry is for unlisted words."""

  def __init__(self, words: Sequence[str], vocabulary: SubwordVocabulary):
    unknown = vocabulary.out_of_vocabulary
    pieces = [*vocabulary.encode_words(words), [unknown]]
    self._lengths = np.array([len(ids) for ids in pieces])
    self._starts = np.cumsum(self._lengths) - self._lengths
    flat = np.array([i for ids in pieces for i in ids])
    self._ranks = np.where(flat == unknown, UNLISTED, flat - 1).astype('<u2')

  def cut(
    self, ranks: np.ndarray, sizes: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Cuts words into pieces.

    Args:
      ranks: `[n]` ranks of the words of concatenated sentences.
      sizes: `[sentences]` number of words in each sentence.

    Returns:
      The ranks of the pieces and the number of pieces in each sentence.
    """
    index = np.minimum(ranks, len(self._lengths) - 1)
    lengths = self._lengths[index]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    # Offset of each piece's source from its position in the result.
    shifts = np.repeat(self._starts[index] - ends[:-1], lengths)
    result = self._ranks[np.arange(ends[-1]) + shifts]
    bounds = ends[np.concatenate([[0], np.cumsum(sizes)])]
    return result, np.diff(bounds)


def _clients(
  arrays: TokenArrays, table: _PieceTable
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """Yields the name, piece ranks and sentence sizes of each client."""
  population = ClientPopulation(arrays, 1, 1)
  for index in range(len(population)):
    start, stop = arrays.client_offsets[index : index + 2].tolist()
    offsets = np.asarray(arrays.sentence_offsets[start : stop + 1])
    ranks = np.asarray(arrays.tokens[offsets[0] : offsets[-1]])
    yield population.client_id(index), *table.cut(ranks, np.diff(offsets))
