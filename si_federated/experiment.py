"""The composition root: the one file that knows every part."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Optional

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import config, mechanisms
from si_federated.aggregators import AGGREGATORS
from si_federated.aggregators.canaries import scores as canary_scores
from si_federated.algorithms import (
  ALGORITHMS,
  OPTIMIZERS,
  build_functional_model,
)
from si_federated.models import MODELS
from si_federated.privacy import auditing
from si_federated.privacy.ledger import Ledger
from si_federated.privacy.schedules import SCHEDULES, Schedule
from si_federated.runtime import RUNTIMES, ClientError
from si_federated.tasks import TASKS, VOCABULARIES, Task, vocabularies
from si_federated.training import checkpoints, evaluation, loop, sampling
from si_federated.training import run_folder as run_folder_lib

# The parts' arguments that come from flags of their own.
_GIVEN = {
  'task': ('data_dir', 'vocab_size', 'sequence_length'),
  'vocabulary': (),
  'model': ('vocab_size',),
  'algorithm': (
    'model',
    'client_optimizer',
    'server_optimizer',
    'aggregation_factory',
    'client_weighting',
  ),
  'aggregator': mechanisms.AGGREGATOR_GIVEN,
  'participation': mechanisms.SCHEDULE_GIVEN,
  'runtime': (),
  'client_optimizer': ('learning_rate',),
  'server_optimizer': ('learning_rate',),
}
REGISTRIES: dict[str, dict[str, Callable]] = {
  'task': TASKS,
  'vocabulary': VOCABULARIES,
  'model': MODELS,
  'algorithm': ALGORITHMS,
  'aggregator': AGGREGATORS,
  'participation': SCHEDULES,
  'runtime': RUNTIMES,
  'client_optimizer': OPTIMIZERS,
  'server_optimizer': OPTIMIZERS,
}


def check(experiment: config.ExperimentConfig) -> None:
  """Checks every part's name and options, before any data is read.

  Args:
    experiment: What is to be run.

  Raises:
    config.ConfigError: If a part or an option does not exist.
  """
  for flag, registry in REGISTRIES.items():
    getattr(experiment, flag).check(registry, flag, _GIVEN[flag])
  mechanisms.check(experiment)


def _build(experiment: config.ExperimentConfig, flag: str, **given: Any) -> Any:
  return getattr(experiment, flag).build(REGISTRIES[flag], flag, **given)


def _build_optimizer(
  experiment: config.ExperimentConfig, side: str
) -> tff.learning.optimizers.Optimizer:
  flag = f'{side}_optimizer'
  spec = getattr(experiment, flag)
  options = dict(spec.options)
  if side == 'server' and spec.name == 'sgdm':
    options.setdefault('momentum', experiment.server_momentum)
  return dataclasses.replace(spec, options=tuple(options.items())).build(
    OPTIMIZERS, flag, learning_rate=getattr(experiment, f'{side}_learning_rate')
  )


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The parts of an experiment, built and ready to run.

  Attributes:
    config: What they were built from.
    task: The data.
    process: TFF's learning process.
    schedule: Which clients take part in which round.
    ledger: What they are promised, and what it has cost so far.
    evaluate: Metrics of weights on the validation clients.
    validation_examples: What `evaluate` evaluates on, shape `[N, T + 1]`.
    num_parameters: How many numbers are trained.
  """

  config: config.ExperimentConfig
  task: Task
  process: tff.learning.templates.LearningProcess
  schedule: Schedule
  ledger: Ledger
  evaluate: Callable[[tff.learning.models.ModelWeights], dict[str, float]]
  validation_examples: np.ndarray
  num_parameters: int

  def sample_cohort(self, round_num: int) -> sampling.Cohort:
    """Returns the datasets of a round's clients."""
    train = self.task.train
    settings = self.config
    seed = sampling.data_seed(seed=settings.client_seed, round_num=round_num)

    def client_dataset(index: int) -> tf.data.Dataset:
      return train.client_batches(
        index,
        batch_size=settings.client_batch_size,
        epochs=settings.client_epochs_per_round,
        max_elements=settings.max_elements_per_client,
        seed=seed,
      )

    return sampling.Cohort(
      self.schedule.cohort(round_num), client_dataset, train.client_id
    )


