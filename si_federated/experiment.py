"""The composition root: the one file that knows every part."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, Optional

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import config, initial_model, mechanisms, processes
from si_federated.aggregators import AGGREGATORS
from si_federated.aggregators.canaries import scores as canary_scores
from si_federated.algorithms import (
  ALGORITHMS,
  LEARNING_RATE_SCHEDULES,
  OPTIMIZERS,
  build_functional_model,
  partial_training,
)
from si_federated.compression import COMPRESSORS
from si_federated.models import MODELS, TRANSFORMS
from si_federated.privacy import auditing
from si_federated.privacy.ledger import Ledger
from si_federated.privacy.schedules import SCHEDULES, Schedule
from si_federated.runtime import RUNTIMES, ClientError
from si_federated.tasks import (
  TASKS,
  VOCABULARIES,
  Task,
  Vocabulary,
  vocabularies,
)
from si_federated.training import checkpoints, evaluation, loop, sampling
from si_federated.training import run_folder as run_folder_lib

# The parts' arguments that come from flags of their own.
_GIVEN = {
  'task': ('data_dir', 'vocab_size', 'sequence_length'),
  'vocabulary': (),
  'model': ('vocab_size',),
  'transform': ('model',),
  'algorithm': processes.ALGORITHM_GIVEN,
  'aggregator': mechanisms.AGGREGATOR_GIVEN,
  'participation': mechanisms.SCHEDULE_GIVEN,
  'runtime': (),
  'client_optimizer': ('learning_rate',),
  'server_optimizer': ('learning_rate',),
  'server_learning_rate_schedule': ('learning_rate', 'total_rounds'),
  'compression': (),
}
REGISTRIES: dict[str, dict[str, Callable]] = {
  'task': TASKS,
  'vocabulary': VOCABULARIES,
  'model': MODELS,
  'transform': TRANSFORMS,
  'algorithm': ALGORITHMS,
  'aggregator': AGGREGATORS,
  'participation': SCHEDULES,
  'runtime': RUNTIMES,
  'client_optimizer': OPTIMIZERS,
  'server_optimizer': OPTIMIZERS,
  'server_learning_rate_schedule': LEARNING_RATE_SCHEDULES,
  'compression': COMPRESSORS,
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
  processes.check(experiment)


def _build(experiment: config.ExperimentConfig, flag: str, **given: Any) -> Any:
  return getattr(experiment, flag).build(REGISTRIES[flag], flag, **given)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The parts of an experiment, built and ready to run.

  Attributes:
    config: What they were built from.
    task: The data.
    process: TFF's learning process.
    takes_client_numbers: See `processes.Process`, as for the next.
    bytes_per_client: How much a client sent and received in a round.
    schedule: Which clients take part in which round.
    ledger: What they are promised, and what it has cost so far.
    evaluate: Metrics of weights on the validation clients.
    validation_examples: What `evaluate` evaluates on, shape `[N, T + 1]`.
    num_parameters: How many numbers are trained.
    start: What of `--initial_model` the weights begin with, if it was read.
  """

  config: config.ExperimentConfig
  task: Task
  process: tff.learning.templates.LearningProcess
  takes_client_numbers: bool
  bytes_per_client: Callable[[Mapping[str, Any]], dict[str, float]]
  schedule: Schedule
  ledger: Ledger
  evaluate: Callable[[tff.learning.models.ModelWeights], dict[str, float]]
  validation_examples: np.ndarray
  num_parameters: int
  start: Optional[initial_model.Start] = None

  def sample_cohort(self, round_num: int) -> sampling.Cohort:
    """Returns the datasets of a round's clients."""
    train = self.task.train
    settings = self.config
    seed = sampling.data_seed(seed=settings.client_seed, round_num=round_num)

    def client_dataset(index: int) -> Any:
      batches = train.client_batches(
        index,
        batch_size=settings.client_batch_size,
        epochs=settings.client_epochs_per_round,
        max_elements=settings.max_elements_per_client,
        seed=seed,
      )
      if not self.takes_client_numbers:
        return batches
      return partial_training.client_datum(batches, index)

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
  _build(experiment, 'vocabulary')
  task = _build(
    experiment,
    'task',
    data_dir=experiment.data_dir,
    vocab_size=experiment.vocab_size,
    sequence_length=experiment.sequence_length,
  )
  return cut_into_tokens(experiment, task)


def cut_into_tokens(experiment: config.ExperimentConfig, task: Task) -> Task:
  """Returns a task of words in the tokens that `--vocabulary` asks for.

  Args:
    experiment: What is to be run.
    task: The task as it is built.

  Raises:
    config.ConfigError: If the task has no such tokens.
  """
  try:
    return _build(experiment, 'vocabulary')(task)
  except ValueError as error:
    if isinstance(error, config.ConfigError):
      raise
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
  model = _build(experiment, 'model', vocab_size=vocab_size)
  return _build(experiment, 'transform', model=model)


