"""Personalization of single clients after the last round."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import config, files
from si_federated.algorithms.variable_creation import Recording
from si_federated.assembly import expert_options, task_and_model
from si_federated.assembly.built_experiment import Experiment
from si_federated.assembly.learning_process import traits_of
from si_federated.personalization import (
  Client,
  ClientStore,
  Personalizer,
  client_hashing,
  expert_results,
  fine_tuning,
  fine_tuning_results,
  personalize_all,
)
from si_federated.tasks import AnyTask
from si_federated.training import checkpoints, run_folder

_GROUP = 16
_NOT_COVERED = (
  'Results for single clients, and the files in clients/, are made from these '
  "clients' own data: no guarantee of privacy.json covers them, and outside a "
  'simulation they stay with the client.'
)
# How the functional models of each kind of task return logits.
_LOGITS: Mapping[str, Any] = {
  'next_token': {
    # The positions of the tokens with a label precede the logits.
    'read_output': lambda output: (output[-1], output[-2]),
    'replace_logits': lambda output, logits: (*output[:-1], logits),
  },
  'class': {
    'read_output': lambda output: (output, None),
    'replace_logits': lambda output, logits: logits,
  },
}


@dataclasses.dataclass(frozen=True)
class _Run:
  """A run whose rounds are done.

  Attributes:
    experiment: The experiment that was run.
    folder: Its folder.
    model: The model as it was trained.
    task: The whole task, including clients that have opted out.
    weights: The weights of the newest checkpoint.
  """

  experiment: config.ExperimentConfig
  folder: run_folder.RunFolder
  model: tff.learning.models.FunctionalModel
  task: AnyTask
  weights: tff.learning.models.ModelWeights


def after_rounds(
  built: Experiment, folder: run_folder.RunFolder
) -> dict[str, Any]:
  """Personalises the model of the newest checkpoint, if flags ask for it.

  Args:
    built: The experiment, whose rounds are done.
    folder: The run's folder; gets `personalization.json` and `.csv`, and with
      experts `experts.json`, `experts.csv` and `clients/`.

  Returns:
    Entries of the run's summary.

  Raises:
    ValueError: If no client has enough examples.
  """
  experiment, task = built.config, built.whole_task
  has_experts = traits_of(experiment).trains_experts
  if not experiment.personalize_epochs and not has_experts:
    return {}
  newest = folder.checkpoints.newest()[0]
  weights = tff.learning.models.ModelWeights(
    tuple(checkpoints.read_weights(newest)),
    tuple(checkpoints.read_weights(newest, 'non_trainable')),
  )
  run = _Run(experiment, folder, built.model, task, weights)
  summary = {}
  if experiment.personalize_epochs:
    summary['personalization'] = _evaluate(run)
  if has_experts:
    summary['experts'] = _train_experts(
      run,
      built.validation_examples,
      lambda: task_and_model.build_model(experiment, **task.model_arguments),
    )
  return summary


def _evaluate(run: _Run) -> dict[str, Any]:
  """Evaluates validation clients before and after fine-tuning."""
  experiment, population = run.experiment, run.task.validation
  rate = experiment.personalize_learning_rate
  settings: dict[str, Any] = {
    'epochs': experiment.personalize_epochs,
    'learning_rate': experiment.client_learning_rate if rate is None else rate,
    'batch_size': experiment.client_batch_size,
    'clients': experiment.personalize_clients,
    'seed': experiment.client_seed,
  }
  fingerprint = _fingerprint(settings, run.weights)
  known = run.folder.read_json('personalization.json')
  if known.get('fingerprint') == fingerprint:
    return known['summary']
  names = [population.client_id(i) for i in range(len(population))]
  order = client_hashing.order_clients(names, seed=experiment.client_seed)
  clients = order[: experiment.personalize_clients]
  _report(
    f'Fine-tuning {len(clients)} validation clients, {settings["epochs"]} '
    'epochs each.'
  )
  results, too_small = fine_tuning.evaluate_clients(
    fine_tuning.build_evaluation(
      run.model,
      optimizer=tff.learning.optimizers.build_sgdm(settings['learning_rate']),
      batch_size=settings['batch_size'],
      max_clients=_GROUP,
    ),
    run.weights,
    clients,
    examples=population.examples,
    client_id=population.client_id,
    element_spec=run.model.input_spec,
    epochs=settings['epochs'],
    seed=settings['seed'],
    group_size=_GROUP,
  )
  if not results:
    raise ValueError(
      f'None of {len(clients)} validation clients has two examples, one for '
      'fine-tuning and one for evaluation; raise --personalize_clients.'
    )
  described = fine_tuning_results.describe(results)
  summary = {
    **fine_tuning_results.summarize(described, len(results)),
    'num_too_small': len(too_small),
  }
  _write_rows(
    run.folder,
    'personalization.csv',
    fine_tuning_results.rows(results, lambda client: names[client]),
  )
  run.folder.write_json(
    'personalization.json',
    {
      'summary': summary,
      'settings': settings,
      'metrics': described,
      'what': 'Validation clients, before and after fine-tuning on half of '
      f'their examples, evaluated on the other half. {_NOT_COVERED}',
      'fingerprint': fingerprint,
    },
  )
  return summary


def _train_experts(
  run: _Run,
  validation_examples: np.ndarray,
  new_model: Callable[[], tf.keras.Model],
) -> dict[str, Any]:
  """Trains and evaluates the experts of single clients."""
  options = expert_options.options_of(run.experiment)
  settings = expert_options.settings_of(run.experiment)
  seed, population = run.experiment.client_seed, run.task.train
  personalizer = Personalizer(
    model=run.model,
    global_weights=run.weights,
    initial_weights=_trainable_weights(new_model),
    vocab_size=run.task.vocabulary.size,
    settings=settings,
    global_examples=validation_examples,
    **_LOGITS[run.task.OBJECTIVE],
  )
  names = [population.client_id(i) for i in range(len(population))]

  def client(index: int) -> Client:
    out = client_hashing.has_opted_out(
      names[index], seed=seed, fraction=options['opt_out']
    )
    return Client(names[index], not out, lambda: population.examples(index))

  def on_client(done: int, result: dict[str, Any]) -> None:
    own = ', '.join(
      f'{name.replace("_", "-")} {metrics["loss"]:.3f}'
      for name, metrics in result['own'].items()
    )
    _report(f'client {done}/{options["num_clients"]}  loss {own}')

  results, too_small = personalize_all(
    [client(index) for index in client_hashing.order_clients(names, seed=seed)],
    personalizer,
    store=ClientStore(os.path.join(run.folder.path, 'clients')),
    fingerprint=_fingerprint(
      {
        **dataclasses.asdict(settings),
        'opt_out': options['opt_out'],
        'overall': _digest([validation_examples]),
      },
      run.weights,
    ),
    num_clients=options['num_clients'],
    on_client=on_client,
  )
  if not results:
    raise ValueError(
      f'None of the {len(names)} clients has enough examples for a training, '
      'a validation and a test part; give data with larger clients.'
    )
  summary = {
    **expert_results.summarize(results),
    'num_too_small': len(too_small),
  }
  _write_rows(run.folder, 'experts.csv', expert_results.rows(results))
  run.folder.write_json(
    'experts.json',
    {
      'summary': summary,
      'settings': dataclasses.asdict(settings),
      'opt_out': options['opt_out'],
      'models': expert_results.describe(results),
      'what': 'own: on test parts of the clients that were personalised; '
      f'overall: on the validation examples of the run. {_NOT_COVERED}',
    },
  )
  return summary


def _trainable_weights(
  new_model: Callable[[], tf.keras.Model],
) -> list[np.ndarray]:
  """Returns a new model's weights in the order of creation, which is TFF's."""
  with Recording() as created:
    model = new_model()
  return [v.numpy() for v in created.trainable_variables_of(model)]


def _digest(arrays: Sequence[np.ndarray]) -> str:
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def _fingerprint(
  settings: Mapping[str, Any], weights: tff.learning.models.ModelWeights
) -> str:
  """Returns a digest of everything that determines the results."""
  text = json.dumps(
    {
      **settings,
      'weights': _digest([*weights.trainable, *weights.non_trainable]),
    },
    sort_keys=True,
  )
  return hashlib.sha256(text.encode()).hexdigest()


def _report(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _write_rows(
  folder: run_folder.RunFolder, name: str, rows: Sequence[Mapping[str, Any]]
) -> None:
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  files.write_atomically(os.path.join(folder.path, name), text.getvalue())
