"""The composition root: the one file that knows every part."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, Optional

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import config
from si_federated.aggregators import AGGREGATORS
from si_federated.algorithms import (
  ALGORITHMS,
  LEARNING_RATE_SCHEDULES,
  OPTIMIZERS,
  partial_training,
)
from si_federated.assembly import (
  audit_stage,
  expert_options,
  learning_process,
  objectives,
  personalization_stage,
  private_mechanism,
  run_data,
)
from si_federated.compression import COMPRESSORS
from si_federated.diagnostics import recorder
from si_federated.models import MODELS, TRANSFORMS
from si_federated.privacy.ledger import Ledger
from si_federated.privacy.schedules import SCHEDULES, Schedule
from si_federated.runtime import RUNTIMES, ClientError
from si_federated.tasks import TASKS, VOCABULARIES, AnyTask, mixing
from si_federated.training import loop, sampling
from si_federated.training import run_folder as run_folder_lib
from si_federated.weights import initial_model

# The parts' arguments that come from flags of their own.
_GIVEN = {
  'task': ('data_dir', 'vocab_size', 'sequence_length'),
  'vocabulary': (),
  'model': objectives.MODEL_GIVEN,
  'transform': ('model',),
  'algorithm': learning_process.ALGORITHM_GIVEN,
  'aggregator': private_mechanism.AGGREGATOR_GIVEN,
  'participation': private_mechanism.SCHEDULE_GIVEN,
  'runtime': (),
  'client_optimizer': ('learning_rate',),
  'server_optimizer': ('learning_rate',),
  'server_learning_rate_schedule': ('learning_rate', 'total_rounds'),
  'compression': (),
  'diagnostics': (),
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
  'diagnostics': recorder.DIAGNOSTICS,
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
  private_mechanism.check(experiment)
  learning_process.check(experiment)
  objectives.check(experiment)
  expert_options.check(experiment)


def _build(experiment: config.ExperimentConfig, flag: str, **given: Any) -> Any:
  return getattr(experiment, flag).build(REGISTRIES[flag], flag, **given)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The parts of an experiment, built and ready to run.

  Attributes:
    config: What they were built from.
    task: The data.
    model: What clients train.
    process: TFF's learning process.
    takes_client_numbers: See `processes.Process`, as for the next.
    bytes_per_client: How much a client sent and received in a round.
    schedule: Which clients take part in which round.
    ledger: What they are promised, and what it has cost so far.
    evaluate: Metrics of weights on the validation clients.
    validation_examples: What `evaluate` evaluates on, shape `[N, T + 1]`.
    num_parameters: How many numbers are trained.
    whole_task: The data with those who have opted out of the rounds.
    start: What of `--initial_model` the weights begin with, if it was read.
  """

  config: config.ExperimentConfig
  task: AnyTask
  model: tff.learning.models.FunctionalModel
  process: tff.learning.templates.LearningProcess
  takes_client_numbers: bool
  bytes_per_client: Callable[[Mapping[str, Any]], dict[str, float]]
  schedule: Schedule
  ledger: Ledger
  evaluate: Callable[[tff.learning.models.ModelWeights], dict[str, float]]
  validation_examples: np.ndarray
  num_parameters: int
  whole_task: AnyTask
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


def build_task(experiment: config.ExperimentConfig) -> AnyTask:
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
  task = cut_into_tokens(experiment, task)
  return mixing.mix(task, experiment.client_similarity, experiment.client_seed)


def cut_into_tokens(
  experiment: config.ExperimentConfig, task: AnyTask
) -> AnyTask:
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
  experiment: config.ExperimentConfig, vocab_size: int, **labels: int
) -> tf.keras.Model:
  """Builds the Keras model of an experiment, with its seed.

  Args:
    experiment: What is to be run.
    vocab_size: The number of ids, special ones included.
    **labels: What else the task tells: `num_classes` if it has classes.

  Returns:
    A new model.

  Raises:
    config.ConfigError: If the model refuses an option's value.
  """
  # A graph of TFF's gets its weights from outside; no seed is to stay in it.
  if tf.executing_eagerly():
    tf.keras.utils.set_random_seed(experiment.model_seed)
  model = _build(experiment, 'model', vocab_size=vocab_size, **labels)
  return _build(experiment, 'transform', model=model)


