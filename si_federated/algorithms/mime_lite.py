"""MimeLite: clients step with the server's optimizer state, frozen."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import fed_avg


def build_mime_lite(
  *,
  model: tff.learning.models.FunctionalModel,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer,
  aggregation_factory: fed_avg.Factory,
  gradient_aggregation_factory: fed_avg.Factory,
  client_weighting: str = 'tokens',
  model_distributor: tff.learning.templates.DistributionProcess | None = None,
) -> tff.learning.templates.LearningProcess:
  """Builds MimeLite (Karimireddy et al. 2020, arXiv 2008.03606) with TFF.

  A client uploads its update, and the gradient of all its examples at the
  server's model, from which the server computes the state of the client
  optimizer (momentum, second moments). Both are released and cost privacy.

  Args:
    model: The model to train.
    client_optimizer: The optimizer whose state the server keeps, such as SGD
      with momentum or Adam.
    server_optimizer: Applies the mean update; SGD of rate 1 in the paper.
    aggregation_factory: Combines the updates.
    gradient_aggregation_factory: Combines the gradients; of the same kind as
      `aggregation_factory`.
    client_weighting: See `build_fed_avg`.
    model_distributor: See `build_fed_avg`.

  Returns:
    TFF's learning process.
  """
  options: dict[str, Any] = {
    'base_optimizer': client_optimizer,
    'server_optimizer': server_optimizer,
    'model_distributor': model_distributor,
    'model_aggregator': aggregation_factory,
    'loop_implementation': tff.learning.LoopImplementation.DATASET_ITERATOR,
  }
  if isinstance(
    aggregation_factory, tff.aggregators.UnweightedAggregationFactory
  ):
    return tff.learning.algorithms.build_unweighted_mime_lite(
      model,
      full_gradient_aggregator=gradient_aggregation_factory,
      **options,
    )
  return tff.learning.algorithms.build_weighted_mime_lite(
    model,
    client_weighting=fed_avg.tff_weighting(client_weighting),
    full_gradient_aggregator=_FiniteFactory(gradient_aggregation_factory),
    **options,
  )


@dataclasses.dataclass(frozen=True)
class _FiniteFactory(tff.aggregators.WeightedAggregationFactory):
  """Replaces non-finite gradients by zeros, as TFF does with updates.

  The weight of their clients is zero, but zero times infinity is NaN.
  """

  inner: Any

  def create(
    self, value_type: Any, weight_type: Any
  ) -> tff.templates.AggregationProcess:
    inner = self.inner.create(value_type, weight_type)

    @tff.tensorflow.computation(value_type)
    def guard(value):
      is_finite = tf.reduce_all(
        [tf.reduce_all(tf.math.is_finite(v)) for v in tf.nest.flatten(value)]
      )
      return tf.nest.map_structure(
        lambda v: tf.where(is_finite, v, tf.zeros_like(v)), value
      )

    @tff.federated_computation(
      inner.next.type_signature.parameter[0],
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_fn(state, value, weight):
      return inner.next(state, tff.federated_map(guard, value), weight)

    return tff.templates.AggregationProcess(inner.initialize, next_fn)
