"""A Keras language model as a TFF `FunctionalModel`."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import (
  dropout_keys,
  frozen_variables,
  packed_tokens,
)
from si_federated.algorithms.variable_creation import Recording, zero_values
from si_federated.layers.static_graphs import shapes_are_static

_PADDING = 0


def _build_metrics(ignored_labels: Mapping[str, Sequence[int]]):
  """Returns the functions of token-weighted loss and accuracies.

  The state of a metric is its sum and its count, which TFF adds over clients.
  """
  names = ['loss', *ignored_labels]

  @tf.function(autograph=False)
  def initialize():
    return collections.OrderedDict(
      (name, [tf.zeros([]), tf.zeros([])]) for name in names
    )

  @tf.function(autograph=False)
  def update(state, labels, batch_output, sample_weight=None):
    del sample_weight
    *_, positions, logits = batch_output.predictions
    labels = packed_tokens.gather_tokens(labels, positions)
    correct = _is_largest(logits, labels)
    counted = tf.not_equal(labels, _PADDING)
    count = tf.reduce_sum(tf.cast(counted, tf.float32))
    # The loss of a batch is a mean over its tokens. The total weights all
    # tokens equally, whatever the sizes of their batches.
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

  @tf.function(autograph=False)
  def finalize(state):
    result = collections.OrderedDict(
      (name, state[name][0] / state[name][1]) for name in names
    )
    result['num_tokens'] = state['loss'][1]
    return result

  return initialize, update, finalize


def _is_largest(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
  """Returns `argmax(logits) == labels`, `[N]`, at the cost of a maximum.

  `argmax`, which is slow on a CPU and picks the first of equal logits, is
  computed only for the few rows whose label reaches the maximum.
  """
  if shapes_are_static():
    return tf.equal(tf.argmax(logits, -1, output_type=labels.dtype), labels)
  chosen = tf.gather(logits, labels[:, tf.newaxis], batch_dims=1)
  maxima = tf.reduce_max(logits, axis=-1, keepdims=True)
  rows = tf.where(tf.equal(chosen, maxima))[:, 0]
  largest = tf.argmax(tf.gather(logits, rows), -1, output_type=labels.dtype)
  return tf.scatter_nd(
    rows[:, tf.newaxis],
    tf.equal(largest, tf.gather(labels, rows)),
    tf.shape(labels, out_type=rows.dtype),
  )


@contextlib.contextmanager
def _default_dtype(name: str) -> Iterator[None]:
  """Makes Keras layers use one type throughout, variables included."""
  if name == 'float32':
    yield
    return
  before = tf.keras.mixed_precision.global_policy()
  tf.keras.mixed_precision.set_global_policy(name)
  try:
    # Some initializers don't support bfloat16; the values are not used.
    with zero_values(name):
      yield
  finally:
    tf.keras.mixed_precision.set_global_policy(before)


@contextlib.contextmanager
def naming(
  names: list[str], dtype: str
) -> Iterator[Callable[[tf.keras.Model], tf.keras.Model]]:
  """Builds a Keras model in a dtype, and records its variables' names.

  Args:
    names: If empty, it is filled with the names of the trainable variables in
      the order of their creation, which is TFF's order of the weights.
    dtype: The dtype that its layers use throughout.

  Yields:
    A function that takes the finished model, and returns it.
  """

  def finish(model: tf.keras.Model) -> tf.keras.Model:
    if not names:
      names.extend(v.name for v in created.trainable_variables_of(model))
    return model

  with _default_dtype(dtype), Recording() as created:
    yield finish


def cast_like(model_weights: Any, used: Any) -> Any:
  """Casts weights to the dtypes of other weights.

  Args:
    model_weights: The trainable and the non-trainable weights.
    used: Weights of the same structure, in the dtypes to cast to.
  """
  return tf.nest.map_structure(
    lambda weight, other: tf.cast(weight, other.dtype),
    tuple(tuple(weights) for weights in model_weights),
    used,
  )


def weights_type(model: tff.learning.models.FunctionalModel) -> tff.StructType:
  """Returns the type of a model's weights in a learning process.

  Args:
    model: The model.
  """
  return tff.types.tensorflow_to_type(
    tff.learning.models.ModelWeights(
      *(
        tuple(tf.TensorSpec(w.shape, tf.as_dtype(w.dtype)) for w in weights)
        for weights in model.initial_weights
      )
    )
  )


class NamedModel(tff.learning.models.FunctionalModel):
  """A functional model with the names of its variables.

  Attributes:
    variable_names: The names of the trainable variables, in the order of the
      weights, such as `'cifg/kernel:0'`; they begin with the layer's name.
  """

  def __init__(
    self,
    *,
    variable_names: Sequence[str],
    **options: Any,
  ):
    super().__init__(**options)
    self.variable_names = tuple(variable_names)

  def with_dropout_keys(self) -> NamedModel:
    """Returns the model for batches that bring keys; see `dropout_keys`."""
    return NamedModel(
      variable_names=self.variable_names,
      initial_weights=self.initial_weights,
      predict_on_batch_fn=self.predict_on_batch,
      loss_fn=self.loss,
      metrics_fns=(
        self.initialize_metrics_state,
        self.update_metrics_state,
        self.finalize_metrics,
      ),
      input_spec=dropout_keys.input_spec_with_keys(self),
    )


def build_functional_model(
  keras_model_fn: Callable[[], tf.keras.Model],
  *,
  loss: tf.keras.losses.Loss,
  element_spec: Any,
  end_of_sentence: int,
  ignored_labels: Mapping[str, Sequence[int]] | None = None,
  count_tokens: bool = True,
  compute_dtype: str = 'float32',
) -> NamedModel:
  """Builds a TFF model without variables from a Keras language model.

  Args:
    keras_model_fn: Returns a new model from ids `[B, T]` to logits `[B, T, V]`.
    loss: The mean loss of a batch's tokens.
    element_spec: The specs of a batch: ids `[B, T]` and labels `[B, T]`, padded
      with 0.
    end_of_sentence: The id that ends a sentence; no label follows it.
    ignored_labels: Accuracies by name, with the labels that each ignores in
      addition to padding; only `accuracy` by default.
    count_tokens: Whether TFF's `num_examples`, which weights clients, is the
      number of predicted tokens. Otherwise it counts sentences.
    compute_dtype: The type in which layers compute. Weights, gradients and loss
      are always float32.

  Returns:
    The model, with metrics `loss` (per token, in nats), the accuracies and
    `num_tokens`. The last two parts of its predictions are the positions of the
    N tokens of a batch that have a label, counted row by row, and the logits
    of these tokens, `[N, V]`; it computes no logits for padding.
  """

  variable_names: list[str] = []
  length = element_spec[0].shape[-1]

  def build(dtype: str) -> tff.learning.models.FunctionalModel:
    def packed_model() -> tf.keras.Model:
      with naming(variable_names, dtype) as finish:
        keras_model = finish(dropout_keys.draw_from_keys(keras_model_fn()))
      return packed_tokens.pack_tokens(
        keras_model, end_of_sentence=end_of_sentence
      )

    return frozen_variables.functional_model_from_keras(
      packed_model, loss, element_spec
    )

  # Keras's own mixed precision wraps the variables, which TFF can't replace.
  computing = build(compute_dtype)
  model = computing if compute_dtype == 'float32' else build('float32')

  @tf.function
  def predict_on_batch(model_weights, x, training=True):
    model_weights = cast_like(model_weights, computing.initial_weights)
    x, words = dropout_keys.split(x, length)
    with dropout_keys.drawing(words):
      positions, logits = computing.predict_on_batch(model_weights, x, training)
    # TFF counts the rows of the first tensor of a prediction.
    if shapes_are_static():
      counted = positions >= 0 if count_tokens else tf.reduce_any(x > 0, -1)
      return tf.where(counted, name='counted_rows'), positions, logits
    return (positions, logits) if count_tokens else (x, positions, logits)

  def loss_fn(output, label, sample_weight=None):
    *_, positions, logits = output
    labels = packed_tokens.gather_tokens(label, positions)
    return model.loss(logits, labels, sample_weight)

  return NamedModel(
    variable_names=variable_names,
    initial_weights=model.initial_weights,
    predict_on_batch_fn=predict_on_batch,
    loss_fn=loss_fn,
    metrics_fns=_build_metrics(
      {'accuracy': ()} if ignored_labels is None else ignored_labels
    ),
    input_spec=element_spec,
  )
