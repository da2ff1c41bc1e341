"""Labelled texts from a file, from docstrings or from Shakespeare."""

from __future__ import annotations

import collections
import dataclasses
import os
from typing import Mapping, Sequence

from si_federated import files
from si_federated.tasks import table_rows, text_files
from si_federated.tasks.docstring_corpus import mining
from si_federated.tasks.docstrings import open_corpus
from si_federated.tasks.populations import ClientPopulation
from si_federated.tasks.shakespeare import find_source, read_speeches
from si_federated.tasks.store_writer import SPLITS
from si_federated.tasks.token_arrays import UNLISTED

# The default of the task `docstrings`, to share its store.
_MIN_DOCSTRINGS = 16


@dataclasses.dataclass(frozen=True)
class LabelledText:
  """Texts with labels and, optionally, with their clients.

  Attributes:
    source: The texts' origin, for messages.
    texts: The texts.
    labels: The name of each text's class.
    clients: The client of each text; None if unknown.
  """

  source: str
  texts: tuple[str, ...]
  labels: tuple[str, ...]
  clients: tuple[str, ...] | None = None

  def check(self) -> None:
    """Raises ValueError unless there are two classes."""
    classes = sorted(set(self.labels))
    if not classes:
      raise ValueError(f'{self.source} has no examples; give it some.')
    if len(classes) == 1:
      raise ValueError(
        f'All examples of {self.source} are of one class, {classes[0]!r}; give '
        'examples of at least two.'
      )


def read_file(
  path: str,
  *,
  text: str,
  label: str,
  client: str | None,
  encoding: str | None = None,
) -> LabelledText:
  """Reads a file of JSON lines or of comma-separated values with a header.

  Args:
    path: The file, `.csv` or `.jsonl`, optionally compressed as `.gz` or `.xz`.
    text: The column (or key) of the text.
    label: The column of the label: text, a number, or true or false.
    client: The column of the client's name; None to read no clients.
    encoding: See `text_files.open_text`.

  Returns:
    The texts.

  Raises:
    ValueError: If the file is missing or damaged, lacks a column, or has a line
      that cannot be used; the message names file and line.
  """
  stem = path[: -len('.gz')] if path.endswith(('.gz', '.xz')) else path
  kind = os.path.splitext(stem)[1]
  if kind not in ('.csv', '.jsonl', '.json'):
    raise ValueError(
      f'{path} is neither .csv nor .jsonl, plain or with .gz or .xz; give a '
      'file of one of these kinds.'
    )
  columns = [text, label] + ([client] if client is not None else [])
  is_csv = kind == '.csv'
  values: list[list[str]] = []
  with text_files.open_text(
    path,
    encoding=encoding,
    option='encoding',
    newline='' if is_csv else '\n',
  ) as file:
    try:
      for row in (
        table_rows.csv_rows(file, path, columns)
        if is_csv
        else table_rows.json_rows(file, path)
      ):
        values.append(_example(path, row, columns, label))
    except table_rows.MissingColumnsError as error:
      raise ValueError(
        f'{error}: name its columns by the options text, label and client of '
        '--task=text_classification.'
      ) from error
  parts = tuple(zip(*values)) or ((),) * len(columns)
  return LabelledText(path, *parts)


def _example(
  path: str, row: table_rows.Row, columns: Sequence[str], label: str
) -> list[str]:
  """Returns the text, the label and the client of a row."""
  place = f'{path}:{row.line}'
  if row.problem:
    raise ValueError(f'{place}: {row.clause}; correct it.')
  missing = [name for name in columns if name not in row.values]
  if missing:
    raise table_rows.MissingColumnsError(place, missing, tuple(row.values))
  found = []
  for index, name in enumerate(columns):
    value = row.values[name]
    if table_rows.is_missing(value):
      raise ValueError(f'{place}: {name} is empty; fill it in.')
    try:
      found.append(
        table_rows.name(value, booleans=name == label)
        if index
        else table_rows.text(value)
      )
    except table_rows.OddValueError as error:
      raise ValueError(
        f'{place}: {name} is {error}; give every example one.'
      ) from error
  return found


def read_docstrings(data_dir: str | None, *, num_classes: int) -> LabelledText:
  """Returns docstring sentences, labelled with their packages.

  Args:
    data_dir: The folder of the store of the task `docstrings`.
    num_classes: The number of packages; the largest are used.

  Returns:
    The sentences of these packages, with modules as clients.

  Raises:
    ValueError: If there are fewer packages; see also the task `docstrings`.
  """
  store = open_corpus(
    data_dir or files.cache_folder(),
    mining.installation_roots(),
    min_sentences=_MIN_DOCSTRINGS,
  )
  found: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
  for split in SPLITS:
    arrays = store.splits[split]
    population = ClientPopulation(arrays, 1, 1)
    for index in range(len(population)):
      module = population.client_id(index)
      start, stop = arrays.client_offsets[index : index + 2].tolist()
      offsets = arrays.sentence_offsets[start : stop + 1].tolist()
      for first, last in zip(offsets, offsets[1:]):
        ranks = arrays.tokens[first:last].tolist()
        text = ' '.join(store.words[r] for r in ranks if r != UNLISTED)
        if text:
          found[module.partition('.')[0]].append((text, module))
  return _largest('the installed docstrings', found, num_classes)


def read_shakespeare(
  data_dir: str | None, *, num_classes: int, by_play: bool
) -> LabelledText:
  """Returns speeches, labelled with their roles or plays.

  Args:
    data_dir: See the task `shakespeare`.
    num_classes: The number of roles or plays; those with the most speeches are
      used.
    by_play: Whether to classify plays instead of roles.

  Returns:
    The speeches, with roles as clients.

  Raises:
    ValueError: If there are fewer classes; see also the task `shakespeare`.
  """
  source = find_source(data_dir, None)
  found: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
  for role, text in read_speeches(source):
    play, slash, _ = role.rpartition('/')
    if by_play and not slash:
      raise ValueError(
        f'{source} has the role of a speech but not its play; leave out '
        'data=plays, or give a file with `play` and `speaker`.'
      )
    if text.strip():
      found[play if by_play else role].append((text, role))
  return _largest(source, found, num_classes)


def _largest(
  source: str, found: Mapping[str, list[tuple[str, str]]], num_classes: int
) -> LabelledText:
  if not 2 <= num_classes <= len(found):
    raise ValueError(
      f'num_classes must be from 2 to {len(found)}, the number in {source}; '
      f'got {num_classes}.'
    )
  order = sorted(found, key=lambda name: (-len(found[name]), name))
  rows = [
    (text, name, client)
    for name in order[:num_classes]
    for text, client in found[name]
  ]
  texts, labels, clients = zip(*rows)
  return LabelledText(source, texts, labels, clients)
