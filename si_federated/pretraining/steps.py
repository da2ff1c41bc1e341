"""The steps of a central training: batches, model, optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import packed_tokens
from si_federated.tasks import ClientPopulation, Task
from si_federated.weights import initial_model


class _TokenModel(tf.keras.Model):
  """A packed language model, of which Keras's `fit` makes the steps."""

  def train_step(self, data):
    """Makes a step; returns the loss of a token, and their number."""
    ids, labels = data
    with tf.GradientTape() as tape:
      positions, logits = self(ids, training=True)
      labels = packed_tokens.gather_tokens(labels, positions)
      loss = self.token_loss(labels, logits)
    self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
    return {'loss': loss, 'num_tokens': tf.size(labels)}


class Trainer:
  """A Keras model and its optimizer, and their state in the checkpoints' form.

  Args:
    keras_model_fn: Builds the model.
    task: The data.
    learning_rate: Of Adam.
  """

  def __init__(
    self,
    keras_model_fn: Callable[[], tf.keras.Model],
    task: Task,
    learning_rate: float,
  ):
    self._built, named = initial_model.build_named(keras_model_fn)
    trained = {id(v) for v in self._built.trainable_variables}
    variables = list(named.values())
    self._weights = {
      'trainable': [v for v in variables if id(v) in trained],
      'non_trainable': [v for v in variables if id(v) not in trained],
    }
    packed = packed_tokens.pack_tokens(
      self._built, end_of_sentence=task.vocabulary.end
    )
    self.model = _TokenModel(packed.inputs, packed.outputs)
    self.model.token_loss = task.loss
    self._optimizer = tf.keras.optimizers.Adam(learning_rate)
    self._optimizer.build(self.model.trainable_variables)
    self.model.compile(self._optimizer)
    self.num_parameters = sum(
      int(np.prod(v.shape)) for v in self._weights['trainable']
    )

  def _variables(self) -> dict[str, Any]:
    return {
      'global_model_weights': self._weights,
      'optimizer': list(self._optimizer.variables),
    }

  def state(self) -> dict[str, Any]:
    """Returns all that training goes on from."""
    return tf.nest.map_structure(lambda v: v.numpy(), self._variables())

  def restore(self, state: dict[str, Any]) -> None:
    """Goes back to a state."""
    tf.nest.map_structure(lambda v, x: v.assign(x), self._variables(), state)

  def weights(self) -> tff.learning.models.ModelWeights:
    """Returns the model's weights as TFF has them."""
    return tff.learning.models.ModelWeights(
      **{
        kind: tuple(v.numpy() for v in variables)
        for kind, variables in self._weights.items()
      }
    )


def batches(
  population: ClientPopulation,
  *,
  batch_size: int,
  seed: int,
  first: int,
  last: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields the batches of some steps; a batch depends on seed and step alone.

  All sentences in a new order each epoch, one epoch after the other; the order
  takes 16 bytes a sentence.

  Args:
    population: The clients, of which all sentences are pooled.
    batch_size: B.
    seed: Fixes the order.
    first: The number of steps before.
    last: The number of steps after.

  Yields:
    Ids and labels, `[B, T]` each.
  """
  size = population.num_sentences

  @functools.lru_cache(maxsize=2)
  def order(epoch: int) -> np.ndarray:
    # Sorted raw output: NumPy keeps its stream from version to version.
    raw = np.random.PCG64([seed, epoch]).random_raw(size)
    return np.argsort(raw, kind='stable')

  for step in range(first, last):
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = np.divmod(positions, size)
    sentences = [
      order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)
    ]
    ids = population.ids_of(np.concatenate(sentences))
    yield ids[:, :-1], ids[:, 1:]
