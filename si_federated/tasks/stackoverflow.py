"""Task `stackoverflow`: TFF's Stack Overflow data, or data in its format."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tarfile
from typing import IO, Iterator, Mapping

from si_federated.tasks import text_files
from si_federated.tasks.client_database import ClientDatabase
from si_federated.tasks.docstring_corpus.source_files import (
  stamp,
  store_folder,
  tff_database,
  tff_folder,
)
from si_federated.tasks.splits import split_all
from si_federated.tasks.store_writer import SPLITS, StoreWriter
from si_federated.tasks.task import Task, check_sizes, task_from_store
from si_federated.tasks.token_arrays import MAX_WORDS
from si_federated.tasks.token_store import open_or_build, progress_bar

DATABASE_NAME = 'stackoverflow.sqlite'
WORD_COUNT_NAME = 'stackoverflow.word_count'
_LOGGER = logging.getLogger(__name__)
# Split names in this package -> in the file.
_SPLIT_NAMES = {'train': 'train', 'validation': 'heldout', 'test': 'test'}


def stackoverflow(
  *,
  data_dir: str | None = None,
  vocab_size: int = 10_000,
  sequence_length: int = 20,
) -> Task:
  """Next-word prediction on Stack Overflow posts, one client per user.

  Splits, word counts and preprocessing follow TFF's baseline (Reddi et al.
  2020, arXiv 2003.00295). The first use converts the SQLite file to token
  arrays next to it or, if that folder is read-only, in the user's cache folder.

  The file should have the splits `train`, `heldout` and `test`. Each missing
  split gets a tenth of the clients of `train`, or of the only split, chosen by
  a hash of their names.

  Args:
    data_dir: Folder with `stackoverflow.sqlite` and `stackoverflow.word_count`
      (or its `.tar.bz2`). Without word counts, words are ranked by the number
      of training users who use them, ties by their UTF-8 bytes. None uses TFF's
      download in `~/.tff`.
    vocab_size: V, the number of words with their own id.
    sequence_length: T, the maximum number of words per sentence.

  Returns:
    The task.

  Raises:
    ValueError: A number is out of range, or a file is missing or damaged.
  """
  check_sizes(vocab_size, sequence_length)
  if data_dir is None:
    database, counts = _download()
  else:
    database = os.path.join(data_dir, DATABASE_NAME)
    counts = _find_counts(data_dir)
    if not os.path.isfile(database):
      raise ValueError(
        f'There is no {database}; put {DATABASE_NAME} (and {WORD_COUNT_NAME}, '
        'if you have it) there, leave out --data_dir to download both, or use '
        '--task=docstrings, which needs no download.'
      )
  words = _read_words(counts) if counts else None

  def fill(writer: StoreWriter) -> None:
    with contextlib.closing(ClientDatabase(database)) as opened:
      _fill(writer, opened, database)

  # A change of size or modification time invalidates the store.
  key = {'database': stamp(database), 'counts': counts and stamp(counts)}
  folder = store_folder(database, suffix='.tokens', task='stackoverflow')
  store = open_or_build(folder, fill, key=key, words=words)
  return task_from_store(
    'stackoverflow',
    store,
    vocab_size=vocab_size,
    sequence_length=sequence_length,
  )


def _find_counts(folder: str) -> str | None:
  for name in (WORD_COUNT_NAME, WORD_COUNT_NAME + '.tar.bz2'):
    if os.path.isfile(os.path.join(folder, name)):
      return os.path.join(folder, name)
  return None


def _download() -> tuple[str, str | None]:
  """Returns the paths of TFF's files, downloading them if necessary."""
  folder = tff_folder()
  keras_folder = os.path.join(os.path.expanduser('~'), '.keras', 'datasets')

  def counts() -> str | None:
    return _find_counts(folder) or _find_counts(keras_folder)

  # Imported here because other tasks do not need TFF.
  def load() -> None:
    from tensorflow_federated.python.simulation.datasets import (
      stackoverflow as source,
    )

    source.load_data()

  database = tff_database(
    DATABASE_NAME,
    load,
    what='The Stack Overflow data',
    advice=f'put {DATABASE_NAME} and {WORD_COUNT_NAME} into {folder} or a '
    'folder named by --data_dir, or use --task=docstrings, which needs no '
    'download',
  )
  if counts() is None:
    try:
      from tensorflow_federated.python.simulation.datasets import (
        stackoverflow as source,
      )

      source.load_word_counts(vocab_size=1)
    except Exception as error:
      _LOGGER.warning(
        'The word counts cannot be downloaded (%s): counting the words of the '
        'training split.',
        error,
      )
  return database, counts()


