"""Task `shakespeare`: the next character of speeches, one speaker a client."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import lzma
import os
from typing import Iterator, TextIO

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
# Raise it when stores kept from before must be built anew.
_VERSION = 1


def shakespeare(
  *,
  data_dir: str | None = None,
  vocab_size: int = 10_000,
  sequence_length: int = 80,
  path: str | None = None,
) -> Task:
  """Next-character prediction on plays; a client is a role of one play.

  The text is a file of JSON lines, one speech a line with `text` and either
  `client_id` or `play` and `speaker` (others are ignored), plain or as `.xz`;
  or TFF's Shakespeare data (of LEAF, arXiv 1812.01097). The first use turns it
  into token arrays beside it (in the user's cache folder if that cannot be
  written), one for each `sequence_length`.

  A speech is cut into consecutive windows of `sequence_length` characters, the
  last one shorter as a rule. Each window is an example: opened by the beginning
  token, and closed by the end token if it is shorter, so that the end token
  comes once after a speech (never after one whose last window is full). Every
  character is a label exactly once.

  Differs from `tff.simulation.baselines.shakespeare`: there a speech with its
  beginning and end token is cut into pieces of `sequence_length + 1`, so that a
  later piece begins with a character of the text, which is never a label, and
  the end token is never missing. Characters are those of the training clients
  (code points, not bytes) instead of 86 fixed ones. Other clients are held out,
  a tenth of all for validation and for test, by a hash of their names, where
  TFF holds out the last speeches of every client (those are read too). Without
  LEAF's filter of clients with a single line.

  Args:
    data_dir: Folder with `speeches.jsonl`, `speeches.jsonl.xz` or
      `shakespeare.sqlite`. None for TFF's own download in `~/.tff`.
    vocab_size: The most characters that have an id of their own.
    sequence_length: T, the number of characters in a window.
    path: The file of speeches, in `data_dir` if that is given.

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
  """Returns the file of speeches, TFF's if none is named.

  Args:
    data_dir: As for `shakespeare`, as is `path`.
    path: See there.

  Raises:
    ValueError: There is none.
  """
  if path is not None:
    source = os.path.join(data_dir or '', str(path))
    if not os.path.isfile(source):
      raise ValueError(
        f'There is no {source}; give the name of a file of speeches, from '
        '--data_dir or the working folder on.'
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
    # TFF is loaded only here: the other tasks do without it.
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
  """Writes all clients, in the order of their first speech."""
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
  """Yields the client and the text of each speech.

  Args:
    source: What `find_source` returned.

  Raises:
    ValueError: It is missing or damaged.
  """
  read = _tff_speeches if source.endswith('.sqlite') else _json_speeches
  return read(source)


def _tff_speeches(path: str) -> Iterator[tuple[str, str]]:
  """Yields clients and speeches, first those that TFF trains on."""
  with contextlib.closing(ClientDatabase(path, 'snippets')) as database:
    for split in sorted(database.splits(), key=lambda name: name != 'train'):
      for client_id, speeches in database.clients(split):
        for speech in speeches:
          yield client_id, speech.decode(errors='replace')


def _json_speeches(path: str) -> Iterator[tuple[str, str]]:
  """Yields clients and speeches of a file of JSON lines."""
  try:
    with _open_text(path) as file:
      for number, line in enumerate(file, start=1):
        if not line.strip():
          continue
        try:
          speech = _speech(json.loads(line))
        except ValueError as error:
          raise ValueError(f'line {number}: {error}') from error
        yield speech
  except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
    raise ValueError(
      f'{path} is no file of speeches ({error}); give JSON lines in UTF-8, '
      'plain or as .xz, each with `text` and either `client_id` or `play` and '
      '`speaker`.'
    ) from error


def _open_text(path: str) -> TextIO:
  if path.endswith('.xz'):
    return lzma.open(path, 'rt', encoding='utf-8', newline='\n')
  return open(path, encoding='utf-8', newline='\n')


def _speech(record: object) -> tuple[str, str]:
  if not isinstance(record, dict):
    raise ValueError('it is no JSON object')
  fields = ['text']
  fields += ['client_id'] if 'client_id' in record else ['play', 'speaker']
  for name in fields:
    if not isinstance(record.get(name), str):
      raise ValueError(f'it has no text as `{name}`')
  client = '/'.join(record[name] for name in fields[1:])
  return client.encode(errors='replace').decode(), record['text']
