"""Training of some of the variables on a client."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import (
  deferred_weights,
  lazy_gradients,
  optimizers,
  variable_selection,
  wrapped_optimizer,
)
from si_federated.layers.static_graphs import shapes_are_static


def build_training(
  model: tff.learning.models.FunctionalModel,
  optimizer: tff.learning.optimizers.Optimizer,
  client_weighting: str,
  selection: variable_selection.Selection,
) -> Callable[..., Any]:
  """Builds the function of a client's training.

  Args:
    model: The model.
    optimizer: Treats each variable independently, except for clipping.
    client_weighting: `'uniform'`; otherwise the number of rows weights clients.
    selection: Chooses the variables to train.

  Returns:
    A function of the model's weights, the client's batches, a dataset that
    contains the client's number, and the number of the round. It returns TFF's
    `ClientResult`, the state of the metrics and the fraction of the parameters
    that it trained.

  Raises:
    ValueError: If the optimizer needs all gradients at once.
  """
  step = lazy_gradients.LazyGradients(model)
  clip_norm, optimizer = optimizers.split_clipping(optimizer)
  sizes = [float(weight.size) for weight in model.initial_weights[0]]

  # Steps are made for one variable at a time, each with its own weight decay
  # and learning rate.
  single = [
    wrapped_optimizer.of_variable(optimizer, i) for i in range(len(sizes))
  ]

  def next_variable(index, state, weight, gradient):
    state, (weight,) = single[index].next(state, (weight,), (gradient,))
    return state, weight

  def nothing(weight):
    """Returns a flat gradient that adds nothing to the norm."""
    size = weight.shape.num_elements() if shapes_are_static() else 0
    return tf.zeros([size], weight.dtype)

  def next_variables(trained, states, weights, gradients):
    """Makes a step for the trained variables."""
    if clip_norm is not None:
      computed = [
        tf.cond(is_trained, gradient, lambda w=weight: nothing(w))
        for is_trained, gradient, weight in zip(
          trained,
          [lambda g=g: tf.reshape(g(), [-1]) for g in gradients],
          weights,
        )
      ]
      factor = wrapped_optimizer.clip_factor(computed, clip_norm)
      gradients = [
        lambda g=gradient, w=weight: tf.reshape(
          g * tf.cast(factor, g.dtype), w.shape
        )
        for gradient, weight in zip(computed, weights)
      ]
    return zip(
      *(
        tf.cond(
          is_trained,
          lambda i=i, s=state, w=weight, g=gradient: next_variable(
            i, s, w, g()
          ),
          lambda s=state, w=weight: (s, w),
        )
        for i, (is_trained, state, weight, gradient) in enumerate(
          zip(trained, states, weights, gradients)
        )
      )
    )

  @tf.function
  def train(initial_weights, examples, client, round_num):
    initial, non_trainable = initial_weights
    initial, non_trainable = tuple(initial), tuple(non_trainable)
    trained = selection(
      round_num, client.reduce(tf.constant(0, tf.int64), lambda _, key: key)
    )
    weights = initial
    states = tuple(
      optimizer.initialize((tf.TensorSpec(w.shape, w.dtype),)) for w in initial
    )
    metrics = model.initialize_metrics_state()
    num_examples = tf.constant(0, tf.int64)
    for batch in iter(examples):
      if isinstance(batch, collections.abc.Mapping):
        x, y = batch['x'], batch['y']
      else:
        x, y = batch
      loss, output, gradients = step((weights, non_trainable), x, y)
      states, weights = next_variables(trained, states, weights, gradients)
      rows = tf.shape(tf.nest.flatten(output)[0])[0]
      num_examples += tf.cast(rows, tf.int64)
      metrics = model.update_metrics_state(
        metrics,
        batch_output=tff.learning.models.BatchOutput(
          loss=loss, predictions=output, num_examples=rows
        ),
        labels=y,
      )
    update = tuple(
      tf.cond(
        is_trained,
        lambda b=before, a=after: b - a,
        lambda b=before: deferred_weights.make_zeros(b.shape, b.dtype),
      )
      for is_trained, before, after in zip(trained, initial, weights)
    )
    is_finite = tf.reduce_all(
      [
        tf.cond(
          is_trained,
          lambda u=u: tf.reduce_all(tf.math.is_finite(u)),
          lambda: tf.constant(True),
        )
        for is_trained, u in zip(trained, update)
      ]
    )
    # As in TFF, a non-finite update has no weight.
    update = tuple(
      tf.cond(
        is_finite,
        lambda u=u: u,
        lambda u=u: deferred_weights.make_zeros(u.shape, u.dtype),
      )
      for u in update
    )
    weight = tf.cond(
      is_finite,
      lambda: (
        tf.constant(1.0)
        if client_weighting == 'uniform'
        else tf.cast(num_examples, tf.float32)
      ),
      lambda: tf.constant(0.0),
    )
    metrics = tf.cond(
      is_finite, lambda: metrics, lambda: model.initialize_metrics_state()
    )
    shares = tf.cast(tf.stack(trained), tf.float32)
    result = tff.learning.templates.ClientResult(
      update=collections.OrderedDict(update=update, trained=shares),
      update_weight=weight,
    )
    return result, metrics, tf.reduce_sum(shares * sizes) / sum(sizes)

  return train
