"""Language tasks: client populations, vocabulary, loss and metrics."""

from __future__ import annotations

from typing import Callable

from si_federated.tasks.docstrings import docstrings
from si_federated.tasks.stackoverflow import stackoverflow
from si_federated.tasks.synthetic import synthetic
from si_federated.tasks.task import Task
from si_federated.tasks.token_store import ClientPopulation
from si_federated.tasks.vocabulary import Vocabulary

TASKS: dict[str, Callable[..., Task]] = {
  'docstrings': docstrings,
  'stackoverflow': stackoverflow,
  'synthetic': synthetic,
}

__all__ = ['TASKS', 'ClientPopulation', 'Task', 'Vocabulary']
