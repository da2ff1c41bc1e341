"""The folder of a run: configuration, metrics, checkpoints, summary.

ROOT/EXPERIMENT/
  config.json     every flag
  task.json       facts about the data
  vocabulary.txt  one word a line; characters.txt or vocabulary.model for others
  metrics.csv     a row a round
  diagnostics.csv round, layer, quantity, value (--diagnostics)
  logdir/         TensorBoard
  checkpoints/    the newest states; secret for a private run, since they
                  contain the seed of the noise
  strategy.npz    the correlation of a private run's noise, unless it is a tree
  privacy.json    participation, noise and the privacy guarantee, as of the
                  newest checkpoint
  summary.json    the final results
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import csv
import dataclasses
import json
import math
import os
from collections.abc import Sequence
from typing import Any, Optional, Union

import numpy as np
import tensorflow_federated as tff

from si_federated import config, files
from si_federated.training import checkpoints, event_files, write_errors

# The sources of the text of a pretraining.
PRETRAINING_FILE = 'pretraining.json'
COLUMNS = (
  'train/loss',
  'train/accuracy',
  'train/accuracy_no_oov',
  'train/accuracy_no_oov_no_eos',
  'train/macro_f1',
  'train/num_tokens',
  'train/num_examples',
  'train/trained_fraction',
  'train/clip_norm',
  'train/clip_fraction',
  'train/nonfinite_updates',
  'eval/loss',
  'eval/perplexity',
  'eval/accuracy',
  'eval/accuracy_no_oov',
  'eval/accuracy_no_oov_no_eos',
  'eval/macro_f1',
  'round_secs',
  'eval_secs',
  'secs_total',
  'clients_per_sec',
  'bytes_up_per_client',
  'bytes_down_per_client',
  'bytes_up_total',
  'bytes_down_total',
  'privacy/epsilon',
)


class RunFolder:
  """The folder of one run, locked by one process at a time."""

  def __init__(self, path: Union[str, os.PathLike]):
    """Initializes the folder; nothing is written yet.

    Args:
      path: The folder.
    """
    self.path = os.fspath(path)
    self.checkpoints = checkpoints.Checkpoints(
      os.path.join(self.path, 'checkpoints')
    )
    self._lock: Any = None
    self._metrics: Any = None
    self._tensorboard: Any = None

  def _file(self, name: str) -> str:
    return os.path.join(self.path, name)

  def open(
    self,
    experiment: config.ExperimentConfig,
    planned_for_rounds: Sequence[str] = (),
  ) -> bool:
    """Locks the folder for an experiment, new or resumed.

    A finished run can continue for more rounds than planned.

    Args:
      experiment: The experiment.
      planned_for_rounds: Phrases that name the parts which depend on the number
        of rounds, and therefore forbid more.

    Returns:
      Whether the folder already has this experiment.

    Raises:
      config.ConfigError: If it has a different one.
      files.LockedError: If another process is running it.
    """
    self._lock = files.lock_folder(self.path, 'running the experiment in')
    try:
      return self._hold(experiment, planned_for_rounds)
    except BaseException:
      self.close()
      raise

  def _hold(
    self,
    experiment: config.ExperimentConfig,
    planned_for_rounds: Sequence[str],
  ) -> bool:
    """Assigns the locked folder to an experiment; see `open`."""
    for folder in ('', 'checkpoints', 'logdir', 'clients'):
      files.remove_leftovers(self._file(folder))
    held = read_config(self.path) if self.has('config.json') else None
    differences = experiment.differences(held) if held is not None else []
    if held is not None and self.has_rounds:
      longer = dataclasses.replace(held, total_rounds=experiment.total_rounds)
      if (
        experiment.total_rounds > held.total_rounds
        and not experiment.differences(longer)
      ):
        self._check_more_rounds(experiment, held, planned_for_rounds)
        differences = []
    if differences and self.has_rounds:
      raise config.ConfigError(
        f'{self.path} has an experiment with other flags '
        f'({"; ".join(differences)}); give this one another '
        '--experiment_name, or the same flags to resume.'
      )
    if held is None or held.to_json() != experiment.to_json():
      files.write_atomically(self._file('config.json'), experiment.to_json())
    return held is not None and not differences

  def _check_more_rounds(
    self,
    experiment: config.ExperimentConfig,
    held: config.ExperimentConfig,
    planned_for_rounds: Sequence[str],
  ) -> None:
    if planned_for_rounds:
      raise config.ConfigError(
        f'{self.path} has a run of {held.total_rounds} rounds, for which '
        f'{" and ".join(planned_for_rounds)} were made: it cannot continue to '
        f'--total_rounds={experiment.total_rounds}. Start another '
        f'--experiment_name from its weights with --initial_model={self.path}; '
        'clients of both runs pay the privacy of both.'
      )

  def close(self) -> None:
    """Unlocks the folder."""
    if self._lock is not None:
      self._lock.close()
      self._lock = None

  def has(self, name: str) -> bool:
    """Returns whether the folder has a file of this name."""
    return os.path.exists(self._file(name))

  @property
  def has_rounds(self) -> bool:
    """Whether there is something to resume.

    A run that failed before its first row, for example because data were
    missing, leaves nothing. A checkpoint counts even if its rows were deleted.
    """
    return self.has('metrics.csv') or bool(self.checkpoints.newest())

  def read_json(self, name: str) -> dict[str, Any]:
    """Returns the content of a JSON file; empty if it is missing or garbled."""
    return _read_json(self._file(name))

  def write_json(self, name: str, value: Any) -> None:
    """Writes a JSON file into the folder.

    Args:
      name: The file's name.
      value: JSON values; numbers that are not finite become null.
    """
    files.write_atomically(
      self._file(name), json.dumps(_json_value(value), indent=2) + '\n'
    )

  def open_metrics(self, round_num: int) -> None:
    """Opens the metrics to continue them after a round.

    Later rows, which a killed run wrote after its last checkpoint, are removed,
    also from TensorBoard's files.

    Args:
      round_num: The round of the checkpoint; -1 for a new run.
    """
    path = self._file('metrics.csv')
    rows = _whole_rows(path) if os.path.exists(path) else []
    kept = [row for row in rows if int(row['round_num']) <= round_num]
    with files.atomic_file(path) as file:
      lines = [','.join(('round_num', *COLUMNS))]
      lines += [
        ','.join(row.get(column, '') for column in ('round_num', *COLUMNS))
        for row in kept
      ]
      file.write(('\n'.join(lines) + '\n').encode())
    event_files.remove_later_steps(self._file('logdir'), round_num)
    self._tensorboard = tff.program.TensorBoardReleaseManager(
      self._file('logdir')
    )

  def write_metrics(self, round_num: int, values: dict[str, float]) -> None:
    """Writes a round's row.

    Args:
      round_num: The round; 0 is the evaluation before the first.
      values: The columns that the round has.

    Raises:
      KeyError: If a column is not one of `COLUMNS`.
      OSError: If the files can't be written.
    """
    unknown = set(values) - set(COLUMNS)
    if unknown:
      raise KeyError(f'There are no columns {sorted(unknown)}.')
    row = [values.get(column, '') for column in COLUMNS]
    line = ','.join(str(np.asarray(cell).tolist()) for cell in row)
    # TFF's manager of such files rewrites all rows each round, which took a
    # third of the time of rounds after some thousand of them.
    files.append(self._file('metrics.csv'), f'{round_num},{line}\n')
    # TensorBoard's 32-bit numbers overflow with the perplexity of a diverging
    # model.
    with np.errstate(over='ignore'):
      shown = {column: np.float32(value) for column, value in values.items()}

    async def release():
      with write_errors.named(self._file('logdir')):
        await self._tensorboard.release(shown, round_num)

    try:
      asyncio.get_running_loop()
    except RuntimeError:
      asyncio.run(release())
    else:
      # A notebook runs an event loop, which does not allow a second one.
      with concurrent.futures.ThreadPoolExecutor(1) as executor:
        executor.submit(asyncio.run, release()).result()


def _json_value(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _json_value(element) for key, element in value.items()}
  if isinstance(value, (list, tuple)):
    return [_json_value(element) for element in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _whole_rows(path: str) -> list[dict[str, str]]:
  return [
    row
    for row in csv.DictReader(files.whole_lines(path))
    if (row.get('round_num') or '').isdigit() and None not in row.values()
  ]


def read_metrics(path: Union[str, os.PathLike]) -> list[dict[str, str]]:
  """Reads the whole rows of a run's metrics.

  Args:
    path: The run's folder.

  Returns:
    A row a round, of texts by column; empty if there is none.
  """
  try:
    return _whole_rows(os.path.join(path, 'metrics.csv'))
  except (OSError, ValueError):
    return []


def read_config(path: Union[str, os.PathLike]) -> config.ExperimentConfig:
  """Reads the configuration of a run.

  Args:
    path: The run's folder.

  Returns:
    The configuration.

  Raises:
    config.ConfigError: If the folder has no run or a garbled configuration.
  """
  file = os.path.join(path, 'config.json')
  try:
    with open(file, encoding='utf-8') as handle:
      return config.ExperimentConfig.from_json(handle.read())
  except OSError as error:
    raise config.ConfigError(
      f'{os.fspath(path)} is not the folder of a run: it has no config.json.'
    ) from error
  except config.ConfigError as error:
    raise config.ConfigError(f'{file}: {error}') from error


def read_privacy(path: Union[str, os.PathLike]) -> dict[str, Any]:
  """Reads the privacy of a run's newest checkpoint.

  Args:
    path: The run's folder.

  Returns:
    The content of privacy.json; empty if there is none.
  """
  return _read_json(os.path.join(path, 'privacy.json'))


def read_task(path: Union[str, os.PathLike]) -> dict[str, Any]:
  """Reads the facts about a run's data.

  Args:
    path: The run's folder.

  Returns:
    The content of task.json; empty if there is none.
  """
  return _read_json(os.path.join(path, 'task.json'))


def read_text_files(path: Union[str, os.PathLike]) -> Optional[str]:
  """Reads which text a pretraining had in place of a task's clients.

  Args:
    path: The run's folder.

  Returns:
    The pattern of its files; None if it had the clients of its task, or if the
    run is not a pretraining.
  """
  sources = _read_json(os.path.join(path, PRETRAINING_FILE))
  pattern = sources.get('text_files')
  return None if pattern is None else str(pattern)


def _read_json(path: str) -> dict[str, Any]:
  try:
    with open(path, encoding='utf-8') as handle:
      return dict(json.load(handle))
  except (OSError, ValueError, TypeError):
    return {}


def read_classes(path: Union[str, os.PathLike]) -> tuple[str, ...]:
  """Reads the classes of a run's task.

  Args:
    path: The run's folder.

  Returns:
    Their names by label; empty if the task has no classes, or if the run has
    not read its data yet.
  """
  try:
    with open(os.path.join(path, 'task.json'), encoding='utf-8') as handle:
      return tuple(json.load(handle).get('classes', ()))
  except (OSError, ValueError, AttributeError):
    return ()


def model_labels(path: Union[str, os.PathLike]) -> dict[str, int]:
  """Returns the arguments of a run's model that depend on its labels.

  Args:
    path: The run's folder.
  """
  classes = read_classes(path)
  return {'num_classes': len(classes)} if classes else {}
