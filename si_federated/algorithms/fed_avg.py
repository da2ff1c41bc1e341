"""Generalized federated averaging: client optimizer, mean, server optimizer."""

from __future__ import annotations

from typing import Union

import tensorflow_federated as tff


def build_fed_avg(
  *,
  model: tff.learning.models.FunctionalModel,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer,
  aggregation_factory: Union[
    tff.aggregators.WeightedAggregationFactory,
    tff.aggregators.UnweightedAggregationFactory,
  ],
  client_weighting: str = 'tokens',
) -> tff.learning.templates.LearningProcess:
  """Builds FedAvg, FedAdam and their kin (Reddi et al., arXiv 2003.00295).

  Args:
    model: The model to train; its number of examples is what weights clients.
    client_optimizer: Makes the steps on a client.
    server_optimizer: Applies the mean update, as if it were a gradient.
    aggregation_factory: Combines the updates.
    client_weighting: `'uniform'`, or else clients weigh by the model's count of
      examples (or tokens).

  Returns:
    TFF's learning process.
  """
  options = {
    'model_fn': model,
    'client_optimizer_fn': client_optimizer,
    'server_optimizer_fn': server_optimizer,
    'model_aggregator': aggregation_factory,
    # An iterator's loop body is instantiated once, a reduction's once a client.
    'loop_implementation': tff.learning.LoopImplementation.DATASET_ITERATOR,
  }
  if isinstance(
    aggregation_factory, tff.aggregators.UnweightedAggregationFactory
  ):
    return tff.learning.algorithms.build_unweighted_fed_avg(**options)
  return tff.learning.algorithms.build_weighted_fed_avg(
    client_weighting=(
      tff.learning.ClientWeighting.UNIFORM
      if client_weighting == 'uniform'
      else tff.learning.ClientWeighting.NUM_EXAMPLES
    ),
    **options,
  )
