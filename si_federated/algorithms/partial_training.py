"""Partial variable training: each client trains some of the variables.

"Scaling Language Model Size in Cross-Device Federated Learning" (Ro et al.
2022, arXiv 2204.09715) and "Partial Variable Training for Efficient On-Device
Federated Learning" (Yang et al. 2021, arXiv 2110.05607): in each round a client
freezes a random part of the model, uploads the rest, and the server averages
each variable over the clients that trained it.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import (
  fed_avg,
  functional_model,
  partial_steps,
  variable_selection,
)

# The parts of a client's datum: its batches, and its number.
EXAMPLES, CLIENT = 'examples', 'client'


def client_datum(
  batches: tf.data.Dataset, client: int
) -> collections.OrderedDict[str, tf.data.Dataset]:
  """Returns a client's datum for partial training.

  Args:
    batches: Its batches.
    client: Its identifying number.
  """
  number = tf.data.Dataset.from_tensors(tf.constant(client, tf.int64))
  return collections.OrderedDict([(EXAMPLES, batches), (CLIENT, number)])


def build_partial_training(
  *,
  model: tff.learning.models.FunctionalModel,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer,
  aggregation_factory: fed_avg.Factory,
  client_weighting: str = 'tokens',
  model_distributor: tff.learning.templates.DistributionProcess | None = None,
  seed: int = 0,
  fraction: float = 0.4,
  by: str = 'variable',
  per: str = 'client',
) -> tff.learning.templates.LearningProcess:
  """Builds federated averaging in which clients train a part of the model.

  A frozen variable costs a client neither gradient nor optimizer step, and its
  update is zero. A client's datum is a mapping of `examples`, its batches, and
  `client`, a dataset that contains only its identifying number.

  A weighted aggregator averages each variable over the clients that trained it.
  An unweighted aggregator, which is usually private, divides the sum by the
  number of all clients. This algorithm divides its result by the probability
  that a variable was trained, which is equal in expectation and needs no
  private count.

  Differs from the paper: variables of one dimension are always trained.

  Args:
    model: The model to train.
    client_optimizer: Makes the steps on a client, for each variable
      independently.
    server_optimizer: Applies the mean update, as if it were a gradient.
    aggregation_factory: Combines the updates.
    client_weighting: See `build_fed_avg`.
    model_distributor: Sends the model to the clients; unchanged by default.
    seed: Determines, with round and client, which variables are trained.
    fraction: The fraction of the matrices, or blocks, that a client trains.
    by: `'variable'` or `'block'`.
    per: `'client'`, or `'round'` for the same choice in the whole cohort.

  Returns:
    The learning process.

  Raises:
    ValueError: If an option is out of range, or the client optimizer needs all
      gradients at once.
  """
  weights_type = functional_model.weights_type(model)
  selection = variable_selection.Selection(
    [weight.shape for weight in model.initial_weights[0]],
    _variable_names(model, by),
    fraction=fraction,
    by=by,
    per=per,
    seed=seed,
  )

  @tff.tensorflow.computation
  def initial_weights():
    return tff.learning.models.ModelWeights(
      *(
        tuple(tf.convert_to_tensor(weight) for weight in weights)
        for weights in model.initial_weights
      )
    )

  if model_distributor is None:
    model_distributor = tff.learning.templates.build_broadcast_process(
      weights_type
    )
  return tff.learning.templates.compose_learning_process(
    initial_weights,
    model_distributor,
    _build_client_work(
      model, client_optimizer, client_weighting, selection, weights_type
    ),
    _build_aggregator(aggregation_factory, selection, weights_type.trainable),
    tff.learning.templates.build_apply_optimizer_finalizer(
      server_optimizer, weights_type
    ),
  )


def _variable_names(
  model: tff.learning.models.FunctionalModel, by: str
) -> Sequence[str]:
  names = getattr(model, 'variable_names', None)
  if names is None and by == 'block':
    raise ValueError(
      'by=block needs the names of the variables, which this model does not '
      'have: build it by build_functional_model, or choose by=variable.'
    )
  return names or [
    f'variable_{i}' for i in range(len(model.initial_weights[0]))
  ]


def _build_client_work(
  model: tff.learning.models.FunctionalModel,
  optimizer: tff.learning.optimizers.Optimizer,
  client_weighting: str,
  selection: variable_selection.Selection,
  weights_type: tff.StructType,
) -> tff.learning.templates.ClientWorkProcess:
  train = partial_steps.build_training(
    model, optimizer, client_weighting, selection
  )
  data_type = tff.to_type(
    collections.OrderedDict(
      [
        (
          EXAMPLES,
          tff.SequenceType(tff.types.tensorflow_to_type(model.input_spec)),
        ),
        (CLIENT, tff.SequenceType(np.int64)),
      ]
    )
  )

  @tff.tensorflow.computation(weights_type, data_type, np.int64)
  def work(weights, data, round_num):
    return train(
      (weights.trainable, weights.non_trainable),
      data[EXAMPLES],
      data[CLIENT],
      round_num,
    )

  @tff.tensorflow.computation(np.int64)
  def next_round(round_num):
    return round_num + 1

  @tff.federated_computation
  def initialize():
    return tff.federated_value(np.int64(0), tff.SERVER)

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(weights_type, tff.CLIENTS),
    tff.FederatedType(data_type, tff.CLIENTS),
  )
  def next_fn(round_num, weights, data):
    result, metrics, trained = tff.federated_map(
      work, (weights, data, tff.federated_broadcast(round_num))
    )
    train_metrics = tff.learning.metrics.sum_then_finalize(
      model.finalize_metrics, metrics.type_signature.member
    )(metrics)
    return tff.templates.MeasuredProcessOutput(
      tff.federated_map(next_round, round_num),
      result,
      tff.federated_zip(
        collections.OrderedDict(
          train=train_metrics, trained_fraction=tff.federated_mean(trained)
        )
      ),
    )

  return tff.learning.templates.ClientWorkProcess(initialize, next_fn)


def _build_aggregator(
  factory: fed_avg.Factory,
  selection: variable_selection.Selection,
  update_type: tff.Type,
) -> tff.templates.AggregationProcess:
  """Returns the mean of each variable over the clients that trained it."""
  probabilities = np.array(selection.probabilities, np.float32)
  trained_type = tff.TensorType(np.float32, [len(probabilities)])
  value_type = tff.to_type(
    collections.OrderedDict(update=update_type, trained=trained_type)
  )
  weight_type = tff.TensorType(np.float32)
  is_weighted = isinstance(factory, tff.aggregators.WeightedAggregationFactory)
  inner = (
    factory.create(update_type, weight_type)
    if is_weighted
    else factory.create(update_type)
  )

  @tff.tensorflow.computation(update_type, trained_type)
  def divide(mean, shares):
    return tf.nest.pack_sequence_as(
      mean,
      [
        tf.math.divide_no_nan(variable, tf.cast(shares[i], variable.dtype))
        for i, variable in enumerate(tf.nest.flatten(mean))
      ],
    )

  @tff.tensorflow.computation(update_type)
  def divide_by_probabilities(mean):
    return divide(mean, probabilities)

  @tff.federated_computation
  def initialize():
    return inner.initialize()

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(value_type, tff.CLIENTS),
    tff.FederatedType(weight_type, tff.CLIENTS),
  )
  def next_fn(state, value, weight):
    if is_weighted:
      output = inner.next(state, value.update, weight)
      shares = tff.federated_mean(value.trained, weight)
      result = tff.federated_map(divide, (output.result, shares))
    else:
      output = inner.next(state, value.update)
      result = tff.federated_map(divide_by_probabilities, output.result)
    return tff.templates.MeasuredProcessOutput(
      output.state, result, output.measurements
    )

  return tff.templates.AggregationProcess(initialize, next_fn)
