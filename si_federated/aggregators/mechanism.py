"""The record that an aggregator's builder returns."""

from __future__ import annotations

import dataclasses
from typing import Union

import tensorflow_federated as tff


@dataclasses.dataclass(frozen=True)
class Mechanism:
  """How updates are combined.

  Attributes:
    factory: TFF's aggregation factory for the clients' updates.
    client_weighting: What an update's weight is: `'tokens'`, `'examples'` or
      `'uniform'`.
  """

  factory: Union[
    tff.aggregators.WeightedAggregationFactory,
    tff.aggregators.UnweightedAggregationFactory,
  ]
  client_weighting: str

  def __post_init__(self):
    if self.client_weighting not in ('tokens', 'examples', 'uniform'):
      raise ValueError(
        'weighting must be tokens, examples or uniform, found '
        f'{self.client_weighting!r}.'
      )
