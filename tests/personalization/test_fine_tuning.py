"""Evaluation before and after fine-tuning, against computation by hand."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.personalization import client_hashing, fine_tuning
from si_federated.tasks.seeded_orders import hashed_permutation

_RATE, _BATCH, _EPOCHS = 0.1, 3, 2


def _mean_model():
  """Predicts one number; the loss is the mean squared error."""

  @tf.function
  def predict(weights, x, training=True):
    del training
    (guess,), () = weights
    return tf.zeros_like(tf.cast(x[:, 0], tf.float32)) + guess

  def loss(output, label, sample_weight=None):
    del sample_weight
    return tf.reduce_mean((output - tf.cast(label, tf.float32)) ** 2)

  @tf.function
  def initialize():
    return {'loss': [tf.zeros([]), tf.zeros([])]}

  @tf.function
  def update(state, labels, batch_output, sample_weight=None):
    del sample_weight
    count = tf.cast(tf.size(labels), tf.float32)
    total = state['loss'][0] + batch_output.loss * count
    return {'loss': [total, state['loss'][1] + count]}

  @tf.function
  def finalize(state):
    return {
      'loss': state['loss'][0] / state['loss'][1],
      'num_tokens': state['loss'][1],
    }

  return tff.learning.models.FunctionalModel(
    initial_weights=((np.float32(0.0),), ()),
    predict_on_batch_fn=predict,
    loss_fn=loss,
    metrics_fns=(initialize, update, finalize),
    input_spec=(
      tf.TensorSpec([None, 1], tf.int32),
      tf.TensorSpec([None], tf.int32),
    ),
  )


_SIZES = (10, 1, 7, 2, 9, 30)


def _examples(client):
  generator = np.random.default_rng(client)
  labels = generator.integers(0, 5, [_SIZES[client]]) + client
  return np.stack([np.zeros_like(labels), labels], axis=1).astype(np.int32)


def _by_hand(client):
  labels = _examples(client)[:, 1]
  parts: Any = client_hashing.split_rows(
    len(labels), (0.5, 0.5), 'personalization', 4, f'client {client}'
  )
  train, test = parts
  order = np.concatenate(
    [
      hashed_permutation(
        len(train), 'personalization', epoch, 4, f'client {client}'
      )
      for epoch in range(_EPOCHS)
    ]
  )
  stream = labels[train][order]
  guess = 1.0
  for start in range(0, len(stream), _BATCH):
    batch = stream[start : start + _BATCH]
    guess -= _RATE * 2 * np.mean(guess - batch)
  return [np.mean((g - labels[test]) ** 2) for g in (1.0, guess)]


@pytest.fixture(name='outcome', scope='module')
def _outcome():
  with warnings.catch_warnings():
    # A warning would mean that our runtime fell back to TFF's.
    warnings.filterwarnings('error', message=".*TFF's own runtime")
    built = fine_tuning.build_evaluation(
      _mean_model(),
      optimizer=tff.learning.optimizers.build_sgdm(_RATE),
      batch_size=_BATCH,
      max_clients=2,
    )

    def run(clients):
      return fine_tuning.evaluate_clients(
        built,
        tff.learning.models.ModelWeights((np.float32(1.0),), ()),
        clients,
        examples=_examples,
        client_id=lambda client: f'client {client}',
        element_spec=_mean_model().input_spec,
        epochs=_EPOCHS,
        seed=4,
        group_size=2,
      )

    return run


def test_every_client_before_and_after(outcome):
  results, too_small = outcome(range(6))
  assert too_small == [1]
  assert [one.client for one in results] == [0, 2, 3, 4, 5]
  for one in results:
    before, after = _by_hand(one.client)
    assert one.before['loss'] == pytest.approx(before, rel=1e-5)
    assert one.after['loss'] == pytest.approx(after, rel=1e-5)
    assert one.after['perplexity'] == pytest.approx(np.exp(after), rel=1e-4)
    assert one.num_train + one.num_test == _SIZES[one.client]
    assert one.num_test == one.before['num_tokens']
  assert before != pytest.approx(after, rel=0.01)


def test_a_client_does_not_depend_on_the_others(outcome):
  alone, _ = outcome([4])
  (among,) = (one for one in outcome([5, 4, 0])[0] if one.client == 4)
  assert alone == [among]
