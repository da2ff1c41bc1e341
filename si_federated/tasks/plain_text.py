"""Plain text files as training data, with their own or a task's vocabulary."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import os
from typing import Any, Iterable, Iterator, Mapping, Sequence

import numpy as np

from si_federated import files
from si_federated.tasks import text_files
from si_federated.tasks.docstring_corpus.cleaning import split_sentences
from si_federated.tasks.docstring_corpus.source_files import stamp
from si_federated.tasks.populations import ClientPopulation
from si_federated.tasks.splits import split_all
from si_federated.tasks.store_writer import SPLITS, StoreWriter
from si_federated.tasks.task import Task, check_sizes, task_from_store
from si_federated.tasks.token_arrays import UNLISTED
from si_federated.tasks.token_store import (
  TokenStore,
  open_or_build,
  progress_bar,
)
from si_federated.tasks.tokenizer import tokenize
from si_federated.tasks.vocabulary import CharacterVocabulary, Vocabulary

# Increment to invalidate existing stores.
_VERSION = 2
# Lines per document, so that parts of a long file can be held out.
_LINES = 200


def text_task(
  pattern: str,
  *,
  vocab_size: int,
  sequence_length: int,
  vocabulary: Vocabulary | None = None,
  by_line: bool = False,
  encoding: str | None = None,
) -> Task:
  """Makes a task of plain text.

  Documents are files, or parts of some 200 lines of longer files. A tenth of
  them is held out for validation, another for test. They are split into
  sentences, and sentences into words by the rules of the task `docstrings` or
  by the vocabulary. The user's cache folder keeps the result.

  Args:
    pattern: The files, with wildcards; `**` matches all folders below. `.gz`
      and `.xz` files are unpacked.
    vocab_size: V, the number of words with an id.
    sequence_length: T, the number of words to which sentences are cut.
    vocabulary: If given, replaces the vocabulary of `vocab_size` words.
    by_line: Whether sentences also end at line ends. Otherwise lines are
      wrapped text, and an empty line ends a paragraph.
    encoding: The files' encoding, such as `latin-1`; None for UTF-8, or that
      of a byte order mark.

  Returns:
    The task.

  Raises:
    ValueError: If there are no such files, too little text, or text in another
      encoding.
  """
  check_sizes(vocab_size, sequence_length)
  paths = _find(pattern)
  if vocabulary is not None:
    store = _encoded(
      paths,
      vocabulary,
      sequence_length,
      by_line=by_line,
      encoding=encoding,
      hold_out=True,
    )
    train, validation, test = (
      _population(store, split, vocabulary, sequence_length) for split in SPLITS
    )
    return Task('text', vocabulary, sequence_length, train, validation, test)

  def fill(writer: StoreWriter) -> None:
    held = _held_out(paths, by_line, encoding)
    for name, lines in _progress(paths, by_line, encoding):
      texts = (' '.join(tokenize(s)) for s in _sentences(lines, by_line))
      writer.add_client(
        held.get(name, 'train'), name, [text.encode() for text in texts if text]
      )

  store = _open(paths, fill, {'by_line': by_line}, encoding)
  return task_from_store(
    'text', store, vocab_size=vocab_size, sequence_length=sequence_length
  )


def train_on_text(
  task: Task,
  pattern: str,
  *,
  by_line: bool = False,
  encoding: str | None = None,
) -> Task:
  """Replaces a task's training clients by plain text.

  Args:
    task: The task, which keeps its vocabulary and evaluation.
    pattern: See `text_task`; nothing is held out.
    by_line: See `text_task`.
    encoding: See `text_task`.

  Returns:
    The task with documents as training clients.

  Raises:
    ValueError: If there are no such files, no text, or text in another
      encoding.
  """
  vocabulary, length = task.vocabulary, task.sequence_length
  store = _encoded(
    _find(pattern),
    vocabulary,
    length,
    by_line=by_line,
    encoding=encoding,
    hold_out=False,
  )
  population = _population(store, 'train', vocabulary, length)
  return dataclasses.replace(task, train=population)


def find_text(pattern: str) -> list[list[Any]]:
  """Returns path, size and time of the files that match a pattern.

  Args:
    pattern: See `text_task`.

  Returns:
    Sorted `[path, bytes, nanoseconds]`.

  Raises:
    ValueError: If no file matches.
  """
  return [[path, *stamp(path)] for path in _find(pattern)]


def _find(pattern: str) -> list[str]:
  found = glob.glob(os.path.expanduser(pattern), recursive=True)
  paths = sorted(os.path.abspath(p) for p in found if os.path.isfile(p))
  if not paths:
    raise ValueError(
      f'No file matches {pattern}; quote a name with wildcards, and give it '
      'relative to the working folder.'
    )
  return paths


def _encoded(
  paths: Sequence[str],
  vocabulary: Vocabulary,
  length: int,
  *,
  by_line: bool,
  encoding: str | None,
  hold_out: bool,
) -> TokenStore:
  """Opens or builds the store of text in the tokens of a vocabulary.

  Characters are cut into windows, so that all text is used, as in the task
  `shakespeare`; other sentences are cut to their beginnings.
  """
  window = length if isinstance(vocabulary, CharacterVocabulary) else None
  unknown = vocabulary.out_of_vocabulary

  def encode(lines: Iterable[str]) -> Iterator[np.ndarray]:
    for text in _sentences(lines, by_line):
      ids = np.array(vocabulary.encode(text), np.int64)
      ranks = np.where(ids == unknown, UNLISTED, ids - 1)
      step = window or max(len(ranks), 1)
      for start in range(0, len(ranks), step):
        yield ranks[start : start + step]

  def fill(writer: StoreWriter) -> None:
    held = _held_out(paths, by_line, encoding) if hold_out else {}
    for name, lines in _progress(paths, by_line, encoding):
      parts = list(encode(lines))
      if parts:
        sizes = [len(part) for part in parts]
        split = held.get(name, 'train')
        writer.add_ranks(split, name, np.concatenate(parts), sizes)
    if not writer.num_clients('train'):
      raise ValueError(
        f'There is no text in {", ".join(paths[:3])}; give other files.'
      )

  words = hashlib.sha256('\n'.join(vocabulary.words).encode()).hexdigest()
  options = {
    'by_line': by_line,
    'vocabulary': [type(vocabulary).__name__, words],
    'window': window,
    'hold_out': hold_out,
  }
  return _open(paths, fill, options, encoding, vocabulary.words)


def _population(
  store: TokenStore, split: str, vocabulary: Vocabulary, length: int
) -> ClientPopulation:
  return ClientPopulation(store.splits[split], len(vocabulary.words), length)


def _held_out(
  paths: Sequence[str], by_line: bool, encoding: str | None
) -> Mapping[str, str]:
  names = [name for name, _ in _documents(paths, by_line, encoding)]
  try:
    return split_all(names)
  except ValueError as error:
    raise ValueError(
      f'The text of {", ".join(paths[:3])} is too short to hold a part of it '
      f'out ({error})'
    ) from error


def _open(
  paths: Sequence[str],
  fill: Any,
  options: dict[str, Any],
  encoding: str | None,
  words: Sequence[str] | None = None,
) -> TokenStore:
  key = {
    'files': [[path, *stamp(path)] for path in paths],
    'version': _VERSION,
    **options,
  }
  # Only if they differ from the defaults, so that older stores are found.
  if encoding is not None:
    key['encoding'] = encoding
  digest = hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:16]
  folder = os.path.join(files.cache_folder(), f'text-{digest}')
  return open_or_build(folder, fill, key=key, words=words)


def _documents(
  paths: Iterable[str], by_line: bool, encoding: str | None
) -> Iterator[tuple[str, list[str]]]:
  """Yields names and lines of documents."""
  for path in paths:
    with text_files.open_text(
      path, encoding=encoding, option='--text_encoding'
    ) as file:
      lines: list[str] = []
      first = 1
      for number, line in enumerate(file, start=1):
        # Marks inside a file come from concatenated files.
        line = line.lstrip('\ufeff')
        # A document ends within a paragraph only if that is very long.
        may_end = by_line or not line.strip()
        if len(lines) >= (_LINES if may_end else 10 * _LINES):
          yield f'{path}:{first}', lines
          lines, first = [], number
        lines.append(line)
      if lines:
        yield f'{path}:{first}', lines


def _progress(
  paths: Sequence[str], by_line: bool, encoding: str | None
) -> Iterator[tuple[str, list[str]]]:
  for path in progress_bar(paths, total=len(paths), label='Reading text'):
    yield from _documents([path], by_line, encoding)


def _sentences(lines: Iterable[str], by_line: bool) -> Iterator[str]:
  paragraph: list[str] = []
  for line in (*lines, ''):
    text = line.strip()
    if text:
      paragraph.append(text)
    if paragraph and (by_line or not text):
      yield from split_sentences(' '.join(paragraph))
      paragraph = []
