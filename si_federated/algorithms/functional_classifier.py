"""A Keras classifier as a TFF `FunctionalModel`."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import (
  dropout_keys,
  frozen_variables,
  functional_model,
  traced_models,
)


def _build_metrics(num_classes: int):
  """Returns the functions of loss, accuracy and macro F1.

  The state counts examples by class; TFF sums it over clients.
  """
  counts = ('actual', 'predicted', 'correct')

  @tf.function(autograph=False)
  def initialize():
    return collections.OrderedDict(
      [
        ('loss', tf.zeros([])),
        *((name, tf.zeros([num_classes])) for name in counts),
      ]
    )

  @tf.function(autograph=False)
  def update(state, labels, batch_output, sample_weight=None):
    del sample_weight
    logits = batch_output.predictions
    actual = tf.one_hot(labels, num_classes)
    guesses = tf.argmax(logits, -1, output_type=tf.int32)
    predicted = tf.one_hot(guesses, num_classes)
    number = tf.cast(tf.shape(labels)[0], tf.float32)
    # The loss of a batch is a mean. The total weights all examples equally,
    # whatever the sizes of their batches.
    new = {'loss': batch_output.loss * number}
    for name, chosen in zip(counts, (actual, predicted, actual * predicted)):
      new[name] = tf.reduce_sum(chosen, axis=0)
    return collections.OrderedDict(
      (name, state[name] + new[name]) for name in state
    )

  @tf.function(autograph=False)
  def finalize(state):
    number = tf.reduce_sum(state['actual'])
    both = state['actual'] + state['predicted']
    # The mean is over the classes that occur as labels or guesses.
    scores = tf.math.divide_no_nan(2.0 * state['correct'], both)
    occurring = tf.reduce_sum(tf.cast(both > 0, tf.float32))
    return collections.OrderedDict(
      loss=state['loss'] / number,
      accuracy=tf.reduce_sum(state['correct']) / number,
      macro_f1=tf.reduce_sum(scores) / occurring,
      num_examples=number,
    )

  return initialize, update, finalize


def build_functional_classifier(
  keras_model_fn: Callable[[], tf.keras.Model],
  *,
  loss: tf.keras.losses.Loss,
  element_spec: Any,
  num_classes: int,
  count_tokens: bool = True,
  compute_dtype: str = 'float32',
) -> functional_model.NamedModel:
  """Builds a TFF model without variables from a Keras classifier.

  Args:
    keras_model_fn: Returns a new model from ids `[B, T]` to logits `[B, C]`.
    loss: The mean loss of a batch's examples.
    element_spec: The specs of a batch: ids `[B, T]` and labels `[B]`.
    num_classes: C.
    count_tokens: No effect: with one label per example, the number of examples
      weights clients either way.
    compute_dtype: The type in which layers compute. Weights, gradients and loss
      are always float32.

  Returns:
    The model, with metrics `loss` (per example, in nats), `accuracy`,
    `macro_f1` (the mean over the classes that occur) and `num_examples`. It
    predicts the logits.
  """
  del count_tokens
  variable_names: list[str] = []
  length = element_spec[0].shape[-1]
  with functional_model.naming([], compute_dtype):
    is_traced = traced_models.is_needed(keras_model_fn())
  route = traced_models if is_traced else frozen_variables

  def build(dtype: str) -> tff.learning.models.FunctionalModel:
    def named_model() -> tf.keras.Model:
      with functional_model.naming(variable_names, dtype) as finish:
        return finish(dropout_keys.draw_from_keys(keras_model_fn()))

    return route.functional_model_from_keras(named_model, loss, element_spec)

  # Keras's own mixed precision wraps the variables, which TFF can't replace.
  computing = build(compute_dtype)
  model = computing if compute_dtype == 'float32' else build('float32')

  @tf.function
  def predict_on_batch(model_weights, x, training=True):
    model_weights = functional_model.cast_like(
      model_weights, computing.initial_weights
    )
    words = None
    if not is_traced:  # such a model splits its input itself
      x, words = dropout_keys.split(x, length)
    with dropout_keys.drawing(words):
      logits = computing.predict_on_batch(model_weights, x, training)
    return tf.cast(logits, tf.float32)

  return functional_model.NamedModel(
    variable_names=variable_names,
    initial_weights=model.initial_weights,
    predict_on_batch_fn=predict_on_batch,
    loss_fn=model.loss,
    metrics_fns=_build_metrics(num_classes),
    input_spec=element_spec,
  )
