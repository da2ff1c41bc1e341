"""Builds an experiment from its configuration, and runs it.

ExperimentConfig -> task, model -> mechanism -> learning process -> rounds
"""

from __future__ import annotations

import os
from typing import Any, Optional

from si_federated import config
from si_federated.aggregators import NOISE_FROM_CLIENTS
from si_federated.algorithms import dropout_keys
from si_federated.assembly import (
  audit_stage,
  client_schedule,
  diagnostics_stage,
  earlier_run,
  expert_options,
  learning_process,
  objectives,
  personalization_stage,
  private_mechanism,
  run_data,
)
from si_federated.assembly.built_experiment import Experiment
from si_federated.assembly.checks import check, planned_for_rounds
from si_federated.assembly.registries import REGISTRIES, build_part
from si_federated.assembly.task_and_model import (
  build_model,
  build_task,
  frozen_at_random,
  prepare_model,
)
from si_federated.layers.static_graphs import static_shapes
from si_federated.runtime import (
  ClientError,
  UnsupportedError,
  needs_static_shapes,
)
from si_federated.tasks import data_fingerprint
from si_federated.training import callbacks, loop
from si_federated.training import run_folder as run_folder_lib

__all__ = [
  'REGISTRIES',
  'Experiment',
  'build',
  'build_model',
  'build_task',
  'check',
  'run',
]


def build(
  experiment: config.ExperimentConfig,
  canaries: Optional[audit_stage.Canaries] = None,
  *,
  resumed: bool = False,
) -> Experiment:
  """Builds an experiment's parts and sets the TFF runtime.

  Args:
    experiment: The experiment.
    canaries: Clients with known updates, for an audit.
    resumed: Whether a checkpoint has the weights, so that `--initial_model` is
      not read.

  Returns:
    The experiment.

  Raises:
    config.ConfigError: If a part, an option or the data does not exist.
  """
  check(experiment)
  with static_shapes(_has_static_shapes(experiment)):
    return _build(experiment, canaries, resumed=resumed)


def _has_static_shapes(experiment: config.ExperimentConfig) -> bool:
  runtime = experiment.runtime
  return needs_static_shapes(runtime.name, dict(runtime.options))


def _build(
  experiment: config.ExperimentConfig,
  canaries: Optional[audit_stage.Canaries],
  *,
  resumed: bool,
  folder: Optional[run_folder_lib.RunFolder] = None,
) -> Experiment:
  try:
    build_part(experiment, 'runtime')
  except ModuleNotFoundError as error:
    raise config.ConfigError(str(error)) from error
  whole_task = build_task(experiment)
  task = expert_options.task_of_rounds(experiment, whole_task)
  if experiment.clients_per_round > len(task.train):
    raise config.ConfigError(
      f'--clients_per_round={experiment.clients_per_round} is more than the '
      f'{len(task.train)} training clients of {task.name}.'
    )
  if experiment.clip_norm_from is not None:
    earlier_run.check_clients(
      experiment, data_fingerprint.fingerprint(task.train)
    )
  schedule = client_schedule.build_schedule(
    experiment,
    len(task.train),
    num_canaries=0 if canaries is None else canaries.count,
  )
  mechanism = private_mechanism.build_mechanism(experiment, schedule)
  if folder is not None:
    mechanism = private_mechanism.keep_strategy(
      mechanism,
      os.path.join(folder.path, 'strategy.npz'),
      resumed=bool(folder.checkpoints.newest()),
    )

  start, keras_model_fn = prepare_model(experiment, task, resumed=resumed)
  model = objectives.build_functional_model(
    task,
    keras_model_fn,
    count_tokens=mechanism.client_weighting == 'tokens',
    compute_dtype=experiment.precision,
  )
  num_parameters = sum(weight.size for weight in model.initial_weights[0])
  delta = client_schedule.default_delta(experiment, len(task.train))
  mechanism = private_mechanism.calibrate(
    experiment,
    mechanism,
    delta=delta,
    schedule=schedule,
    dimension=num_parameters,
  )
  if canaries is not None:
    mechanism = audit_stage.add_canaries(
      experiment, mechanism, canaries, schedule
    )
  keras_model = keras_model_fn()
  drops_out = dropout_keys.draws_at_random(keras_model)
  keyed = drops_out and dropout_keys.takes_keys(keras_model)
  process = learning_process.build(
    experiment,
    model=model.with_dropout_keys() if keyed else model,
    mechanism=mechanism,
  )
  examples = task.validation.sample_examples(
    experiment.num_validation_examples, seed=0
  )
  is_private = mechanism.record is not None and bool(
    mechanism.record.noise_multiplier
  )
  no_repeats = []
  if is_private and experiment.rounds_per_checkpoint > 1:
    # A repeated round has the same noise. If clients then sent other updates,
    # the difference of the two releases would reveal theirs, without noise.
    if drops_out and not keyed:
      no_repeats.append(
        'Clients draw random numbers (dropout), so every round is saved: '
        'repeating one would reveal what its noise hides.'
      )
    if experiment.aggregator.name in NOISE_FROM_CLIENTS:
      no_repeats.append(
        'Clients draw new noise if a round is repeated, so every round '
        'is saved: two releases of a round would cost privacy twice.'
      )
  return Experiment(
    config=experiment,
    task=task,
    model=model,
    process=process.process,
    draws_from_keys=keyed,
    takes_client_numbers=process.takes_client_numbers,
    bytes_per_client=process.bytes_per_client,
    schedule=schedule,
    ledger=private_mechanism.build_ledger(
      experiment,
      mechanism,
      train_metrics=objectives.metric_names(model),
      num_clients=len(task.train),
      added=canaries,
    ),
    evaluate=objectives.build_evaluation(task, model, examples),
    validation_examples=examples,
    num_parameters=num_parameters,
    whole_task=whole_task,
    start=start,
    notices=[
      *(
        frozen_at_random(
          experiment, task, start, keras_model if start else keras_model_fn()
        )
        if model.initial_weights[1] and not resumed
        else []
      ),
      *private_mechanism.delta_notices(mechanism, delta, len(task.train)),
      *no_repeats,
    ],
    rounds_per_checkpoint=1 if no_repeats else experiment.rounds_per_checkpoint,
  )