def build_task(experiment: config.ExperimentConfig) -> Task:
  """Builds the task of an experiment: reads or prepares its data.

  Args:
    experiment: What is to be run.

  Returns:
    The task.

  Raises:
    config.ConfigError: If the data is missing or unusable.
  """
  # Before the data, for a wrong option or a missing package ends it here.
  with_vocabulary = _build(experiment, 'vocabulary')
  task = _build(
    experiment,
    'task',
    data_dir=experiment.data_dir,
    vocab_size=experiment.vocab_size,
    sequence_length=experiment.sequence_length,
  )
  try:
    return with_vocabulary(task)
  except ValueError as error:
    raise config.ConfigError(
      f'--vocabulary={experiment.vocabulary}: {error}'
    ) from error


def build_model(
  experiment: config.ExperimentConfig, vocab_size: int
) -> tf.keras.Model:
  """Builds the Keras model of an experiment, with its seed.

  Args:
    experiment: What is to be run.
    vocab_size: The number of ids, special ones included.

  Returns:
    A new model.

  Raises:
    config.ConfigError: If the model refuses an option's value.
  """
  # A graph of TFF's gets its weights from outside; no seed is to stay in it.
  if tf.executing_eagerly():
    tf.keras.utils.set_random_seed(experiment.model_seed)
  return _build(experiment, 'model', vocab_size=vocab_size)


def build(
  experiment: config.ExperimentConfig,
  canaries: Optional[mechanisms.Canaries] = None,
) -> Experiment:
  """Builds an experiment's parts and sets the TFF runtime.

  Args:
    experiment: What is to be run.
    canaries: For an audit, clients of known updates.

  Returns:
    The experiment.

  Raises:
    config.ConfigError: If a part, an option or the data does not exist.
  """
  check(experiment)
  try:
    _build(experiment, 'runtime')
  except ModuleNotFoundError as error:
    raise config.ConfigError(str(error)) from error
  task = build_task(experiment)
  if experiment.clients_per_round > len(task.train):
    raise config.ConfigError(
      f'--clients_per_round={experiment.clients_per_round} is more than the '
      f'{len(task.train)} training clients of {task.name}.'
    )
  schedule = mechanisms.build_schedule(experiment, len(task.train))
  mechanism = mechanisms.build_mechanism(experiment, schedule)

  def keras_model_fn() -> tf.keras.Model:
    return build_model(experiment, task.vocabulary.size)

  model = build_functional_model(
    keras_model_fn,
    loss=task.loss,
    element_spec=task.element_spec,
    end_of_sentence=task.vocabulary.end,
    ignored_labels=task.ignored_labels,
    count_tokens=mechanism.client_weighting == 'tokens',
    compute_dtype=experiment.precision,
  )
  num_parameters = sum(weight.size for weight in model.initial_weights[0])
  mechanism = mechanisms.calibrate(
    experiment,
    mechanism,
    delta=mechanisms.default_delta(experiment, len(task.train)),
    schedule=schedule,
    dimension=num_parameters,
  )
  if canaries is not None:
    mechanism = mechanisms.add_canaries(experiment, mechanism, canaries)
  process = _build(
    experiment,
    'algorithm',
    model=model,
    client_optimizer=_build_optimizer(experiment, 'client'),
    server_optimizer=_build_optimizer(experiment, 'server'),
    aggregation_factory=mechanism.factory,
    client_weighting=mechanism.client_weighting,
  )
  examples = task.validation.sample_examples(
    experiment.num_validation_examples, seed=0
  )
  return Experiment(
    config=experiment,
    task=task,
    process=process,
    schedule=schedule,
    ledger=mechanisms.build_ledger(
      experiment, mechanism, num_clients=len(task.train), added=canaries
    ),
    evaluate=evaluation.build_evaluation(model=model, examples=examples),
    validation_examples=examples,
    num_parameters=num_parameters,
  )