def _read_words(path: str) -> list[str]:
  """Reads the most frequent words from lines of `word count`."""
  words: dict[str, None] = {}  # Like TFF, keep the first of duplicates.
  try:
    with _open_counts(path) as file:
      for number, line in enumerate(file, start=1):
        if len(words) == MAX_WORDS:
          break
        parts = line.split()
        if len(parts) != 2 or not parts[1].isdigit():
          raise ValueError(f'line {number} is not a word and a count')
        words[parts[0]] = None
    if not words:
      raise ValueError('it is empty')
  except (OSError, EOFError, ValueError, tarfile.TarError) as error:
    raise ValueError(
      f'{path} is not a list of word counts ({error}); correct it, or rename '
      'it to have the words counted from the training split.'
    ) from error
  return list(words)


@contextlib.contextmanager
def _open_counts(path: str) -> Iterator[IO[str]]:
  if not path.endswith('.tar.bz2'):
    with text_files.open_text(path) as file:
      yield file
    return
  with tarfile.open(path, 'r:bz2') as archive:
    for member in archive:
      if os.path.basename(member.name) == WORD_COUNT_NAME and member.isfile():
        content = archive.extractfile(member)
        assert content is not None  # `isfile` is true.
        yield io.TextIOWrapper(content, encoding='utf-8-sig')
        return
  raise ValueError(f'it contains no {WORD_COUNT_NAME}')


def _fill(writer: StoreWriter, database: ClientDatabase, path: str) -> None:
  present = database.splits()
  plan, held = _plan_splits(database, present, path)
  total = sum(present[name] for name in set(plan.values()))

  def sentences():
    for split, name in plan.items():
      for client_id, found in database.clients(name):
        place = held.get(client_id, split) if split == 'train' else split
        writer.add_client(place, client_id, found)
        # One step per sentence keeps the time estimate accurate.
        yield from found

  for _ in progress_bar(sentences(), total=total, label='Reading sentences'):
    pass
  for split in SPLITS:
    if not writer.num_clients(split):
      raise ValueError(
        f'{path} has no sentences for the {split} split; give each of its '
        'splits a client with sentences.'
      )


def _plan_splits(
  database: ClientDatabase, present: Mapping[str, int], path: str
) -> tuple[dict[str, str], Mapping[str, str]]:
  """Maps the task's splits to those in the file.

  Returns:
    Task split -> file split, and the split of each training client held out to
    fill a split that the file lacks.
  """
  plan = {
    split: name for split, name in _SPLIT_NAMES.items() if name in present
  }
  if len(plan) == len(SPLITS):
    return plan, {}
  if 'train' not in plan:
    if len(present) != 1:
      names = ', '.join(sorted(present)) or 'none'
      raise ValueError(
        f'{path} has the splits {names}; name them train, heldout and test, or '
        'put all clients into one split.'
      )
    plan = {'train': next(iter(present))}
  missing = tuple(split for split in SPLITS if split not in plan)
  _LOGGER.warning(
    '%s lacks the split for %s: each gets a tenth of the clients of %s, by a '
    'hash of their names.',
    path,
    ' and '.join(missing),
    plan['train'],
  )
  return plan, split_all(database.client_ids(plan['train']), held=missing)
