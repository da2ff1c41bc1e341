"""TFF's functional models of any Keras model, traced beforehand.

TFF rebuilds a Keras model in TensorFlow 1 graphs, where parts of Keras 2 fail:
slices of tensors, computed masks, nested models. Here, the model is built and
traced outside of them, and its operations are imported into TFF's graphs.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import dropout_keys
from si_federated.algorithms.variable_creation import Recording

# Layers that Keras creates for plain TensorFlow operations.
_OPERATIONS = ('TFOpLambda', 'SlicingOpLambda')


def functional_model_from_keras(
  keras_model_fn: Callable[[], tf.keras.Model],
  loss: tf.keras.losses.Loss,
  input_spec: Any,
) -> tff.learning.models.FunctionalModel:
  """Builds a functional model, whose graphs contain no variables.

  Args:
    keras_model_fn: Returns a new model of one input, with the same variables in
      the same order each time. Its layers must not change variables.
    loss: The loss of a batch.
    input_spec: The specs of a batch `(x, y)`.

  Returns:
    The model, with weights in the order of the variables' creation; frozen
    variables are among the non-trainable weights. Its input may bring keys; see
    `dropout_keys.add_keys`.
  """
  with _legacy_random_operations():
    with Recording() as created:
      keras_model = keras_model_fn()
    own = created.variables_of(keras_model)
    trained = {id(v) for v in keras_model.trainable_variables}
    # For each variable, whether it is trained.
    kinds = [id(v) in trained for v in own]
    initial_weights = tuple(
      tuple(v.numpy() for v, k in zip(own, kinds) if k is kind)
      for kind in (True, False)
    )
    x_spec, _ = input_spec
    calls = [(True, False), (False, False)]
    if dropout_keys.draws_at_random(keras_model):
      calls.append((True, True))
    # Indexed by whether it is training, and whether the input has keys.
    traced = {
      call: _Traced(keras_model_fn, kinds, initial_weights, x_spec, *call)
      for call in calls
    }

  @tf.function
  def predict_on_batch(model_weights, x, training=True):
    is_keyed = x.shape[-1] != x_spec.shape[-1]
    return traced[bool(training), is_keyed](model_weights, x)

  def loss_fn(output, label, sample_weight=None):
    return loss(y_true=label, y_pred=output, sample_weight=sample_weight)

  return tff.learning.models.FunctionalModel(
    initial_weights=initial_weights,
    predict_on_batch_fn=predict_on_batch,
    loss_fn=loss_fn,
    input_spec=input_spec,
  )


def is_needed(keras_model: tf.keras.Model) -> bool:
  """Returns whether a model can't be rebuilt in TensorFlow 1 graphs.

  Args:
    keras_model: The model, functional.
  """
  return any(
    isinstance(layer, tf.keras.Model) or type(layer).__name__ in _OPERATIONS
    for layer in keras_model.layers
  )


@contextlib.contextmanager
def _legacy_random_operations() -> Iterator[None]:
  """Makes Keras draw random numbers with operations instead of variables."""
  backend = tf.keras.backend.experimental
  before = backend.is_tf_random_generator_enabled()
  backend.disable_tf_random_generator()
  try:
    yield
  finally:
    if before:
      backend.enable_tf_random_generator()


def _forget_seeds(graph_def: Any) -> None:
  """Removes the global seed, which TensorFlow writes into traced operations.

  Each run then draws different random numbers, as TFF expects.
  """
  functions = (function.node_def for function in graph_def.library.function)
  for node in itertools.chain(graph_def.node, *functions):
    if 'seed' in node.attr and 'seed2' in node.attr:
      node.attr['seed'].i = node.attr['seed2'].i = 0


class _Traced:
  """The operations of a model, to be imported into graphs."""

  def __init__(
    self,
    keras_model_fn: Callable[[], tf.keras.Model],
    kinds: list[bool],
    initial_weights: Any,
    x_spec: tf.TensorSpec,
    training: bool,
    is_keyed: bool,
  ):
    def call(weights, x):
      x, words = dropout_keys.split(x, x_spec.shape[-1])
      parts = {True: list(weights[0]), False: list(weights[1])}
      given = [parts[kind].pop(0) for kind in kinds]
      left = list(given)

      def weight_instead_of_variable(next_creator, **options):
        # Variables without a known shape are Keras's counters, not weights.
        if options.get('shape') is None:
          return next_creator(**options)
        return left.pop(0)

      with tf.variable_creator_scope(weight_instead_of_variable):
        keras_model = keras_model_fn()
      used = {id(weight) for weight in keras_model.weights}
      if left or used != {id(weight) for weight in given}:
        raise ValueError(
          f'Model {keras_model.name} was built with other variables than the '
          'first time; the function that builds it must create the same '
          'variables in the same order.'
        )
      with dropout_keys.drawing(words):
        return keras_model(x, training=training)

    specs = tf.nest.map_structure(
      lambda w: tf.TensorSpec(w.shape, w.dtype), initial_weights
    )
    x_type = dropout_keys.spec_with_keys(x_spec) if is_keyed else x_spec
    concrete = tf.function(call, autograph=False).get_concrete_function(
      specs, x_type
    )
    graph = concrete.graph
    self._graph_def = graph.as_graph_def(add_shapes=True)
    _forget_seeds(self._graph_def)
    captured = {id(placeholder) for _, placeholder in graph.captures}
    self._inputs = [
      tensor.name for tensor in graph.inputs if id(tensor) not in captured
    ]
    # Constants that Keras created outside of the graph.
    self._constants = {
      placeholder.name: value.numpy() for value, placeholder in graph.captures
    }
    self._structure = graph.structured_outputs
    self._outputs = tf.nest.flatten(graph.structured_outputs)

  def __call__(self, weights: Any, x: Any) -> Any:
    values = tf.nest.flatten(((tuple(weights[0]), tuple(weights[1])), x))
    input_map = dict(zip(self._inputs, values))
    input_map.update(
      (name, tf.constant(value)) for name, value in self._constants.items()
    )
    results = tf.graph_util.import_graph_def(
      self._graph_def,
      input_map=input_map,
      return_elements=[tensor.name for tensor in self._outputs],
      name='keras_model',
    )
    for result, traced in zip(results, self._outputs):
      result.set_shape(traced.shape)
    return tf.nest.pack_sequence_as(self._structure, results)
