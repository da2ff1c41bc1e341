"""Task `text_classification`: labelled texts distributed among clients."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from si_federated.tasks import label_splits, labelled_text
from si_federated.tasks.classification_task import (
  MIN_LENGTH,
  ClassificationTask,
  build_task,
  most_frequent,
)
from si_federated.tasks.seeded_orders import permutation
from si_federated.tasks.store_writer import SPLITS
from si_federated.tasks.task import check_sizes

_SOURCES = ('docstrings', 'roles', 'plays')
_BY_CLIENT = 'client'
_DEFAULT_CLASSES = 10
_CHOICE = 3  # Random stream; the splits use 1 and 2.


def text_classification(
  *,
  data_dir: str | None = None,
  vocab_size: int = 10_000,
  sequence_length: int = 20,
  data: str = 'docstrings',
  path: str | None = None,
  text: str = 'text',
  label: str = 'label',
  client: str | None = None,
  encoding: str | None = None,
  split: str | None = None,
  num_clients: int | None = None,
  alpha: float | None = None,
  majority: float | None = None,
  num_classes: int | None = None,
  examples_per_class: int | None = None,
  held_out: float = 0.1,
  seed: int = 0,
) -> ClassificationTask:
  """Classification of texts, as in Hilmkil et al., arXiv 2102.00875.

  The texts come from a JSON Lines or CSV file; or they are docstring sentences
  labelled by package, or Shakespeare's speeches labelled by role or play. A
  fraction of each class is held out for validation and another for test; the
  rest is distributed among the clients. The result depends only on the data,
  the options and `seed`.

  Args:
    data_dir: The folder of `path`. Without a path, the `data_dir` of the task
      `docstrings` or `shakespeare`, which then provides the data.
    vocab_size: V, the number of words of the training texts with their own id.
    sequence_length: T, the maximum number of ids per text, including its
      beginning and end.
    data: Source without a path: `docstrings` (classes are packages), `roles` or
      `plays`.
    path: A `.csv` or `.jsonl` file, optionally compressed as `.gz` or `.xz`.
    text: The file's column of texts.
    label: The file's column of classes.
    client: The file's column of clients, for `split=client`.
    encoding: The file's encoding, such as `latin-1`; by default that of a byte
      order mark, or UTF-8 without one.
    split: `iid`; `label`, which sorts by class and cuts into chunks;
      `dirichlet`; `majority`, where two classes dominate each client; or
      `client`, which uses the column `client` (without a path: modules or
      roles). The default is `client` if that column is given, else `iid`.
    num_clients: The number of clients, 10 by default; not for `split=client`.
    alpha: The concentration for `split=dirichlet`, from 0.0001 to 1,000,000;
      0.5 by default.
    majority: The fraction of each client's texts that come from its two main
      classes, for `split=majority`; 0.8 by default.
    num_classes: Without a path: the number of classes, 10 by default; those
      with the most texts are used.
    examples_per_class: Maximum number of texts per class, chosen at random.
    held_out: The fraction of each class for validation, and again for test.
    seed: Determines the choice, hold-out and distribution of texts.

  Returns:
    The task.

  Raises:
    ValueError: An option is out of range or has no effect, or the data are
      unusable or too few.
  """
  check_sizes(vocab_size, sequence_length)
  if sequence_length < MIN_LENGTH:
    raise ValueError(
      f'sequence_length must be {MIN_LENGTH} or more; got {sequence_length}.'
    )
  if split is None:
    split = _BY_CLIENT if client is not None else 'iid'
  _check(locals())
  found = _read(
    data_dir, data, path, text, label, client, encoding, num_classes
  )
  found.check()
  classes = tuple(sorted(set(found.labels)))
  by_name = {name: index for index, name in enumerate(classes)}
  labels = np.array([by_name[name] for name in found.labels], np.int32)
  chosen = _choose(labels, examples_per_class, seed)
  labels = labels[chosen]
  train, *held = label_splits.hold_out(
    labels, (held_out, held_out), classes=classes, seed=seed
  )
  if split == _BY_CLIENT:
    assert found.clients is not None, 'The column is read.'
    owners = np.array(found.clients, object)[chosen]
    clients = {
      name: train[owners[train] == name]
      for name in dict.fromkeys(owners[train])
    }
  else:
    clients = _distribute(
      labels, train, split, num_clients, seed, alpha, majority
    )
  return build_task(
    'text_classification',
    texts=tuple(found.texts[number] for number in chosen),
    labels=labels,
    classes=classes,
    splits={
      'train': clients,
      **{name: {name: numbers} for name, numbers in zip(SPLITS[1:], held)},
    },
    learn=functools.partial(most_frequent, size=vocab_size),
    sequence_length=sequence_length,
  )


def mixes_authors(options: Mapping[str, Any]) -> bool:
  """Returns whether clients are mixtures of several authors' texts.

  Args:
    options: The options of the task that are not the default.
  """
  by_default = options.get('client') is not None
  split = options.get('split') or (_BY_CLIENT if by_default else 'iid')
  return split != _BY_CLIENT


def _check(options: dict) -> None:
  """Raises ValueError for an option that is out of range or has no effect."""
  split = options['split']
  known = (*label_splits.SPLITS, _BY_CLIENT)
  if split not in known:
    raise ValueError(f'split must be one of {", ".join(known)}; got {split!r}.')
  if options['data'] not in _SOURCES:
    raise ValueError(
      f'data must be one of {", ".join(_SOURCES)}; got {options["data"]!r}: '
      'name a file by path.'
    )
  for name in ('num_clients', 'num_classes', 'examples_per_class'):
    value = options[name]
    if value is not None and (not isinstance(value, int) or value < 1):
      raise ValueError(f'{name} must be 1 or more; got {value}.')
  seed = options['seed']
  if not isinstance(seed, int) or seed < 0:
    raise ValueError(f'seed must be 0 or more; got {seed}.')
  if not 0 < options['held_out'] < 0.5:
    raise ValueError(
      f'held_out must be above 0 and below 0.5; got {options["held_out"]}.'
    )
  has_file = options['path'] is not None
  for name, is_used, when in (
    ('num_clients', split != _BY_CLIENT, f'split={split}'),
    ('alpha', split == 'dirichlet', f'split={split}'),
    ('majority', split == 'majority', f'split={split}'),
    ('client', split == _BY_CLIENT, f'split={split}'),
    ('client', has_file, f'data={options["data"]}'),
    ('encoding', has_file, f'data={options["data"]}'),
    ('num_classes', not has_file, 'path, whose classes are all used'),
  ):
    if options[name] is not None and not is_used:
      raise ValueError(f'{name} has no effect with {when}; leave it out.')
  if has_file and split == _BY_CLIENT and options['client'] is None:
    raise ValueError('split=client needs the name of a column by client.')


def _read(
  data_dir: str | None,
  data: str,
  path: str | None,
  text: str,
  label: str,
  client: str | None,
  encoding: str | None,
  num_classes: int | None,
) -> labelled_text.LabelledText:
  if path is not None:
    return labelled_text.read_file(
      os.path.join(data_dir or '', str(path)),
      text=str(text),
      label=str(label),
      client=None if client is None else str(client),
      encoding=None if encoding is None else str(encoding),
    )
  classes = _DEFAULT_CLASSES if num_classes is None else num_classes
  if data == 'docstrings':
    return labelled_text.read_docstrings(data_dir, num_classes=classes)
  return labelled_text.read_shakespeare(
    data_dir, num_classes=classes, by_play=data == 'plays'
  )


def _choose(labels: np.ndarray, most: int | None, seed: int) -> np.ndarray:
  """Returns sorted indices of at most `most` random texts per class."""
  if most is None:
    return np.arange(len(labels))
  chosen = []
  for label in np.unique(labels):
    (numbers,) = np.nonzero(labels == label)
    generator = np.random.PCG64([seed, _CHOICE, int(label)])
    chosen.append(numbers[permutation(generator, len(numbers))[:most]])
  return np.sort(np.concatenate(chosen))


def _distribute(
  labels: np.ndarray,
  train: np.ndarray,
  split: str,
  num_clients: int | None,
  seed: int,
  alpha: float | None,
  majority: float | None,
) -> dict[str, np.ndarray]:
  number = 10 if num_clients is None else num_clients
  if number > len(train):
    raise ValueError(
      f'{number} clients are more than the {len(train)} training examples; '
      f'give num_clients={len(train)} or less.'
    )
  options = {
    name: value
    for name, value in (('alpha', alpha), ('majority', majority))
    if value is not None
  }
  parts = label_splits.SPLITS[split](
    labels[train], number, seed=seed, **options
  )
  width = len(str(number - 1))
  return {
    f'client_{index:0{width}d}': train[np.sort(part)]
    for index, part in enumerate(parts)
  }