def run(
  experiment: config.ExperimentConfig,
  root: str,
  canaries: Optional[audit_stage.Canaries] = None,
) -> dict[str, Any]:
  """Runs an experiment from its start or from where it stopped.

  Args:
    experiment: The experiment.
    root: The folder that contains the folder of this run.
    canaries: Clients with known updates, for an audit.

  Returns:
    The summary; for an audit, its entry `audit` is the result.

  Raises:
    config.ConfigError: If a part, an option or the data does not exist, or the
      folder has another experiment.
    KeyboardInterrupt: If interrupted; the complete rounds are saved.
    ValueError: If a client fails; the message names it.
  """
  check(experiment)
  path = os.path.join(root, experiment.experiment_name)
  folder = run_folder_lib.RunFolder(path)
  folder.open(experiment, planned_for_rounds(experiment))
  try:
    resumed = bool(folder.checkpoints.newest())
    with static_shapes(_has_static_shapes(experiment)):
      built = _build(experiment, canaries, resumed=resumed, folder=folder)
    run_data.keep(
      folder,
      built.task,
      examples=built.validation_examples,
      num_parameters=built.num_parameters,
      initial_facts=built.start.facts if built.start else None,
      is_private=built.ledger.is_private,
    )
    recorder = diagnostics_stage.build_recorder(built, folder.path)
    summary = loop.run(
      process=built.process,
      sample_cohort=built.sample_cohort,
      evaluate=built.evaluate,
      folder=folder,
      total_rounds=experiment.total_rounds,
      rounds_per_eval=experiment.rounds_per_eval,
      rounds_per_checkpoint=built.rounds_per_checkpoint,
      bytes_per_client=built.bytes_per_client,
      stop_when_diverged=experiment.stop_when_diverged,
      callbacks=[
        callbacks.Notices(built.notices),
        callbacks.PrivacyAccounting(built.ledger),
        *([recorder] if recorder is not None else []),
      ],
    )
    if canaries is not None:
      summary['audit'] = audit_stage.write(
        folder,
        privacy=built.ledger.summary(),
        canaries=canaries,
      )
    if personal := personalization_stage.after_rounds(built, folder):
      summary.update(personal)
      folder.write_json('summary.json', summary)
    return summary
  except (ClientError, UnsupportedError) as error:
    raise ValueError(str(error)) from error
  finally:
    folder.close()