def _task_facts(built: Experiment) -> dict[str, Any]:
  task = built.task
  return {
    'name': task.name,
    'num_train_clients': len(task.train),
    'num_validation_clients': len(task.validation),
    'num_validation_examples': len(built.validation_examples),
    'num_words': len(task.vocabulary.words),
    'tokens_per_word': task.tokens_per_word(built.validation_examples),
    'num_parameters': built.num_parameters,
    'reference_perplexity': task.reference_perplexities(
      built.validation_examples
    ),
  }


def run(
  experiment: config.ExperimentConfig,
  root: str,
  canaries: Optional[mechanisms.Canaries] = None,
) -> dict[str, Any]:
  """Runs an experiment from its start or from where it stopped.

  Args:
    experiment: What is to be run.
    root: The folder that holds the folder of this run.
    canaries: For an audit, clients of known updates.

  Returns:
    The summary; of an audit with `audit`, what the canaries show.

  Raises:
    config.ConfigError: If a part, an option or the data does not exist, or the
      folder holds another experiment.
    KeyboardInterrupt: If interrupted; what was done is saved.
    ValueError: If a client fails; the message names it.
  """
  check(experiment)
  folder = run_folder_lib.RunFolder(
    os.path.join(root, experiment.experiment_name)
  )
  folder.open(experiment)
  try:
    built = build(experiment, canaries)
    _keep_task_facts(built, folder)
    summary = loop.run(
      process=built.process,
      sample_cohort=built.sample_cohort,
      evaluate=built.evaluate,
      ledger=built.ledger,
      folder=folder,
      total_rounds=experiment.total_rounds,
      rounds_per_eval=experiment.rounds_per_eval,
      rounds_per_checkpoint=experiment.rounds_per_checkpoint,
    )
    if canaries is not None:
      summary['audit'] = _audit(built, folder, canaries)
    return summary
  except ClientError as error:
    raise ValueError(str(error)) from error
  finally:
    folder.close()


def _audit(
  built: Experiment,
  folder: run_folder_lib.RunFolder,
  canaries: mechanisms.Canaries,
) -> dict[str, Any]:
  """Sets what canaries show beside the guarantee."""
  initial = built.process.get_model_weights(built.process.initialize())
  final = checkpoints.read_weights(folder.checkpoints.newest()[0])
  scores = canary_scores(
    [after - before for after, before in zip(final, initial.trainable)],
    canary_seed=canaries.seed,
    num_canaries=canaries.count,
  )
  privacy = built.ledger.summary()
  delta = privacy['delta']
  result = {
    'epsilon_estimate': auditing.estimate_epsilon(
      scores, delta, dimension=built.num_parameters
    ),
    'epsilon_promised': privacy['promised']['epsilon'],
    'delta': delta,
    'simulated': privacy['simulated'],
    'canaries': dataclasses.asdict(canaries),
    'mean_score': float(scores.mean()),
    'std_score': float(scores.std(ddof=1)),
    'std_score_unseen': built.num_parameters**-0.5,
    'what': 'A one-shot estimate from the final model (arXiv 2302.03098), '
    'without confidence; who sees every round may learn more.',
  }
  folder.write_json('audit.json', result)
  return result


def _keep_task_facts(
  built: Experiment, folder: run_folder_lib.RunFolder
) -> None:
  """Writes what the run's data are, or checks that they still are the same."""
  vocabulary = built.task.vocabulary
  if folder.has('metrics.csv') and folder.has('task.json'):
    if vocabularies.load_vocabulary(folder.path) != vocabulary:
      raise config.ConfigError(
        f'The data of {built.task.name} are no longer those that the run in '
        f'{folder.path} began with (its vocabulary differs); give this one '
        'another --experiment_name.'
      )
    return
  vocabularies.save_vocabulary(vocabulary, folder.path)
  # The reference perplexities take a pass over the training text.
  folder.write_json('task.json', _task_facts(built))
