"""Central training of a language model, to start a federated run from."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import Any

from si_federated import config, runtime
from si_federated.assembly import (
  checks,
  objectives,
  run_data,
  task_and_model,
)
from si_federated.pretraining import steps
from si_federated.pretraining.settings import CONFIG_NAMES, Settings
from si_federated.tasks import (
  Task,
  load_vocabulary,
  plain_text,
)
from si_federated.training import callbacks, loop
from si_federated.training import run_folder as run_folder_lib

_FILE = run_folder_lib.PRETRAINING_FILE


def pretrain(
  experiment: config.ExperimentConfig, settings: Settings, root: str
) -> dict[str, Any]:
  """Trains a model, from the start or resumed.

  Args:
    experiment: Model and task; federated settings are not used.
    settings: The settings of the training.
    root: The folder for the run's folder, which is like that of a federated
      run, with steps for rounds.

  Returns:
    The summary.

  Raises:
    config.ConfigError: If a part, an option or the data does not exist, or the
      folder has another run.
    KeyboardInterrupt: If interrupted; all complete steps are saved.
  """
  checks.check(experiment)
  folder = run_folder_lib.RunFolder(
    os.path.join(root, experiment.experiment_name)
  )
  complete = settings.complete(experiment)
  sources = _sources(settings)
  _refuse_others(folder, complete, sources)
  folder.open(complete)
  try:
    folder.write_json(_FILE, sources)
    return _run(complete, settings, folder)
  finally:
    folder.close()


def _sources(settings: Settings) -> dict[str, Any]:
  """Returns the sources of the text, as plain values."""
  try:
    files = settings.text_files and plain_text.find_text(settings.text_files)
  except ValueError as error:
    raise config.ConfigError(
      f'--text_files={settings.text_files}: {error}'
    ) from error
  return {
    'text_files': settings.text_files,
    'text_by_line': settings.text_by_line,
    'text_encoding': settings.text_encoding,
    'vocabulary_from': settings.vocabulary_from,
    'files': files,
  }


def _refuse_others(
  folder: run_folder_lib.RunFolder,
  complete: config.ExperimentConfig,
  sources: dict[str, Any],
) -> None:
  """Raises, naming the flags, if the folder has a run with other flags."""
  if not folder.has_rounds or not folder.has('config.json'):
    return
  ours = {field: name for name, field in CONFIG_NAMES.items()}
  differences = []
  earlier = run_folder_lib.read_config(folder.path)
  if complete.total_rounds > earlier.total_rounds:
    # More steps continue it.
    earlier = dataclasses.replace(earlier, total_rounds=complete.total_rounds)
  for difference in complete.differences(earlier):
    field, _, values = difference[2:].partition(':')
    differences.append(f'--{ours.get(field, field)}:{values}')
  if folder.has(_FILE):
    with open(os.path.join(folder.path, _FILE), encoding='utf-8') as file:
      held = json.load(file)
    differences += [
      f'--{name}: {value} here, {held.get(name)} there'
      for name, value in sources.items()
      if name != 'files' and held.get(name) != value
    ]
    if not differences and held.get('files') != sources['files']:
      differences = [f'--text_files={sources["text_files"]}: other files there']
  if differences:
    raise config.ConfigError(
      f'{folder.path} has an experiment with other flags '
      f'({"; ".join(differences)}); give this one another --experiment_name, '
      'or the same flags to resume.'
    )


def _build_task(
  experiment: config.ExperimentConfig, settings: Settings
) -> Task:
  task: Any = None
  if settings.has_task:
    task = task_and_model.build_task(experiment)
    if not isinstance(task, Task):
      raise config.ConfigError(
        f'--task={experiment.task} has labels, but pretraining is for language '
        'models: give a task of text, or --text_files alone.'
      )
    if settings.text_files is None:
      return task
  assert settings.text_files is not None, 'Settings require a task or text.'
  try:
    if settings.has_task:
      return plain_text.train_on_text(
        task,
        settings.text_files,
        by_line=settings.text_by_line,
        encoding=settings.text_encoding,
      )
    vocabulary = None
    if settings.vocabulary_from is not None:
      vocabulary = load_vocabulary(settings.vocabulary_from)
    task = plain_text.text_task(
      settings.text_files,
      vocab_size=experiment.vocab_size,
      sequence_length=experiment.sequence_length,
      vocabulary=vocabulary,
      by_line=settings.text_by_line,
      encoding=settings.text_encoding,
    )
    if vocabulary is not None:
      return task
    cut = task_and_model.cut_into_tokens(experiment, task)
    assert isinstance(cut, Task), 'Tokens do not change the kind of a task.'
    return cut
  except ValueError as error:
    if isinstance(error, config.ConfigError):
      raise
    raise config.ConfigError(str(error)) from error


def _run(
  experiment: config.ExperimentConfig,
  settings: Settings,
  folder: run_folder_lib.RunFolder,
) -> dict[str, Any]:
  runtime.set_local_context()
  task = _build_task(experiment, settings)
  resumed = bool(folder.checkpoints.newest())
  start, keras_model_fn = task_and_model.prepare_model(
    experiment, task, resumed=resumed
  )
  model = objectives.build_functional_model(task, keras_model_fn)
  examples = task.validation.sample_examples(
    experiment.num_validation_examples, seed=0
  )
  evaluate = objectives.build_evaluation(task, model, examples)
  notices = (
    task_and_model.frozen_at_random(experiment, task, start, keras_model_fn())
    if model.initial_weights[1] and not resumed
    else []
  )
  process = steps.Process(keras_model_fn, task, settings.learning_rate)
  weights = process.initialize()['global_model_weights']['trainable']
  run_data.keep(
    folder,
    task,
    examples=examples,
    num_parameters=sum(math.prod(weight.shape) for weight in weights),
    initial_facts=start.facts if start else None,
  )
  return loop.run(
    process=process,
    sample_cohort=steps.Batches(
      task.train, batch_size=settings.batch_size, seed=settings.data_seed
    ),
    evaluate=evaluate,
    folder=folder,
    total_rounds=settings.num_steps,
    rounds_per_eval=settings.steps_per_eval,
    rounds_per_row=settings.steps_per_eval,
    rounds_per_checkpoint=settings.steps_per_checkpoint,
    bytes_per_client=lambda unused_metrics: {},
    callbacks=[callbacks.Notices(notices), steps.Means()],
    in_place=True,
    stop_when_diverged=experiment.stop_when_diverged,
    unit='step',
  )
