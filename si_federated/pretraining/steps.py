"""Central training as a learning process whose rounds are steps."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import packed_tokens
from si_federated.tasks import ClientPopulation, Task, seeded_orders
from si_federated.training import callbacks
from si_federated.weights import named_variables


class Batch(NamedTuple):
  """The sentences of a step, `[B, T]` ids and labels, without clients."""

  ids: np.ndarray
  labels: np.ndarray

  @property
  def clients(self) -> list[int]:
    """The clients' indices."""
    return []


class Process:
  """Steps of Adam on a Keras model.

  The state is a dictionary of the model's and the optimizer's variables, which
  a step changes in place. A state restored from a checkpoint has their values
  instead.

  Args:
    keras_model_fn: Builds the model.
    task: The data.
    learning_rate: The learning rate of Adam.
  """

  def __init__(
    self,
    keras_model_fn: Callable[[], tf.keras.Model],
    task: Task,
    learning_rate: float,
  ):
    built, named = named_variables.build_named(keras_model_fn)
    trained = {id(v) for v in built.trainable_variables}
    variables = list(named.values())
    model = packed_tokens.pack_tokens(
      built, end_of_sentence=task.vocabulary.end
    )
    optimizer = tf.keras.optimizers.Adam(learning_rate)
    optimizer.build(model.trainable_variables)
    self._state: dict[str, Any] = {
      'global_model_weights': {
        'trainable': [v for v in variables if id(v) in trained],
        'non_trainable': [v for v in variables if id(v) not in trained],
      },
      'optimizer': list(optimizer.variables),
    }

    spec = tf.TensorSpec([None, task.train.sequence_length], tf.int32)

    @tf.function(input_signature=(spec, spec))
    def step(ids, labels):
      with tf.GradientTape() as tape:
        positions, logits = model(ids, training=True)
        labels = packed_tokens.gather_tokens(labels, positions)
        loss = task.loss(labels, logits)
      optimizer.minimize(loss, model.trainable_variables, tape=tape)
      return loss, tf.size(labels)

    self._step = step

  def initialize(self) -> dict[str, Any]:
    """Returns the state before the first step."""
    return self._state

  def next(self, state: dict[str, Any], batch: Batch) -> types.SimpleNamespace:
    """Makes a step; returns the loss per token and the number of tokens."""
    if state is not self._state:
      tf.nest.map_structure(lambda v, x: v.assign(x), self._state, state)
    loss, num_tokens = self._step(batch.ids, batch.labels)
    train = {'loss': float(loss), 'num_tokens': int(num_tokens)}
    return types.SimpleNamespace(
      state=self._state, metrics={'client_work': {'train': train}}
    )

  def get_model_weights(
    self, state: dict[str, Any]
  ) -> tff.learning.models.ModelWeights:
    """Returns a copy of the model's weights."""
    return tff.learning.models.ModelWeights(
      **{
        kind: tuple(np.array(value) for value in values)
        for kind, values in state['global_model_weights'].items()
      }
    )


class Batches:
  """The batch of each step, which depends on seed and step alone.

  Each epoch has all sentences in a new order, which takes 16 bytes a sentence.

  Args:
    population: The clients, whose sentences are pooled.
    batch_size: B.
    seed: Determines the order.
  """

  def __init__(
    self, population: ClientPopulation, *, batch_size: int, seed: int
  ):
    self._population = population
    self._batch_size = batch_size
    size = population.num_sentences

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
      return seeded_orders.permutation(np.random.PCG64([seed, epoch]), size)

    self._order = order

  def __call__(self, step: int) -> Batch:
    """Returns the batch of a step, numbered from 1."""
    start = (step - 1) * self._batch_size
    epochs, places = np.divmod(
      np.arange(start, start + self._batch_size), self._population.num_sentences
    )
    sentences = [
      self._order(int(epoch))[places[epochs == epoch]]
      for epoch in np.unique(epochs)
    ]
    ids = self._population.ids_of(np.concatenate(sentences))
    return Batch(ids[:, :-1], ids[:, 1:])


class Means(callbacks.Callback):
  """Averages the training loss over the steps since the last row."""

  _ZEROS = types.MappingProxyType(
    {'row_secs': 0.0, 'total_loss': 0.0, 'num_tokens': 0}
  )

  def __init__(self):
    self._sums: dict[str, Any] = dict(self._ZEROS)

  def begin(self, round_num, facts, folder):
    """Restores the sums of a checkpoint."""
    del round_num, folder
    self._sums = {
      key: facts.get(key, zero) for key, zero in self._ZEROS.items()
    }

  def after_round(self, done):
    """Returns the columns of the steps since the last row."""
    if done.cohort is None:
      return {}
    sums, row = self._sums, done.row
    num_tokens = int(row['train/num_tokens'])
    sums['row_secs'] += row['round_secs']
    sums['total_loss'] += row['train/loss'] * num_tokens
    sums['num_tokens'] += num_tokens
    if not done.has_row:
      return {}
    self._sums = dict(self._ZEROS)
    return {
      'train/loss': sums['total_loss'] / sums['num_tokens'],
      'train/num_tokens': sums['num_tokens'],
      'round_secs': sums['row_secs'],
    }

  def facts(self):
    """Returns what `begin` restores."""
    return dict(self._sums)
