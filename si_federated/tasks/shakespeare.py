"""Task `shakespeare`: next-character prediction, one client per speaker."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import Iterator

from si_federated.tasks import table_rows, text_files
from si_federated.tasks.client_database import ClientDatabase
from si_federated.tasks.docstring_corpus.source_files import (
  stamp,
  store_folder,
  tff_database,
  tff_folder,
)
from si_federated.tasks.splits import split_all
from si_federated.tasks.store_writer import StoreWriter
from si_federated.tasks.task import Task, check_sizes, task_from_store
from si_federated.tasks.token_store import open_or_build, progress_bar
from si_federated.tasks.vocabulary import CharacterVocabulary, visible

DATABASE_NAME = 'shakespeare.sqlite'
SPEECHES_NAMES = ('speeches.jsonl', 'speeches.jsonl.xz')
# Increment to invalidate existing stores.
_VERSION = 1


def shakespeare(
  *,
  data_dir: str | None = None,
  vocab_size: int = 10_000,
  sequence_length: int = 80,
  path: str | None = None,
) -> Task:
  """Next-character prediction on plays, with a client for each role in a play.

  The input is a JSON Lines file, plain, `.xz` or `.gz`, a speech per line:
  `text` and either `client_id` or `play` and `speaker`; other fields are
  ignored. TFF's Shakespeare data (from LEAF, arXiv 1812.01097) also work. The
  first use converts the input to token arrays, one store per `sequence_length`,
  next to the input or, if that folder is read-only, in the user's cache folder.

  Each speech is cut into consecutive windows of `sequence_length` characters;
  the last is usually shorter. Each window is one example. It starts with the
  beginning token; a shorter window also ends with the end token. A speech whose
  last window is full therefore has no end token. Every character is a label
  exactly once.

  Differs from `tff.simulation.baselines.shakespeare`:
    * TFF cuts a speech, including its beginning and end tokens, into pieces of
      `sequence_length + 1`. There, the first character of each later piece is
      never a label, and every speech has an end token.
    * The characters are the training clients' code points, not 86 fixed bytes.
    * Whole clients are held out by a hash of their names, a tenth for
      validation and a tenth for test. TFF holds out the last speeches of every
      client; this task reads those, too.
    * Clients with a single line are kept; LEAF drops them.

  Args:
    data_dir: Folder with `speeches.jsonl`, `speeches.jsonl.xz` or
      `shakespeare.sqlite`. None uses TFF's download in `~/.tff`.
    vocab_size: Maximum number of characters with their own id.
    sequence_length: T, the number of characters in a window.
    path: File of speeches, relative to `data_dir` if given.

  Returns:
    The task.

  Raises:
    ValueError: A number is out of range, or a file is missing or damaged.
  """
  check_sizes(vocab_size, sequence_length)
  source = find_source(data_dir, path)

  def fill(writer: StoreWriter) -> None:
    _fill(writer, source, sequence_length)

  store = open_or_build(
    store_folder(
      source, suffix=f'.characters-{sequence_length}', task='shakespeare'
    ),
    fill,
    key={
      'source': stamp(source),
      'sequence_length': sequence_length,
      'version': _VERSION,
    },
  )
  task = task_from_store(
    'shakespeare', store, vocab_size=vocab_size, sequence_length=sequence_length
  )
  return dataclasses.replace(
    task, vocabulary=CharacterVocabulary(task.vocabulary.words)
  )


def find_source(data_dir: str | None, path: str | None) -> str:
  """Returns the path of the speeches, by default TFF's file.

  The arguments are those of `shakespeare`.

  Raises:
    ValueError: No such file exists.
  """
  if path is not None:
    source = os.path.join(data_dir or '', str(path))
    if not os.path.isfile(source):
      raise ValueError(
        f'There is no {source}; give a file of speeches, relative to '
        '--data_dir or the working folder.'
      )
    return source
  if data_dir is not None:
    for name in (*SPEECHES_NAMES, DATABASE_NAME):
      source = os.path.join(data_dir, name)
      if os.path.isfile(source):
        return source
    raise ValueError(
      f'There is no {" or ".join(SPEECHES_NAMES)} or {DATABASE_NAME} in '
      f'{data_dir}; put one there, name a file by '
      "--task=shakespeare:path=FILE, or leave out --data_dir to download TFF's."
    )

  def load() -> None:
    # Imported here because other tasks do not need TFF.
    from tensorflow_federated.python.simulation.datasets import (
      shakespeare as source,
    )

    source.load_data()

  return tff_database(
    DATABASE_NAME,
    load,
    what="TFF's Shakespeare data",
    advice=f'put {DATABASE_NAME} into {tff_folder()}, or give a file of '
    'speeches by --data_dir or --task=shakespeare:path=FILE',
  )


def _fill(writer: StoreWriter, source: str, length: int) -> None:
  """Writes all clients in order of their first speech."""
  clients: dict[str, list[str]] = {}
  for client_id, text in read_speeches(source):
    if text:
      clients.setdefault(client_id, []).append(text)
  try:
    held = split_all(clients)
  except ValueError as error:
    raise ValueError(f'{source}: {error}') from error
  for client_id, speeches in progress_bar(
    clients.items(), total=len(clients), label='Cutting speeches'
  ):
    windows = [
      ' '.join(text[start : start + length]).encode(errors='replace')
      for text in map(visible, speeches)
      for start in range(0, len(text), length)
    ]
    writer.add_client(held.get(client_id, 'train'), client_id, windows)


def read_speeches(source: str) -> Iterator[tuple[str, str]]:
  """Yields the client name and text of each speech.

  Args:
    source: A path returned by `find_source`.

  Raises:
    ValueError: The file is missing or damaged.
  """
  read = _tff_speeches if source.endswith('.sqlite') else _json_speeches
  return read(source)


def _tff_speeches(path: str) -> Iterator[tuple[str, str]]:
  """Yields clients and speeches, TFF's training split first."""
  with contextlib.closing(ClientDatabase(path, 'snippets')) as database:
    for split in sorted(database.splits(), key=lambda name: name != 'train'):
      for client_id, speeches in database.clients(split):
        for speech in speeches:
          try:
            yield client_id, speech.decode()
          except UnicodeDecodeError as error:
            raise ValueError(
              f'{path} has a speech of {client_id!r} that is not UTF-8 text '
              f'({error.reason} at position {error.start}); make the file with '
              'speeches in UTF-8.'
            ) from error


def _json_speeches(path: str) -> Iterator[tuple[str, str]]:
  """Yields clients and speeches from a JSON Lines file."""
  with text_files.open_text(path, newline='\n') as file:
    for row in table_rows.json_rows(file, path):
      try:
        speech = _speech(row)
      except ValueError as error:
        raise ValueError(
          f'{path} is not a file of speeches (line {row.line}: {error}); give '
          'JSON lines, plain or as .xz or .gz, each with `text` and either '
          '`client_id` or `play` and `speaker`.'
        ) from error
      yield speech


def _speech(row: table_rows.Row) -> tuple[str, str]:
  record = row.values
  if row.problem:
    raise ValueError(row.clause)
  fields = ['client_id'] if 'client_id' in record else ['play', 'speaker']
  for name in ('text', *fields):
    if name not in record or (
      name != 'text' and table_rows.is_missing(record[name])
    ):
      raise ValueError(f'it has no `{name}`')
  try:
    client = '/'.join(table_rows.name(record[name]) for name in fields)
    return client, table_rows.text(record['text'])
  except table_rows.OddValueError as error:
    raise ValueError(f'a field is {error}') from error
