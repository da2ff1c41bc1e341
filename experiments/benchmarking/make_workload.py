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
    len(task.train), settings.clients_per_round, replace=False
  )
  return [
    task.train.training_examples(
      int(index), max_elements=settings.max_elements, seed=settings.seed
    )
    for index in chosen
  ]


def start(request: dict[str, Any]) -> dict[str, Any]:
  """Creates everything; see `protocol.serve`. There are no other commands."""
  settings = workload.Settings.from_json(request)
  count, batch = settings.clients_per_round, settings.batch_size
  facts: dict[str, Any] = {'clients': {}}
  for kind in request['kinds']:
    if kind == 'uneven':
      clients = _uneven_clients(settings)
    else:
      size = batch * (workload.FULL_BATCHES if kind == 'full' else 1)
      ids = workload.full_sentences(settings, count * size)
      clients = np.split(ids, count)
    workload.save_cohort(settings, kind, clients)
    facts['clients'][kind] = {
      'clients': len(clients),
      'steps': workload.num_steps(settings, clients),
      'sentences': sum(map(len, clients)),
      'tokens': workload.num_tokens(clients),
      'sentences_by_client': [len(client) for client in clients],
    }
  ours.set_runtime('local')
  for model in request['models']:
    process = ours.build(settings, model).process
    weights = process.get_model_weights(process.initialize()).trainable
    workload.save_weights(workload.weights_file(settings, model), weights)
  return {'about': facts}


if __name__ == '__main__':
  protocol.serve(start)
