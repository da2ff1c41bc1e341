"""FedProx: federated averaging that keeps clients near the server's model."""

from __future__ import annotations

import collections
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from si_federated.algorithms import fed_avg


class ProximalOptimizer(tff.learning.optimizers.Optimizer):
  """Adds μ (x - x₀) to the gradient, where x₀ are the initial weights.

  TFF 0.87's own FedProx adds it with the wrong sign, which drives clients away
  from the server's model.
  """

  def __init__(
    self,
    inner: tff.learning.optimizers.Optimizer,
    strength: float,
  ) -> None:
    """Initializes the optimizer.

    Args:
      inner: Makes the steps.
      strength: μ.
    """
    self._inner = inner
    self._strength = strength

  def initialize(self, specs: Any) -> Any:
    """Returns a state that takes the weights of the first step as x₀."""
    return collections.OrderedDict(
      inner=self._inner.initialize(specs),
      has_begun=tf.constant(False),
      beginning=tf.nest.map_structure(
        lambda spec: tf.zeros(spec.shape, spec.dtype), specs
      ),
    )

  def next(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
    """Returns the state and the weights after a step."""
    beginning = tf.nest.pack_sequence_as(
      weights,
      [
        tf.cond(state['has_begun'], lambda b=before: b, lambda w=now: w)
        for before, now in zip(
          tf.nest.flatten(state['beginning']), tf.nest.flatten(weights)
        )
      ],
    )
    gradients = tf.nest.map_structure(
      lambda g, x, x0: g + self._strength * (x - x0),
      gradients,
      weights,
      beginning,
    )
    inner, weights = self._inner.next(state['inner'], weights, gradients)
    state = collections.OrderedDict(
      inner=inner, has_begun=tf.constant(True), beginning=beginning
    )
    return state, weights


def build_fed_prox(
  *,
  model: tff.learning.models.FunctionalModel,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer,
  aggregation_factory: fed_avg.Factory,
  client_weighting: str = 'tokens',
  model_distributor: tff.learning.templates.DistributionProcess | None = None,
  proximal_strength: float = 0.1,
) -> tff.learning.templates.LearningProcess:
  """Builds FedProx (Li et al. 2018, arXiv 1812.06127).

  Args:
    model: See `build_fed_avg`, also for the next five.
    client_optimizer: Makes the steps on a client.
    server_optimizer: Applies the mean update.
    aggregation_factory: Combines the updates.
    client_weighting: The weights of clients.
    model_distributor: Sends the model to the clients.
    proximal_strength: μ; half of it times the squared distance from the
      server's model is added to a client's loss.

  Returns:
    TFF's learning process.

  Raises:
    ValueError: If the strength is negative.
  """
  if not 0 <= proximal_strength < float('inf'):
    raise ValueError(
      f'proximal_strength must be at least 0, but it is {proximal_strength}: '
      '0 is federated averaging, and larger values keep clients nearer.'
    )
  return fed_avg.build_fed_avg(
    model=model,
    client_optimizer=ProximalOptimizer(client_optimizer, proximal_strength),
    server_optimizer=server_optimizer,
    aggregation_factory=aggregation_factory,
    client_weighting=client_weighting,
    model_distributor=model_distributor,
  )
