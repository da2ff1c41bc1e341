"""Saves and loads the vocabulary of a run, whatever its kind."""

from __future__ import annotations

import os
from typing import Any, Callable

from si_federated.tasks.pretrained_vocabulary import PretrainedVocabulary
from si_federated.tasks.subwords import SubwordVocabulary
from si_federated.tasks.vocabulary import CharacterVocabulary, Vocabulary

_KINDS: tuple[type[Vocabulary], ...] = (
  Vocabulary,
  CharacterVocabulary,
  SubwordVocabulary,
  PretrainedVocabulary,
)


def words() -> Callable[[Any], Any]:
  """Keeps the task's own tokens: words or characters."""
  return lambda task: task


def save_vocabulary(vocabulary: Vocabulary, folder: str) -> None:
  """Writes the vocabulary of a run and removes those of other kinds.

  Args:
    vocabulary: A vocabulary of any kind.
    folder: The run's folder.
  """
  vocabulary.save(os.path.join(folder, vocabulary.FILE_NAME))
  for kind in _KINDS:
    other = os.path.join(folder, kind.FILE_NAME)
    if kind.FILE_NAME != vocabulary.FILE_NAME and os.path.exists(other):
      os.unlink(other)


def load_vocabulary(folder: str) -> Vocabulary:
  """Reads the vocabulary of any kind from the folder of a run.

  Raises:
    ValueError: The folder has no vocabulary, the file is damaged, or a package
      that it needs is missing.
  """
  for kind in _KINDS:
    path = os.path.join(folder, kind.FILE_NAME)
    if os.path.exists(path):
      return kind.load(path)
  names = ' or '.join(kind.FILE_NAME for kind in _KINDS)
  raise ValueError(f'{folder} has no vocabulary yet ({names}).')
