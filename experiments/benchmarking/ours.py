"""This project's own processes, built as `experiments.train` builds them."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments.benchmarking import workload
from si_federated import config, experiment, tasks
from si_federated.runtime import RUNTIMES
from si_federated.tasks import ClientPopulation
from si_federated.tasks.token_arrays import UNLISTED, TokenArrays

_NAME = 'benchmark'


def population(
  settings: workload.Settings, clients: Sequence[np.ndarray]
) -> ClientPopulation:
  """Stores clients' sentences in the same way as tasks.

  Args:
    settings: The sizes.
    clients: `[n, T + 1]` ids of each client.

  Returns:
    The clients, whose sentences have the same ids.
  """
  words = settings.num_words

  def ranks(sentence: np.ndarray) -> list[int]:
    # The beginning, the end and padding are not stored.
    kept = sentence[(sentence > 0) & (sentence <= words + 1)]
    return np.where(kept <= words, kept - 1, UNLISTED).tolist()

  arrays = TokenArrays.from_clients(
    {
      str(index): [ranks(sentence) for sentence in client]
      for index, client in enumerate(clients)
    }
  )
  return ClientPopulation(arrays, words, settings.sequence_length)


class Cohort(collections.abc.Sequence):
  """The datasets of all clients of a population, made on demand."""

  def __init__(self, clients: ClientPopulation, batch_size: int):
    """Initializes the cohort."""
    self._clients = clients
    self._batch_size = batch_size

  def __len__(self) -> int:
    return len(self._clients)

  def __getitem__(self, position: Any) -> Any:
    if isinstance(position, slice):
      return [self[i] for i in range(*position.indices(len(self)))]
    return self._clients.client_batches(position, batch_size=self._batch_size)

  def stack(self, position: int) -> Any:
    """Returns a client's batches as arrays; see `training.sampling.Cohort`."""
    return self._clients.stacked_batches(position, batch_size=self._batch_size)[
      1
    ]


def set_runtime(name: str, **options: Any) -> Any:
  """Sets the runtime of all processes that `build` will build.

  Args:
    name: A name in `RUNTIMES`.
    **options: The runtime's options.

  Returns:
    The runtime's context.

  Raises:
    ValueError: There is no runtime of this name.
  """
  if name not in RUNTIMES:
    raise ValueError(
      f'There is no runtime {name!r} in this checkout; leave it out.'
    )
  context = RUNTIMES[name](**options)
  RUNTIMES[_NAME] = lambda: None
  return context


def build(
  settings: workload.Settings, model: str, algorithm: str = 'fed_avg'
) -> experiment.Experiment:
  """Builds a process for the benchmark's clients.

  Args:
    settings: The sizes.
    model: `lstm`, `cifg` or `si_cifg`, with the settings' sizes and untied
      embeddings, or a model with options, `name:key=value`.
    algorithm: The algorithm, as in `--algorithm`.

  Returns:
    The experiment.
  """

  def task(*, data_dir: Any, vocab_size: int, sequence_length: int):
    del data_dir
    clients = population(settings, [workload.full_sentences(settings, 1)])
    vocabulary = tasks.Vocabulary(tuple(f'w{i}' for i in range(vocab_size)))
    return tasks.Task(
      _NAME, vocabulary, sequence_length, clients, clients, clients
    )

  tasks.TASKS[_NAME] = task
  return experiment.build(
    config.ExperimentConfig(
      experiment_name=_NAME,
      task=config.ComponentSpec(_NAME),
      runtime=config.ComponentSpec(_NAME),
      model=config.ComponentSpec.parse(
        model
        if ':' in model
        else f'{model}:tied_embeddings=false,units={settings.units},'
        f'embedding_size={settings.embedding_size}'
      ),
      algorithm=config.ComponentSpec.parse(algorithm),
      # As TFF and the peers weight clients.
      aggregator=config.ComponentSpec.parse('mean:weighting=examples'),
      client_optimizer=config.ComponentSpec('sgd'),
      client_learning_rate=settings.learning_rate,
      server_optimizer=config.ComponentSpec('sgd'),
      server_learning_rate=1.0,
      clients_per_round=1,
      client_batch_size=settings.batch_size,
      sequence_length=settings.sequence_length,
      vocab_size=settings.num_words,
      num_validation_examples=1,
      model_seed=settings.seed,
    )
  )


def cohort(
  settings: workload.Settings, clients: Sequence[np.ndarray]
) -> Cohort:
  """Returns the datasets of clients, through the project's own input path."""
  return Cohort(population(settings, clients), settings.batch_size)


def build_tff_baseline(
  settings: workload.Settings, *, comparable: bool = False
) -> tff.learning.templates.LearningProcess:
  """Builds FedAvg as in TFF's Stack Overflow baseline.

  `tff.simulation.baselines.stackoverflow`'s model, loss and metrics in
  `from_keras_model` and `build_weighted_fed_avg`, with TFF's defaults.

  Args:
    settings: The sizes.
    comparable: Whether to exclude padded labels from the loss. The baseline
      includes them: Keras's mask does not reach TFF's loss.

  Returns:
    The process.
  """
  from tensorflow_federated.python.simulation.baselines import keras_metrics
  from tensorflow_federated.python.simulation.baselines.stackoverflow import (
    word_prediction_models,
  )

  accuracy = keras_metrics.MaskedCategoricalAccuracy
  unknown, end = settings.num_words + 1, settings.num_words + 3
  spec = tf.TensorSpec([None, settings.sequence_length], tf.int64)

  def model_fn() -> tff.learning.models.VariableModel:
    return tff.learning.models.from_keras_model(
      word_prediction_models.create_recurrent_model(
        settings.vocab_size,
        embedding_size=settings.embedding_size,
        lstm_size=settings.units,
      ),
      loss=(
        tf.keras.losses.SparseCategoricalCrossentropy(
          from_logits=True, ignore_class=0 if comparable else None
        )
      ),
      input_spec=(spec, spec),
      metrics=[
        keras_metrics.NumTokensCounter(masked_tokens=[0]),
        accuracy(name='accuracy', masked_tokens=[0]),
        accuracy(name='no_oov', masked_tokens=[0, unknown]),
        accuracy(name='no_oov_or_end', masked_tokens=[0, unknown, end]),
      ],
    )

  return tff.learning.algorithms.build_weighted_fed_avg(
    model_fn,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(
      settings.learning_rate
    ),
    server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
  )


def tff_cohort(
  settings: workload.Settings, clients: Sequence[np.ndarray]
) -> list[tf.data.Dataset]:
  """Returns clients' batches with the types of TFF's baseline."""
  return [
    tf.data.Dataset.from_tensor_slices(
      (client[:, :-1].astype(np.int64), client[:, 1:].astype(np.int64))
    ).batch(settings.batch_size)
    for client in clients
  ]
