"""TFF's functional models of partly frozen Keras models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms.variable_creation import Recording


def functional_model_from_keras(
  keras_model_fn: Callable[[], tf.keras.Model],
  loss: tf.keras.losses.Loss,
  input_spec: Any,
) -> tff.learning.models.FunctionalModel:
  """Builds a functional model, as TFF does, of a model with frozen variables.

  TFF sorts weights by whether the finished model trains them, but when it
  builds the model around tensors, by whether each variable was trainable at its
  creation. The two differ if a variable is frozen later, as by Keras's
  `layer.trainable = False`.

  Args:
    keras_model_fn: Returns a new model, with the same variables in the same
      order each time.
    loss: The loss of a batch.
    input_spec: The specs of a batch.

  Returns:
    The model; frozen variables are among the non-trainable weights.
  """
  model = tff.learning.models.functional_model_from_keras(
    keras_model_fn, loss, input_spec
  )
  if not model.initial_weights[1]:
    return model
  created, trained = _kinds(keras_model_fn)

  @tf.function
  def predict_on_batch(model_weights, x, training=True):
    parts = {
      True: list(model_weights[0]),
      False: list(model_weights[1]),
    }
    in_order = [parts[kind].pop(0) for kind in trained]
    weights = tuple(
      tuple(w for w, kind in zip(in_order, created) if kind is wanted)
      for wanted in (True, False)
    )
    return model.predict_on_batch(weights, x, training)

  return tff.learning.models.FunctionalModel(
    initial_weights=model.initial_weights,
    predict_on_batch_fn=predict_on_batch,
    loss_fn=model.loss,
    input_spec=input_spec,
  )


def _kinds(
  keras_model_fn: Callable[[], tf.keras.Model],
) -> tuple[list[bool], list[bool]]:
  """Returns whether each variable is trainable: when created, and at the end.

  Both lists are in the order of creation.
  """
  with tf.Graph().as_default(), Recording() as created:
    model = keras_model_fn()
  trained = {id(variable) for variable in model.trainable_variables}
  variables = created.variables_of(model)
  return (
    [variable.trainable for variable in variables],
    [id(variable) in trained for variable in variables],
  )
