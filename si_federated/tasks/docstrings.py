"""Task `docstrings`: the English of a Python installation."""

from __future__ import annotations

import hashlib
import os
from typing import Sequence

from si_federated import files
from si_federated.tasks.docstring_corpus import mining
from si_federated.tasks.splits import split_of
from si_federated.tasks.store_writer import SPLITS, StoreWriter
from si_federated.tasks.task import Task, check_sizes, task_from_store
from si_federated.tasks.token_store import (
  TokenStore,
  open_or_build,
  progress_bar,
)


def docstrings(
  *,
  data_dir: str | None = None,
  vocab_size: int = 10_000,
  sequence_length: int = 20,
  min_sentences: int = 16,
) -> Task:
  """Next-word prediction on the docstrings of installed packages.

  A client is a module, so that clients differ naturally in topic and size. The
  first use reads all installed packages and the standard library, without
  importing them, and keeps the result until packages are installed, changed or
  removed.

  Args:
    data_dir: The folder for the result; None means `si_federated` in the user's
      cache folder (`$XDG_CACHE_HOME` or `~/.cache`).
    vocab_size: V, the number of words with an id. Words are ranked by the
      number of training clients that use them.
    sequence_length: T, the number of words to which sentences are cut.
    min_sentences: Modules with fewer sentences are left out.

  Returns:
    The task.

  Raises:
    ValueError: If a number is out of range, too few packages are installed, or
      the folder cannot be written.
  """
  check_sizes(vocab_size, sequence_length)
  store = open_corpus(
    data_dir or files.cache_folder(),
    mining.installation_roots(),
    min_sentences=min_sentences,
  )
  return task_from_store(
    'docstrings', store, vocab_size=vocab_size, sequence_length=sequence_length
  )


def open_corpus(
  folder: str, roots: Sequence[str], *, min_sentences: int
) -> TokenStore:
  """Opens or builds the store of all modules below some folders.

  Only the first module that has a sentence keeps it, which removes vendored
  copies, licences and other boilerplate.

  Args:
    folder: The folder of the stores, one per state of the installation.
    roots: Folders with packages at their top level.
    min_sentences: Modules with fewer distinct sentences are left out.

  Returns:
    The store.

  Raises:
    ValueError: See `docstrings`.
  """
  if min_sentences < 1:
    raise ValueError(f'min_sentences must be 1 or more; got {min_sentences}.')
  fingerprint = mining.installation_fingerprint(roots)

  def fill(writer: StoreWriter) -> None:
    _fill(writer, roots, min_sentences)

  name = f'docstrings-{fingerprint}-{min_sentences}'
  return open_or_build(os.path.join(folder, name), fill, key=name)


def _fill(
  writer: StoreWriter, roots: Sequence[str], min_sentences: int
) -> None:
  sources = mining.find_sources(roots)
  seen: set[bytes] = set()
  unreadable = small = 0
  mined = mining.mine(sources, min_sentences=min_sentences)
  for module in progress_bar(
    mined, total=len(sources), label='Reading docstrings'
  ):
    if module.sentences is None:
      unreadable += 1
      continue
    fresh: dict[bytes, bytes] = {}
    for sentence in map(str.encode, module.sentences):
      digest = hashlib.blake2b(sentence, digest_size=8).digest()
      if digest not in seen:
        fresh[digest] = sentence
    if len(fresh) < min_sentences:
      small += 1
      continue
    seen.update(fresh)
    writer.add_client(
      split_of(module.module), module.module, list(fresh.values())
    )
  writer.notes.update(unreadable_files=unreadable, small_modules=small)
  for split in SPLITS:
    if not writer.num_clients(split):
      raise ValueError(
        f'The {len(sources)} installed modules have too few docstrings for the '
        f'{split} split; install more packages, lower min_sentences '
        f'({min_sentences}), or use --task=synthetic.'
      )
