"""The parts of an experiment, built to fit together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow_federated as tff

from si_federated import config
from si_federated.algorithms import dropout_keys, partial_training
from si_federated.privacy.ledger import Ledger
from si_federated.privacy.schedules import Schedule
from si_federated.tasks import AnyTask
from si_federated.training import sampling
from si_federated.weights import initial_model


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The parts of an experiment, built and ready to run.

  Attributes:
    config: The configuration that they were built from.
    task: The data of the rounds.
    model: The model that clients train.
    process: TFF's learning process.
    takes_client_numbers: See `learning_process.Process`.
    bytes_per_client: See `learning_process.Process`.
    schedule: The clients of each round.
    ledger: The privacy guarantee of the clients, and the cost so far.
    evaluate: Returns metrics of weights on the validation clients.
    validation_examples: The examples that `evaluate` uses, `[N, T + 1]`.
    num_parameters: The number of trained parameters.
    whole_task: The data, including clients that have opted out of the rounds.
    start: The weights of `--initial_model`, if they were read.
    notices: Messages that a user should see before the first round.
    rounds_per_checkpoint: The number of rounds between checkpoints.
    draws_from_keys: Whether a client's batches bring keys for dropout.
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
  notices: Sequence[str] = ()
  rounds_per_checkpoint: int = 1
  draws_from_keys: bool = False

  def sample_cohort(self, round_num: int) -> sampling.Cohort:
    """Returns the datasets of a round's clients."""
    train = self.task.train
    settings = self.config
    seed = sampling.data_seed(seed=settings.client_seed, round_num=round_num)

    word = dropout_keys.round_word(
      seed=settings.client_seed, round_num=round_num
    )

    options: dict[str, Any] = {
      'batch_size': settings.client_batch_size,
      'epochs': settings.client_epochs_per_round,
      'max_elements': settings.max_elements_per_client,
      'seed': seed,
    }

    def client_dataset(index: int) -> Any:
      batches = train.client_batches(index, **options)
      if self.draws_from_keys:
        batches = dropout_keys.add_keys(batches, word=word, client=index)
      if not self.takes_client_numbers:
        return batches
      return partial_training.client_datum(batches, index)

    def client_stack(index: int) -> list[np.ndarray]:
      number, (ids, labels) = train.stacked_batches(index, **options)
      if self.draws_from_keys:
        ids = dropout_keys.add_keys_to_stack(
          ids, number, word=word, client=index
        )
      return [ids, labels]

    return sampling.Cohort(
      self.schedule.cohort(round_num),
      client_dataset,
      train.client_id,
      None if self.takes_client_numbers else client_stack,
    )
