"""Task `text_classification`: the class of texts, shared out among clients."""

from __future__ import annotations

import functools
import os

import numpy as np

from si_federated.tasks import label_splits, labelled_text
from si_federated.tasks.classification_task import (
  MIN_LENGTH,
  ClassificationTask,
  build_task,
  most_frequent,
)
from si_federated.tasks.populations import permutation
from si_federated.tasks.store_writer import SPLITS
from si_federated.tasks.task import check_sizes

_SOURCES = ('docstrings', 'roles', 'plays')
_BY_CLIENT = 'client'
_DEFAULT_CLASSES = 10
_CHOICE = 3  # Of the random streams; the splits have 1 and 2.


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

  The texts are those of a file, of JSON lines or of comma-separated values; or
  docstring sentences by package, or speeches of Shakespeare by role or by play.
  Of each class a part is held out for validation and as much for test; what is
  left is shared out among clients. All of it depends on the data and on `seed`
  alone.

  Args:
    data_dir: The folder of `path`; without a path that of the task `docstrings`
      or `shakespeare`, whose data are then used.
    vocab_size: V, how many words of the training texts have an id.
    sequence_length: T, the ids to which a text is cut, those of its beginning
      and end included.
    data: Without a path: `docstrings` (classes are packages), `roles` or
      `plays`.
    path: A file `.csv` or `.jsonl`, plain or with `.gz` or `.xz` after that.
    text: Its column of texts.
    label: Its column of classes.
    client: Its column of clients, for `split=client`.
    split: `iid`; `label`, which sorts by class and cuts into chunks;
      `dirichlet`; `majority`, where each client has two classes of which it
      has most; or `client`, by the column (for other data: modules, or
      roles). By default `iid`, or `client` if that column is named.
    num_clients: The number of clients, 10 by default; not for `split=client`.
    alpha: The concentration of `split=dirichlet`, 0.5 by default.
    majority: The part of a client's texts that is of its two classes, with
      `split=majority`; 0.8 by default.
    num_classes: Without a path: how many classes, 10 by default, those of the
      most texts.
    examples_per_class: At most so many texts of each class, chosen at random.
    held_out: The part of each class that is for validation, and for test.
    seed: Fixes what is chosen, held out and shared out.

  Returns:
    The task.

  Raises:
    ValueError: An option is out of range or has no effect, the data cannot be
      used, or there are too few of them.
  """
  check_sizes(vocab_size, sequence_length)
  if sequence_length < MIN_LENGTH:
    raise ValueError(
      f'sequence_length must be {MIN_LENGTH} or more; got {sequence_length}.'
    )
  if split is None:
    split = _BY_CLIENT if client is not None else 'iid'
  _check(locals())
  found = _read(data_dir, data, path, text, label, client, num_classes)
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
    clients = _share_out(
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


def _check(options: dict) -> None:
  """Raises ValueError for an option that is out of range or has no effect."""
  split = options['split']
  known = (*label_splits.SPLITS, _BY_CLIENT)
  if split not in known:
    raise ValueError(f'split must be one of {", ".join(known)}; got {split!r}.')
  if options['data'] not in _SOURCES:
    raise ValueError(
      f'data must be one of {", ".join(_SOURCES)}; got {options["data"]!r}: a '
      'file is named by path.'
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
  num_classes: int | None,
) -> labelled_text.LabelledText:
  if path is not None:
    return labelled_text.read_file(
      os.path.join(data_dir or '', str(path)),
      text=str(text),
      label=str(label),
      client=None if client is None else str(client),
    )
  classes = _DEFAULT_CLASSES if num_classes is None else num_classes
  if data == 'docstrings':
    return labelled_text.read_docstrings(data_dir, num_classes=classes)
  return labelled_text.read_shakespeare(
    data_dir, num_classes=classes, by_play=data == 'plays'
  )


def _choose(labels: np.ndarray, most: int | None, seed: int) -> np.ndarray:
  """Returns the numbers of the texts to use, at most so many of each class."""
  if most is None:
    return np.arange(len(labels))
  chosen = []
  for label in np.unique(labels):
    (numbers,) = np.nonzero(labels == label)
    generator = np.random.PCG64([seed, _CHOICE, int(label)])
    chosen.append(numbers[permutation(generator, len(numbers))[:most]])
  return np.sort(np.concatenate(chosen))


def _share_out(
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
