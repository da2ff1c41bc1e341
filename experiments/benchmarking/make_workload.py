"""Child process: creates the sentences and weights of all contestants."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.benchmarking import ours, protocol, workload
from si_federated import tasks


def _uneven_clients(settings: workload.Settings) -> list[np.ndarray]:
  """Draws training clients of the task, their sentences in random order."""
  task = tasks.TASKS[settings.task](
    vocab_size=settings.num_words, sequence_length=settings.sequence_length
  )
  if len(task.vocabulary.words) != settings.num_words:
    raise ValueError(
      f'Task {settings.task} has {len(task.vocabulary.words)} words, not '
      f'{settings.num_words}; choose a larger one.'
    )
  chosen = np.random.default_rng([settings.seed, 0]).choice(
    len(task.train),
    settings.clients_per_round,
    replace=settings.clients_per_round > len(task.train),
  )
  return [
    task.train.training_examples(
      int(index), max_elements=settings.max_elements, seed=settings.seed
    )
    for index in chosen
  ]


def clients(settings: workload.Settings, kind: str) -> list[np.ndarray]:
  """Creates the sentences of a round's clients.

  Args:
    settings: The sizes and the number of clients.
    kind: The kind of clients, of `workload.KINDS`.

  Returns:
    `[n, T + 1]` ids of each client.
  """
  if kind == 'uneven':
    return _uneven_clients(settings)
  count = settings.clients_per_round
  size = settings.batch_size * (workload.FULL_BATCHES if kind == 'full' else 1)
  return np.split(workload.full_sentences(settings, count * size), count)


def start(request: dict[str, Any]) -> dict[str, Any]:
  """Creates everything; see `protocol.serve`. There are no other commands."""
  settings = workload.Settings.from_json(request)
  facts: dict[str, Any] = {'clients': {}}
  for kind in request['kinds']:
    cohort = clients(settings, kind)
    workload.save_cohort(settings, kind, cohort)
    facts['clients'][kind] = {
      'clients': len(cohort),
      'steps': workload.num_steps(settings, cohort),
      'sentences': sum(map(len, cohort)),
      'tokens': workload.num_tokens(cohort),
      'sentences_by_client': [len(client) for client in cohort],
    }
  ours.set_runtime('local')
  for model in request['models']:
    process = ours.build(settings, model).process
    weights = process.get_model_weights(process.initialize()).trainable
    workload.save_weights(workload.weights_file(settings, model), weights)
  return {'about': facts}


if __name__ == '__main__':
  protocol.serve(start)
