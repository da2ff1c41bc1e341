"""Language tasks: client populations, vocabulary, loss and metrics."""

from __future__ import annotations

from typing import Callable

from si_federated.tasks.docstrings import docstrings
from si_federated.tasks.shakespeare import shakespeare
from si_federated.tasks.stackoverflow import stackoverflow
from si_federated.tasks.subwords import sentencepiece
from si_federated.tasks.synthetic import synthetic
from si_federated.tasks.task import Task
from si_federated.tasks.token_store import ClientPopulation
from si_federated.tasks.vocabularies import load_vocabulary, words
from si_federated.tasks.vocabulary import Vocabulary

TASKS: dict[str, Callable[..., Task]] = {
  'docstrings': docstrings,
  'shakespeare': shakespeare,
  'stackoverflow': stackoverflow,
  'synthetic': synthetic,
}

# Each builds a function from a task of words to one of its tokens.
VOCABULARIES: dict[str, Callable[..., Callable[[Task], Task]]] = {
  'sentencepiece': sentencepiece,
  'words': words,
}

__all__ = [
  'TASKS',
  'VOCABULARIES',
  'ClientPopulation',
  'Task',
  'Vocabulary',
  'load_vocabulary',
]
