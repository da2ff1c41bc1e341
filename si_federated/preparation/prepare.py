"""Converts dumps and tables of text to client data for `stackoverflow`."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import lzma
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, Optional

from si_federated import files
from si_federated.preparation import dump, source_tree, store, table_files
from si_federated.preparation.records import Counts, Record
from si_federated.tasks import splits

DATABASE_NAME = 'stackoverflow.sqlite'
WORD_COUNT_NAME = 'stackoverflow.word_count'
TAG_COUNT_NAME = 'stackoverflow.tag_count'
SUMMARY_NAME = 'preparation.json'
SOURCES = ('stackexchange', 'jsonl', 'csv', 'comments')
SPLITS = ('date', 'hash')
_WORK = '.preparing'
_LONELY = (
  'the title, tags and score of their question, which the dump lacks or which '
  'cannot be read'
)
_SPLIT_NAMES = {'train': 'train', 'validation': 'heldout', 'test': 'test'}
_NAMES = ('Posts.xml', 'Comments.xml')


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings of a preparation.

  Attributes:
    source: One of `SOURCES`.
    input: The file or folder.
    output: The folder for the results.
    split: `date`, as TFF splits Stack Overflow: users whose number is a
      multiple of 10 are held out, and others' text from `split_date` on is for
      tests; or `hash`: a hash of the names chooses a tenth of the users for
      validation and a tenth for tests.
    split_date: The day, such as `2018-01-01`.
    comments: Whether the comments of a dump are used.
    min_sentences: Users with fewer sentences are left out; 100 in TFF's data.
    text_column: The column of a table with the text.
    client_column: The column of a table with the user's name.
    is_html: Whether the texts of a table have tags.
    encoding: The encoding of a table, or of the files of a source tree that are
      not UTF-8, such as `latin-1`; None for UTF-8, or for the encoding of a
      byte order mark.
    overwrite: Whether to replace the results of an earlier preparation.
  """

  source: str
  input: str
  output: str
  split: str = 'date'
  split_date: str = '2018-01-01'
  comments: bool = True
  min_sentences: int = 1
  text_column: str = 'text'
  client_column: str = 'client_id'
  is_html: bool = False
  encoding: Optional[str] = None
  overwrite: bool = False

  def __post_init__(self):
    if self.source not in SOURCES:
      raise ValueError(
        f'--source={self.source} must be one of {", ".join(SOURCES)}.'
      )
    if self.split not in SPLITS:
      raise ValueError(
        f'--split={self.split} must be one of {", ".join(SPLITS)}.'
      )
    try:
      datetime.date.fromisoformat(self.split_date)
    except ValueError:
      raise ValueError(
        f'--split_date={self.split_date} must be a day such as 2018-01-01.'
      ) from None
    if self.min_sentences < 1:
      raise ValueError(
        f'--min_sentences must be at least 1, found {self.min_sentences}.'
      )


def prepare(settings: Settings) -> dict[str, Any]:
  """Writes client data, word and tag counts, and a summary.

  The input is read once and sorted by user on disk. Complete results are
  renamed to their final names. Memory does not grow with the input.

  Args:
    settings: The settings.

  Returns:
    The summary, as in `preparation.json`.

  Raises:
    ValueError: If the input is missing, damaged or without sentences, or if the
      output exists.
    OSError: If a file cannot be written.
  """
  final = os.path.join(settings.output, DATABASE_NAME)
  if os.path.exists(final) and not settings.overwrite:
    raise ValueError(
      f'{final} already exists; give another --output, or --overwrite to '
      'replace it.'
    )
  if not os.path.exists(settings.input):
    raise ValueError(
      f'There is no {settings.input}; name the file or folder with --input.'
    )
  os.makedirs(settings.output, exist_ok=True)
  with _work_folder(settings.output) as work:
    counts = Counts('file' if settings.source == 'comments' else 'row')
    with store.open_database(os.path.join(work, 'staging')) as staging:
      store.create_staging(staging)
      num_records = 0
      unit = 'row' if settings.source == 'stackexchange' else 'line'
      for path, records in _sources(settings, work, counts, staging):

        def left_out(reason: str, record: Record, path: str = path) -> None:
          counts.leave_out(reason, path, record.row, unit)

        num_records += store.stage(staging, records, left_out)
      if lonely := store.orphans(staging):
        counts.dropped[_LONELY] = lonely
      totals = store.write_client_data(
        staging,
        os.path.join(work, DATABASE_NAME),
        _splitter(settings),
        num_records=num_records,
        min_sentences=settings.min_sentences,
      )
      if not totals.clients:
        raise ValueError(_nothing(settings, counts))
      store.write_counts(
        totals,
        os.path.join(work, WORD_COUNT_NAME),
        os.path.join(work, TAG_COUNT_NAME),
      )
    summary = {
      'settings': dataclasses.asdict(settings),
      **counts.as_json(),
      'clients_left_out': totals.small,
      'clients': totals.clients,
      'sentences': totals.sentences,
      'words': totals.num_words,
    }
    with open(os.path.join(work, SUMMARY_NAME), 'w', encoding='utf-8') as file:
      json.dump(summary, file, indent=2)
      file.write('\n')
    # The file that indicates success comes last.
    for name in (SUMMARY_NAME, TAG_COUNT_NAME, WORD_COUNT_NAME, DATABASE_NAME):
      source = os.path.join(work, name)
      with open(source, 'rb') as written:
        os.fsync(written.fileno())
      os.replace(source, os.path.join(settings.output, name))
  return {**summary, 'notes': [*counts.sentences(), *_notes(settings, summary)]}


