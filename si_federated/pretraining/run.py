"""Central training of a language model, to start a federated run from."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

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
  ClientPopulation,
  Task,
  load_vocabulary,
  plain_text,
)
from si_federated.training import progress
from si_federated.training import run_folder as run_folder_lib

_FILE = 'pretraining.json'


def pretrain(
  experiment: config.ExperimentConfig, settings: Settings, root: str
) -> dict[str, Any]:
  """Trains from the start or from where it stopped.

  Args:
    experiment: Model and task; what belongs to federated training is not used.
    settings: The rest.
    root: The folder that holds the folder of this run, which is then one like
      those of federated runs, with steps for rounds.

  Returns:
    The summary.

  Raises:
    config.ConfigError: If a part, an option or the data does not exist, or the
      folder holds another run.
    KeyboardInterrupt: If interrupted; what was done is saved.
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
  """Returns what text is used, as plain values."""
  try:
    files = settings.text_files and plain_text.find_text(settings.text_files)
  except ValueError as error:
    raise config.ConfigError(
      f'--text_files={settings.text_files}: {error}'
    ) from error
  return {
    'text_files': settings.text_files,
    'text_by_line': settings.text_by_line,
    'vocabulary_from': settings.vocabulary_from,
    'files': files,
  }


def _refuse_others(
  folder: run_folder_lib.RunFolder,
  complete: config.ExperimentConfig,
  sources: dict[str, Any],
) -> None:
  """Refuses a folder that holds a run of other flags, and names them."""
  if not folder.has('metrics.csv') or not folder.has('config.json'):
    return
  ours = {field: name for name, field in CONFIG_NAMES.items()}
  differences = []
  for difference in complete.differences(
    run_folder_lib.read_config(folder.path)
  ):
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
      f'{folder.path} holds an experiment with other flags '
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
        f'--task={experiment.task} has labels, and pretraining is for language '
        'models: name a task of text, or --text_files alone.'
      )
    if settings.text_files is None:
      return task
  assert settings.text_files is not None, 'Settings ask for a task or for text.'
  try:
    if settings.has_task:
      return plain_text.train_on_text(
        task, settings.text_files, by_line=settings.text_by_line
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
  start, keras_model_fn = task_and_model.prepare_model(
    experiment, task, resumed=bool(folder.checkpoints.newest())
  )
  model = objectives.build_functional_model(task, keras_model_fn)
  examples = task.validation.sample_examples(
    experiment.num_validation_examples, seed=0
  )
  evaluate = objectives.build_evaluation(task, model, examples)
  trainer = steps.Trainer(keras_model_fn, task, settings.learning_rate)
  run_data.keep(
    folder,
    task,
    examples=examples,
    num_parameters=trainer.num_parameters,
    initial_facts=start.facts if start else None,
  )
  return _Run(trainer, evaluate, folder, task.train, settings).run()


class _Run:
  """The steps that are still to be made, and their results."""

  def __init__(
    self,
    trainer: steps.Trainer,
    evaluate: Callable[..., dict[str, float]],
    folder: run_folder_lib.RunFolder,
    population: ClientPopulation,
    settings: Settings,
  ):
    self._trainer = trainer
    self._evaluate = evaluate
    self._folder = folder
    self._population = population
    self._settings = settings
    self._interrupted = False
    state, step, facts = folder.checkpoints.restore(trainer.state())
    trainer.restore(state)
    self._resumed = bool(facts)
    self._step = self._saved = step
    # Of a row: since the one before.
    self._facts: dict[str, Any] = {
      'secs_total': 0.0,
      'row_secs': 0.0,
      'total_loss': 0.0,
      'num_tokens': 0,
      'last_eval': {},
      'best': {},
      **{key: facts[key] for key in facts if key not in ('format',)},
    }
    self._mark = 0.0

  def run(self) -> dict[str, Any]:
    """Makes the steps."""
    settings = self._settings
    self._folder.open_metrics(self._step if self._resumed else -1)
    with (
      self._interrupts(),
      progress.Progress(
        settings.num_steps, start_round=self._step
      ) as self._progress,
    ):
      if self._resumed:
        self._progress.message(f'Going on from step {self._step}.')
      else:
        self._write_row()
        self._save()
      if self._step < settings.num_steps and not self._interrupted:
        self._fit()
      if self._saved != self._step:
        self._save()
      if self._interrupted:
        self._progress.message(f'Interrupted; step {self._step} is saved.')
        raise KeyboardInterrupt
    summary = {
      'rounds': self._step,
      'secs_total': self._facts['secs_total'],
      'num_parameters': self._trainer.num_parameters,
      'best': self._facts['best'],
      'final': self._facts['last_eval'],
    }
    self._folder.write_json('summary.json', summary)
    return summary

  def _fit(self) -> None:
    settings, model = self._settings, self._trainer.model
    spec = tf.TensorSpec([None, self._population.sequence_length], tf.int32)
    data = tf.data.Dataset.from_generator(
      lambda: steps.batches(
        self._population,
        batch_size=settings.batch_size,
        seed=settings.data_seed,
        first=self._step,
        last=settings.num_steps,
      ),
      output_signature=(spec, spec),
    )
    self._mark = time.monotonic()

    def after(unused_batch: int, logs: dict[str, Any]) -> None:
      self._after_step(float(logs['loss']), int(logs['num_tokens']))
      model.stop_training = self._interrupted

    model.fit(
      data.prefetch(2),
      epochs=1,
      verbose=0,
      callbacks=[tf.keras.callbacks.LambdaCallback(on_batch_end=after)],
    )

  def _after_step(self, loss: float, num_tokens: int) -> None:
    settings, facts = self._settings, self._facts
    self._step += 1
    now = time.monotonic()
    facts['row_secs'] += now - self._mark
    facts['secs_total'] += now - self._mark
    facts['total_loss'] += loss * num_tokens
    facts['num_tokens'] += num_tokens
    is_last = self._step == settings.num_steps
    if is_last or self._step % settings.steps_per_eval == 0:
      self._write_row()
    self._progress.update(
      self._step, loss, facts['last_eval'].get('eval/perplexity')
    )
    if is_last or self._step % settings.steps_per_checkpoint == 0:
      self._save()
    self._mark = time.monotonic()

  def _write_row(self) -> None:
    facts = self._facts
    start = time.monotonic()
    metrics = self._evaluate(self._trainer.weights())
    facts['last_eval'] = {
      f'eval/{name}': value
      for name, value in metrics.items()
      if name != 'num_tokens'
    }
    row = {
      **facts['last_eval'],
      'eval_secs': time.monotonic() - start,
      'secs_total': facts['secs_total'],
    }
    if facts['num_tokens']:
      row['train/loss'] = facts['total_loss'] / facts['num_tokens']
      row['train/num_tokens'] = facts['num_tokens']
      row['round_secs'] = facts['row_secs']
    value = metrics['perplexity']
    if value < facts['best'].get('perplexity', math.inf):
      facts['best'] = {'perplexity': value, 'round_num': self._step}
    facts.update(row_secs=0.0, total_loss=0.0, num_tokens=0)
    self._folder.write_metrics(self._step, row)

  def _save(self) -> None:
    self._folder.checkpoints.save(
      self._trainer.state(), self._step, dict(self._facts)
    )
    self._saved = self._step

  @contextlib.contextmanager
  def _interrupts(self) -> Iterator[None]:
    """Has Ctrl-C and SIGTERM end training after the step under way."""
    if threading.current_thread() is not threading.main_thread():
      yield
      return

    def interrupt(signum, frame):
      del signum, frame
      if self._interrupted:  # Asked for twice.
        raise KeyboardInterrupt
      self._interrupted = True

    previous = {
      number: signal.signal(number, interrupt)
      for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
      yield
    finally:
      for number, handler in previous.items():
        signal.signal(number, handler)