def prepare_model(
  experiment: config.ExperimentConfig, vocabulary: Vocabulary, *, resumed: bool
) -> tuple[Optional[initial_model.Start], Callable[[], tf.keras.Model]]:
  """Loads what of `--initial_model` an experiment's model begins with.

  Args:
    experiment: What is to be run.
    vocabulary: The words of its task.
    resumed: Whether a checkpoint has the weights, so that nothing is read.

  Returns:
    What it begins with, if anything was read; and a function that returns a new
    model, which has these weights.

  Raises:
    config.ConfigError: If the initial model can't be read or is another one.
  """

  def new_model() -> tf.keras.Model:
    return build_model(experiment, vocabulary.size)

  if experiment.initial_model is None or resumed:
    return None, new_model
  start = initial_model.load(experiment.initial_model, build_model).fit(
    lambda vocab_size: build_model(experiment, vocab_size),
    vocabulary,
    experiment.reinitialized_variables,
  )
  return start, lambda: start.build(new_model)


def build(
  experiment: config.ExperimentConfig,
  canaries: Optional[mechanisms.Canaries] = None,
  *,
  resumed: bool = False,
) -> Experiment:
  """Builds an experiment's parts and sets the TFF runtime.

  Args:
    experiment: What is to be run.
    canaries: For an audit, clients of known updates.
    resumed: Whether a checkpoint has the weights, so that `--initial_model` is
      not read.

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

  start, keras_model_fn = prepare_model(
    experiment, task.vocabulary, resumed=resumed
  )
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
    releases=processes.num_releases(experiment),
  )
  if canaries is not None:
    mechanism = mechanisms.add_canaries(experiment, mechanism, canaries)
  process = processes.build(experiment, model=model, mechanism=mechanism)
  examples = task.validation.sample_examples(
    experiment.num_validation_examples, seed=0
  )
  return Experiment(
    config=experiment,
    task=task,
    process=process.process,
    takes_client_numbers=process.takes_client_numbers,
    bytes_per_client=process.bytes_per_client,
    schedule=schedule,
    ledger=mechanisms.build_ledger(
      experiment, mechanism, num_clients=len(task.train), added=canaries
    ),
    evaluate=evaluation.build_evaluation(model=model, examples=examples),
    validation_examples=examples,
    num_parameters=num_parameters,
    start=start,
  )


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
    # An audit compares the end with the beginning.
    resumed = canaries is None and bool(folder.checkpoints.newest())
    built = build(experiment, canaries, resumed=resumed)
    keep_task_facts(
      folder,
      built.task,
      examples=built.validation_examples,
      num_parameters=built.num_parameters,
      start=built.start,
    )
    summary = loop.run(
      process=built.process,
      sample_cohort=built.sample_cohort,
      evaluate=built.evaluate,
      ledger=built.ledger,
      folder=folder,
      total_rounds=experiment.total_rounds,
      rounds_per_eval=experiment.rounds_per_eval,
      rounds_per_checkpoint=experiment.rounds_per_checkpoint,
      bytes_per_client=built.bytes_per_client,
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


def keep_task_facts(
  folder: run_folder_lib.RunFolder,
  task: Task,
  *,
  examples: np.ndarray,
  num_parameters: int,
  start: Optional[initial_model.Start],
) -> None:
  """Writes what the run's data are, or checks that they still are the same.

  Args:
    folder: The run's folder.
    task: The data.
    examples: What is evaluated on, `[N, T + 1]`.
    num_parameters: How many numbers are trained.
    start: What of an initial model the run starts with, if it does.

  Raises:
    config.ConfigError: If the run in the folder began with other data.
  """
  vocabulary = task.vocabulary
  if folder.has('metrics.csv') and folder.has('task.json'):
    if vocabularies.load_vocabulary(folder.path) != vocabulary:
      raise config.ConfigError(
        f'The data of {task.name} are no longer those that the run in '
        f'{folder.path} began with (its vocabulary differs); give this one '
        'another --experiment_name.'
      )
    # Whoever reads an initial model again has not trained yet.
    if start is None:
      return
  vocabularies.save_vocabulary(vocabulary, folder.path)
  facts = {
    'name': task.name,
    'num_train_clients': len(task.train),
    'num_validation_clients': len(task.validation),
    'num_validation_examples': len(examples),
    'num_words': len(vocabulary.words),
    'tokens_per_word': task.tokens_per_word(examples),
    'num_parameters': num_parameters,
    # These take a pass over the training text.
    'reference_perplexity': task.reference_perplexities(examples),
  }
  if start is not None:
    facts['initial_model'] = dict(start.facts)
  folder.write_json('task.json', facts)
