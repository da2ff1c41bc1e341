"""Tasks: client populations, vocabulary, loss and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, Union

from si_federated.tasks.classification_task import (
  ClassificationTask,
  encode_texts,
)
from si_federated.tasks.docstrings import docstrings
from si_federated.tasks.populations import ClientPopulation
from si_federated.tasks.pretrained_vocabulary import pretrained
from si_federated.tasks.shakespeare import shakespeare
from si_federated.tasks.stackoverflow import stackoverflow
from si_federated.tasks.subwords import sentencepiece
from si_federated.tasks.synthetic import synthetic
from si_federated.tasks.task import Task
from si_federated.tasks.text_classification import (
  mixes_authors,
  text_classification,
)
from si_federated.tasks.vocabulary import Vocabulary
from si_federated.tasks.vocabulary_files import load_vocabulary, words

AnyTask = Union[Task, ClassificationTask]

TASKS: dict[str, Callable[..., Any]] = {
  'docstrings': docstrings,
  'shakespeare': shakespeare,
  'stackoverflow': stackoverflow,
  'synthetic': synthetic,
  'text_classification': text_classification,
}

# Whether the clients of a task with these options are mixtures of several
# authors' texts, which a guarantee for clients does not protect. Those of other
# tasks are not.
MIXES_AUTHORS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
  'text_classification': mixes_authors,
}
# Tasks that hold out texts rather than clients for validation.
HOLD_OUT_TEXTS = frozenset({'text_classification'})

# Each builds a function that re-encodes a task of words in its tokens.
VOCABULARIES: dict[str, Callable[..., Callable[[Any], Any]]] = {
  'pretrained': pretrained,
  'sentencepiece': sentencepiece,
  'words': words,
}
# Vocabularies that are not learned from the clients' text.
PUBLIC_VOCABULARIES = frozenset({'pretrained'})

__all__ = [
  'HOLD_OUT_TEXTS',
  'MIXES_AUTHORS',
  'PUBLIC_VOCABULARIES',
  'TASKS',
  'VOCABULARIES',
  'AnyTask',
  'ClassificationTask',
  'ClientPopulation',
  'Task',
  'Vocabulary',
  'encode_texts',
  'load_vocabulary',
]
