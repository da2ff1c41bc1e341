"""A Keras language model as a TFF `FunctionalModel`."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

_PADDING = 0


def _build_metrics(ignored_labels: Mapping[str, Sequence[int]]):
  """Returns the functions of token-weighted loss and accuracies.

  The state of a metric is its sum and its count, which TFF adds over clients.
  """
  names = ['loss', *ignored_labels]

  @tf.function
  def initialize():
    return collections.OrderedDict(
      (name, [tf.zeros([]), tf.zeros([])]) for name in names
    )

  @tf.function
  def update(state, labels, batch_output, sample_weight=None):
    del sample_weight
    logits = tf.nest.flatten(batch_output.predictions)[-1]
    predictions = tf.argmax(logits, -1, output_type=labels.dtype)
    correct = tf.equal(predictions, labels)
    counted = tf.not_equal(labels, _PADDING)
    count = tf.reduce_sum(tf.cast(counted, tf.float32))
    # The loss of a batch is a mean over its tokens: tokens must weigh the same
    # in small batches and large ones.
    sums = {'loss': (batch_output.loss * count, count)}
    for name, ignored in ignored_labels.items():
      kept = counted
      for label in ignored:
        kept = kept & tf.not_equal(labels, label)
      sums[name] = (
        tf.reduce_sum(tf.cast(kept & correct, tf.float32)),
        tf.reduce_sum(tf.cast(kept, tf.float32)),
      )
    return collections.OrderedDict(
      (name, [state[name][0] + sums[name][0], state[name][1] + sums[name][1]])
      for name in names
    )

  @tf.function
  def finalize(state):
    result = collections.OrderedDict(
      (name, state[name][0] / state[name][1]) for name in names
    )
    result['num_tokens'] = state['loss'][1]
    return result

  return initialize, update, finalize


def build_functional_model(
  keras_model_fn: Callable[[], tf.keras.Model],
  *,
  loss: tf.keras.losses.Loss,
  element_spec: Any,
  end_of_sentence: int,
  ignored_labels: Mapping[str, Sequence[int]] | None = None,
  count_tokens: bool = True,
) -> tff.learning.models.FunctionalModel:
  """Builds a TFF model without variables from a Keras language model.

  Args:
    keras_model_fn: Returns a new model from ids `[B, T]` to logits `[B, T, V]`.
    loss: The mean loss of a batch's tokens.
    element_spec: The specs of a batch: ids `[B, T]` and labels `[B, T]`, padded
      with 0.
    end_of_sentence: The id that ends a sentence, after which come no labels.
    ignored_labels: Accuracies by name, with the labels that each leaves out
      beside padding; `accuracy` alone by default.
    count_tokens: Whether TFF's `num_examples`, by which it weights clients, is
      the number of tokens that are predicted. Otherwise it counts sentences.

  Returns:
    The model, with metrics `loss` (of a token, in nats), the accuracies and
    `num_tokens`.
  """
  model = tff.learning.models.functional_model_from_keras(
    keras_model_fn, loss, element_spec
  )

  @tf.function
  def predict_on_batch(model_weights, x, training=True):
    logits = model.predict_on_batch(model_weights, x, training)
    if not count_tokens:
      return logits
    # TFF counts the rows of the first tensor of a prediction. A label follows
    # every id but padding and the end of the sentence.
    # Written out: TFF traces in graphs in which != compares identities.
    predicted = tf.boolean_mask(
      x,
      tf.not_equal(x, _PADDING) & tf.not_equal(x, end_of_sentence),
    )
    return predicted, logits

  def loss_fn(output, label, sample_weight=None):
    return model.loss(tf.nest.flatten(output)[-1], label, sample_weight)

  return tff.learning.models.FunctionalModel(
    initial_weights=model.initial_weights,
    predict_on_batch_fn=predict_on_batch,
    loss_fn=loss_fn,
    metrics_fns=_build_metrics(
      {'accuracy': ()} if ignored_labels is None else ignored_labels
    ),
    input_spec=element_spec,
  )
