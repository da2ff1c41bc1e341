"""Generalized federated averaging: client optimizer, mean, server optimizer."""

from __future__ import annotations

from typing import Union

import tensorflow_federated as tff

Factory = Union[
  tff.aggregators.WeightedAggregationFactory,
  tff.aggregators.UnweightedAggregationFactory,
]


def tff_weighting(client_weighting: str) -> tff.learning.ClientWeighting:
  """Returns TFF's name of a client weighting.

  Args:
    client_weighting: `'uniform'`, `'tokens'` or `'examples'`; for the latter
      two the model's `num_examples` counts the chosen unit.
  """
  if client_weighting == 'uniform':
    return tff.learning.ClientWeighting.UNIFORM
  return tff.learning.ClientWeighting.NUM_EXAMPLES


def build_fed_avg(
  *,
  model: tff.learning.models.FunctionalModel,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer,
  aggregation_factory: Factory,
  client_weighting: str = 'tokens',
  model_distributor: tff.learning.templates.DistributionProcess | None = None,
) -> tff.learning.templates.LearningProcess:
  """Builds FedAvg, FedAdam and relatives (Reddi et al., arXiv 2003.00295).

  Args:
    model: The model to train; its number of examples weights clients.
    client_optimizer: Makes the steps on a client.
    server_optimizer: Applies the mean update, as if it were a gradient.
    aggregation_factory: Combines the updates.
    client_weighting: `'uniform'`; otherwise the model's count of examples (or
      tokens) weights clients.
    model_distributor: Sends the model to the clients; unchanged by default.

  Returns:
    TFF's learning process.
  """
  options = {
    'model_fn': model,
    'client_optimizer_fn': client_optimizer,
    'server_optimizer_fn': server_optimizer,
    'model_aggregator': aggregation_factory,
    'model_distributor': model_distributor,
    # An iterator's loop body is instantiated once, a reduction's per client.
    'loop_implementation': tff.learning.LoopImplementation.DATASET_ITERATOR,
  }
  if isinstance(
    aggregation_factory, tff.aggregators.UnweightedAggregationFactory
  ):
    return tff.learning.algorithms.build_unweighted_fed_avg(**options)
  return tff.learning.algorithms.build_weighted_fed_avg(
    client_weighting=tff_weighting(client_weighting), **options
  )
