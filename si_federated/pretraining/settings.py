"""The settings of central training, apart from model and task."""

from __future__ import annotations

import dataclasses
import math
from typing import Optional

from si_federated import config

# The names of these settings in config.json, whose entries are those of
# federated runs.
CONFIG_NAMES = {
  'learning_rate': 'client_learning_rate',
  'batch_size': 'client_batch_size',
  'num_steps': 'total_rounds',
  'steps_per_eval': 'rounds_per_eval',
  'steps_per_checkpoint': 'rounds_per_checkpoint',
  'data_seed': 'client_seed',
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings of central training, apart from model and task.

  Attributes:
    text_files: The files of plain text to train on, as a pattern with
      wildcards; None for the sentences of the task's training clients.
    text_by_line: Whether line ends also end sentences.
    text_encoding: The text's encoding, such as `latin-1`; None for UTF-8, or
      that of a byte order mark.
    has_task: Whether to use the vocabulary and the validation clients of the
      task, rather than the words and a part of the text.
    vocabulary_from: The run whose vocabulary to use if there is no task.
    learning_rate: The learning rate of Adam.
    num_steps: The number of steps.
    batch_size: Sentences per step.
    steps_per_eval: Steps between evaluations; each evaluation writes a row.
    steps_per_checkpoint: Steps between checkpoints.
    data_seed: The seed of the order of sentences.
  """

  text_files: Optional[str] = None
  text_by_line: bool = False
  text_encoding: Optional[str] = None
  has_task: bool = True
  vocabulary_from: Optional[str] = None
  learning_rate: float = 0.001
  num_steps: int = 10_000
  batch_size: int = 64
  steps_per_eval: int = 500
  steps_per_checkpoint: int = 500
  data_seed: int = 0

  def __post_init__(self):
    for name in ('batch_size', 'steps_per_eval', 'steps_per_checkpoint'):
      if getattr(self, name) < 1:
        raise config.ConfigError(
          f'--{name} must be at least 1, found {getattr(self, name)}.'
        )
    if self.num_steps < 0:
      raise config.ConfigError(
        f'--num_steps must be at least 0, found {self.num_steps}.'
      )
    if not 0 < self.learning_rate < math.inf:
      raise config.ConfigError(
        f'--learning_rate must be above 0, found {self.learning_rate}.'
      )
    if not self.has_task and self.text_files is None:
      raise config.ConfigError('There is no text: give --task or --text_files.')
    if self.text_encoding is not None and self.text_files is None:
      raise config.ConfigError(
        '--text_encoding is for --text_files; a task reads its own data.'
      )
    if self.vocabulary_from is not None and self.has_task:
      raise config.ConfigError(
        '--vocabulary_from is for --text_files without --task, which has its '
        'own vocabulary; leave out one of the two.'
      )

  def complete(
    self, experiment: config.ExperimentConfig
  ) -> config.ExperimentConfig:
    """Returns the configuration for `config.json`, where a step is a round.

    Args:
      experiment: Model and task.
    """
    given = {field: getattr(self, name) for name, field in CONFIG_NAMES.items()}
    if not self.has_task:
      given['task'] = config.ComponentSpec('text')
    return dataclasses.replace(
      experiment,
      algorithm=config.ComponentSpec('pretrain'),
      clients_per_round=1,
      client_optimizer=config.ComponentSpec('adam'),
      server_optimizer=config.ComponentSpec('sgd'),
      server_learning_rate=1.0,
      **given,
    )
