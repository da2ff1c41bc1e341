"""Training and evaluation on one client's batches, in TensorFlow.

Trained weights are mappings of parts, such as `model` and `gate`, each with an
optimizer; other weights are passed separately. This module depends on no task:
loss and metrics are the model's.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

# Maps trained weights, fixed weights, the inputs of a batch and whether this is
# training to the argument of the model's `loss`.
Predict = Callable[[Mapping[str, Any], Mapping[str, Any], Any, bool], Any]
Optimizers = Mapping[str, tff.learning.optimizers.Optimizer]


def specs_of(weights: Any) -> Any:
  """Returns the specs of nested arrays, with tuples for sequences."""
  if isinstance(weights, Mapping):
    return collections.OrderedDict(
      (name, specs_of(part)) for name, part in weights.items()
    )
  if isinstance(weights, (list, tuple)):
    return tuple(specs_of(part) for part in weights)
  return tf.TensorSpec(np.shape(weights), tf.as_dtype(weights.dtype))


def initialize_optimizers(optimizers: Optimizers, specs: Mapping[str, Any]):
  """Returns the state of the optimizers before the first step.

  Args:
    optimizers: The optimizer of each part.
    specs: The weights of each part.
  """
  return collections.OrderedDict(
    (
      name,
      tf.nest.map_structure(
        tf.convert_to_tensor, optimizer.initialize(specs[name])
      ),
    )
    for name, optimizer in optimizers.items()
  )


def train_on_batches(
  model: tff.learning.models.FunctionalModel,
  predict: Predict,
  optimizers: Optimizers,
  trained: Mapping[str, Any],
  fixed: Mapping[str, Any],
  states: Mapping[str, Any],
  batches: tf.data.Dataset,
):
  """Makes one step per batch; must be called in a TFF graph.

  Args:
    model: The model, for its loss.
    predict: See `Predict`.
    optimizers: The optimizer of each part.
    trained: The weights of each part.
    fixed: The other weights that `predict` needs.
    states: The optimizers' states.
    batches: Pairs of inputs and labels.

  Returns:
    The weights and the states after the last batch.
  """

  @tf.function
  def run():
    weights, optimizer_states = _as_tensors(trained), _as_tensors(states)
    # The body of an iterator is instantiated once, that of a reduction once per
    # call.
    for x, y in iter(batches):
      flat = tf.nest.flatten(weights)
      with tf.GradientTape() as tape:
        tape.watch(flat)
        loss = model.loss(predict(weights, fixed, x, True), y)
      gradients = tf.nest.pack_sequence_as(
        weights,
        tape.gradient(
          loss, flat, unconnected_gradients=tf.UnconnectedGradients.ZERO
        ),
      )
      weights, optimizer_states = _step(
        optimizers, weights, gradients, optimizer_states
      )
    return weights, optimizer_states

  return run()


def _as_tensors(values: Any) -> Any:
  return tf.nest.map_structure(tf.convert_to_tensor, values)


def _step(optimizers, weights, gradients, states):
  new_weights, new_states = collections.OrderedDict(), collections.OrderedDict()
  for name, optimizer in optimizers.items():
    new_states[name], new_weights[name] = optimizer.next(
      states[name], weights[name], gradients[name]
    )
  return new_weights, _as_tensors(new_states)


def evaluate_on_batches(
  model: tff.learning.models.FunctionalModel,
  predict: Predict,
  trained: Mapping[str, Any],
  fixed: Mapping[str, Any],
  batches: tf.data.Dataset,
):
  """Returns the model's metrics over batches; must be called in a TFF graph.

  See `train_on_batches` for the arguments.
  """

  @tf.function
  def run():
    state = _as_tensors(model.initialize_metrics_state())
    for x, y in iter(batches):
      output = predict(trained, fixed, x, False)
      state = model.update_metrics_state(
        state,
        y,
        tff.learning.models.BatchOutput(
          loss=model.loss(output, y),
          predictions=output,
          num_examples=tf.shape(tf.nest.flatten(y)[0])[0],
        ),
      )
    return model.finalize_metrics(state)

  return run()


class Learner:
  """Training and evaluation as TFF computations.

  They are built once and take all weights as arguments, so that clients need no
  tracing of their own.
  """

  def __init__(
    self,
    *,
    model: tff.learning.models.FunctionalModel,
    predict: Predict,
    optimizers: Optimizers,
    trained: Mapping[str, Any],
    fixed: Mapping[str, Any],
  ):
    """Builds the computations.

    Args:
      model: The model, for its loss, metrics and specs of a batch.
      predict: See `Predict`.
      optimizers: The optimizer of each trained part.
      trained: Arrays of each part, for their shapes.
      fixed: Other arrays, for their shapes.
    """
    trained_specs, fixed_specs = specs_of(trained), specs_of(fixed)
    trained_type = tff.types.tensorflow_to_type(trained_specs)
    fixed_type = tff.types.tensorflow_to_type(fixed_specs)
    data_type = tff.SequenceType(tff.types.tensorflow_to_type(model.input_spec))

    @tff.tensorflow.computation
    def initialize():
      return initialize_optimizers(optimizers, trained_specs)

    @tff.tensorflow.computation(
      trained_type, fixed_type, initialize.type_signature.result, data_type
    )
    def train(weights, others, states, batches):
      return train_on_batches(
        model, predict, optimizers, weights, others, states, batches
      )

    @tff.tensorflow.computation(trained_type, fixed_type, data_type)
    def evaluate(weights, others, batches):
      return evaluate_on_batches(model, predict, weights, others, batches)

    self._initialize, self._train, self._evaluate = initialize, train, evaluate
    # The same for every client.
    self._initial_states: Any = None

  def initial_states(self) -> Any:
    """Returns the optimizers' states before the first step."""
    if self._initial_states is None:
      self._initial_states = self._initialize()
    return self._initial_states

  def train(
    self, trained: Any, fixed: Any, states: Any, batches: tf.data.Dataset
  ) -> tuple[Any, Any]:
    """Makes one step per batch.

    Args:
      trained: The weights of each part.
      fixed: The other weights.
      states: The optimizers' states.
      batches: Pairs of inputs and labels.

    Returns:
      The weights and states after the last step.
    """
    weights, states = self._train(trained, fixed, states, batches)
    return weights, states

  def evaluate(
    self, trained: Any, fixed: Any, batches: tf.data.Dataset
  ) -> dict[str, float]:
    """Returns metrics over all batches, with `perplexity` for tokens.

    Args:
      trained: The weights of each part.
      fixed: The other weights.
      batches: Pairs of inputs and labels.
    """
    metrics = self._evaluate(trained, fixed, batches)
    return with_perplexity(
      {name: float(value) for name, value in metrics.items()}
    )


def with_perplexity(metrics: Mapping[str, float]) -> dict[str, float]:
  """Adds the exponential of the `loss` to metrics of tokens."""
  loss = metrics['loss']
  if 'num_tokens' not in metrics:
    return dict(metrics)
  if math.isnan(loss):
    return {**metrics, 'perplexity': loss}
  return {**metrics, 'perplexity': math.exp(loss) if loss < 700 else math.inf}