def _nothing(settings: Settings, counts: Counts) -> str:
  why = counts.sentences()
  least = settings.min_sentences
  users = f' of users with {least} sentences or more' if least > 1 else ''
  return f'{settings.input} has no text{users} to learn from' + (
    f': {why[0]}' if why else ', it is empty.'
  )


def _notes(settings: Settings, summary: dict[str, Any]) -> list[str]:
  small = summary['clients_left_out']
  notes = (
    [
      f'{small:,} users were left out: with fewer than '
      f'{settings.min_sentences} sentences.'
    ]
    if small
    else []
  )
  missing = [n for n in _SPLIT_NAMES.values() if n not in summary['clients']]
  if not missing:
    return notes
  advice = (
    ' (or give another --split_date, or --split=hash)'
    if settings.split == 'date'
    else ''
  )
  return [
    *notes,
    f'No sentences fall into the split {" and ".join(missing)}: the task '
    f'stackoverflow takes a tenth of the training clients instead{advice}.',
  ]


def _splitter(settings: Settings) -> Callable[[str, str], str]:
  def by_hash(client: str, unused_date: str) -> str:
    return _SPLIT_NAMES[splits.split_of(client)]

  def by_date(client: str, date: str) -> str:
    if client.isdecimal() and int(client) % 10 == 0:
      return 'heldout'
    # Dates of this form sort as strings.
    return 'train' if date < settings.split_date else 'test'

  return by_date if settings.split == 'date' else by_hash


def _sources(
  settings: Settings, work: str, counts: Counts, staging: sqlite3.Connection
) -> Iterator[tuple[str, Iterator[Record]]]:
  """Yields the files to read and their records."""
  path = settings.input
  if settings.source == 'comments':
    yield (
      path,
      source_tree.read_tree(
        path,
        counts,
        is_new=store.Distinct(staging).add,
        encoding=settings.encoding,
      ),
    )
    return
  if settings.source != 'stackexchange':
    yield (
      path,
      table_files.read_table(
        path,
        counts,
        kind=settings.source,
        text=settings.text_column,
        client=settings.client_column,
        is_html=settings.is_html,
        encoding=settings.encoding,
      ),
    )
    return
  if path.endswith('.7z'):
    path = _unpack(path, work)
  posts, comments = dump.find_files(path)
  yield posts, dump.read_posts(posts, counts)
  if comments and settings.comments:
    yield comments, dump.read_comments(comments, counts)


def _unpack(path: str, work: str) -> str:
  """Unpacks the files of a dump, and returns their folder."""
  try:
    import py7zr
  except ImportError:
    raise ValueError(
      f"Unpacking {path} needs py7zr: pip install 'si_federated[dump]', "
      'or unpack it and give the folder.'
    ) from None
  try:
    with py7zr.SevenZipFile(path) as archive:
      found = [n for n in archive.getnames() if os.path.basename(n) in _NAMES]
      folder = os.path.join(work, 'unpacked')
      archive.extract(folder, targets=found)
  except (py7zr.exceptions.ArchiveError, lzma.LZMAError, EOFError) as error:
    raise ValueError(
      f'{path} is damaged or not a 7z archive ({error}); download it again.'
    ) from error
  if not found:
    raise ValueError(f'{path} has no Posts.xml; give the dump of a site.')
  return os.path.join(folder, os.path.dirname(found[0]))


@contextlib.contextmanager
def _work_folder(output: str) -> Iterator[str]:
  """Creates the folder for unfinished files, and removes it at the end.

  Files that a killed process left there are removed first.
  """
  with files.lock_folder(output, 'preparing data in'):
    work = os.path.join(output, _WORK)
    shutil.rmtree(work, ignore_errors=True)
    os.mkdir(work)
    try:
      yield work
    finally:
      shutil.rmtree(work, ignore_errors=True)
