"""FedSGD: each client sends the gradient of all its examples."""

from __future__ import annotations

from typing import Any

import tensorflow_federated as tff

from si_federated.algorithms import fed_avg


def build_fed_sgd(
  *,
  model: tff.learning.models.FunctionalModel,
  server_optimizer: tff.learning.optimizers.Optimizer,
  aggregation_factory: fed_avg.Factory,
  client_weighting: str = 'tokens',
  model_distributor: tff.learning.templates.DistributionProcess | None = None,
) -> tff.learning.templates.LearningProcess:
  """Builds FedSGD (McMahan et al. 2016, arXiv 1602.05629) with TFF.

  Clients make no steps: there is no client optimizer.

  Args:
    model: The model to train.
    server_optimizer: Applies the mean gradient.
    aggregation_factory: Combines the gradients.
    client_weighting: See `build_fed_avg`; `'uniform'` needs an unweighted
      aggregator.
    model_distributor: See `build_fed_avg`.

  Returns:
    TFF's learning process.

  Raises:
    ValueError: If a weighted aggregator is combined with `'uniform'`.
  """
  factory: Any = aggregation_factory
  if isinstance(factory, tff.aggregators.UnweightedAggregationFactory):
    factory = tff.aggregators.as_weighted_aggregator(factory)
  elif client_weighting == 'uniform':
    raise ValueError(
      'FedSGD weights clients by their number of examples, as one gradient of '
      'all examples would; choose --aggregator=mean:weighting=tokens.'
    )
  return tff.learning.algorithms.build_fed_sgd(
    model_fn=model,
    server_optimizer_fn=server_optimizer,
    model_aggregator=factory,
    model_distributor=model_distributor,
    loop_implementation=tff.learning.LoopImplementation.DATASET_ITERATOR,
  )
