"""The weighted mean of the clients' updates, without privacy."""

from __future__ import annotations

import tensorflow_federated as tff

from si_federated.aggregators import mechanism


def build_mean(
  *, weighting: str = 'tokens', zeroing: bool = True
) -> mechanism.Mechanism:
  """Builds the weighted mean of updates (McMahan et al., arXiv 1602.05629).

  TFF's client work gives updates that are not finite a weight of zero.

  Args:
    weighting: The weight of an update: the number of `'tokens'` that the client
      predicted, the number of `'examples'` it used, or `'uniform'`.
    zeroing: Whether updates with an unusually large entry are replaced by zero
      (TFF's adaptive zeroing, `tff.learning.robust_aggregator`).

  Returns:
    The mechanism.

  Raises:
    ValueError: If the weighting is unknown.
  """
  return mechanism.Mechanism(
    factory=tff.learning.robust_aggregator(zeroing=zeroing, clipping=False),
    client_weighting=weighting,
  )
