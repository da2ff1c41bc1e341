"""What determines a central training beside model and task."""

from __future__ import annotations

import dataclasses
import math
from typing import Optional

from si_federated import config

# What config.json, made for federated runs, calls by another name.
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
  """What determines a central training beside the model and the task.

  Attributes:
    text_files: Plain text to train on, a name with wildcards; the sentences of
      the task's training clients if `None`.
    text_by_line: Whether sentences end at line ends.
    has_task: Whether the task's vocabulary and validation clients are used;
      otherwise the text's own.
    vocabulary_from: A run whose vocabulary is used, without a task.
    learning_rate: Of Adam.
    num_steps: The number of steps.
    batch_size: Sentences a step.
    steps_per_eval: Evaluate, and write a row, every so many steps.
    steps_per_checkpoint: Save every so many steps.
    data_seed: Seed of the order of sentences.
  """

  text_files: Optional[str] = None
  text_by_line: bool = False
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
    if self.vocabulary_from is not None and self.has_task:
      raise config.ConfigError(
        '--vocabulary_from is for --text_files alone; with --task the '
        "vocabulary is the task's."
      )

  def complete(
    self, experiment: config.ExperimentConfig
  ) -> config.ExperimentConfig:
    """Returns the configuration as `config.json` holds it: a step is a round.

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