def prepare_model(
  experiment: config.ExperimentConfig, task: AnyTask, *, resumed: bool
) -> tuple[Optional[initial_model.Start], Callable[[], tf.keras.Model]]:
  """Loads what of `--initial_model` an experiment's model begins with.

  Args:
    experiment: What is to be run.
    task: Its task.
    resumed: Whether a checkpoint has the weights, so that nothing is read.

  Returns:
    What it begins with, if anything was read; and a function that returns a new
    model, which has these weights.

  Raises:
    config.ConfigError: If the initial model can't be read or is another one.
  """

  def new_model() -> tf.keras.Model:
    return build_model(experiment, **task.model_arguments)

  if experiment.initial_model is None or resumed:
    return None, new_model
  start = initial_model.load(experiment.initial_model, build_model).fit(
    lambda vocab_size: build_model(
      experiment, **{**task.model_arguments, 'vocab_size': vocab_size}
    ),
    task.vocabulary,
    experiment.reinitialized_variables,
  )
  return start, lambda: start.build(new_model)


def build(
  experiment: config.ExperimentConfig,
  canaries: Optional[private_mechanism.Canaries] = None,
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
  whole_task = build_task(experiment)
  task = expert_options.task_of_rounds(experiment, whole_task)
  if experiment.clients_per_round > len(task.train):
    raise config.ConfigError(
      f'--clients_per_round={experiment.clients_per_round} is more than the '
      f'{len(task.train)} training clients of {task.name}.'
    )
  schedule = private_mechanism.build_schedule(experiment, len(task.train))
  mechanism = private_mechanism.build_mechanism(experiment, schedule)

  start, keras_model_fn = prepare_model(experiment, task, resumed=resumed)
  model = objectives.build_functional_model(
    task,
    keras_model_fn,
    count_tokens=mechanism.client_weighting == 'tokens',
    compute_dtype=experiment.precision,
  )
  num_parameters = sum(weight.size for weight in model.initial_weights[0])
  mechanism = private_mechanism.calibrate(
    experiment,
    mechanism,
    delta=private_mechanism.default_delta(experiment, len(task.train)),
    schedule=schedule,
    dimension=num_parameters,
    releases=learning_process.num_releases(experiment),
  )
  if canaries is not None:
    mechanism = private_mechanism.add_canaries(experiment, mechanism, canaries)
  process = learning_process.build(experiment, model=model, mechanism=mechanism)
  examples = task.validation.sample_examples(
    experiment.num_validation_examples, seed=0
  )
  return Experiment(
    config=experiment,
    task=task,
    model=model,
    process=process.process,
    takes_client_numbers=process.takes_client_numbers,
    bytes_per_client=process.bytes_per_client,
    schedule=schedule,
    ledger=private_mechanism.build_ledger(
      experiment, mechanism, num_clients=len(task.train), added=canaries
    ),
    evaluate=objectives.build_evaluation(task, model, examples),
    validation_examples=examples,
    num_parameters=num_parameters,
    whole_task=whole_task,
    start=start,
  )


def run(
  experiment: config.ExperimentConfig,
  root: str,
  canaries: Optional[private_mechanism.Canaries] = None,
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
  path = os.path.join(root, experiment.experiment_name)
  folder = run_folder_lib.RunFolder(path)
  folder.open(experiment)
  try:
    # An audit compares the end with the beginning.
    resumed = canaries is None and bool(folder.checkpoints.newest())
    built = build(experiment, canaries, resumed=resumed)
    run_data.keep(
      folder,
      built.task,
      examples=built.validation_examples,
      num_parameters=built.num_parameters,
      initial_facts=built.start.facts if built.start else None,
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
      diagnostics=recorder.build_recorder(built, folder.path, build_model),
    )
    if canaries is not None:
      summary['audit'] = audit_stage.write(
        folder,
        initial=built.process.get_model_weights(built.process.initialize()),
        privacy=built.ledger.summary(),
        canaries=canaries,
      )
    if personal := personalization_stage.after_rounds(
      built, folder, build_model
    ):
      summary.update(personal)
      folder.write_json('summary.json', summary)
    return summary
  except ClientError as error:
    raise ValueError(str(error)) from error
  finally:
    folder.close()
