"""The record that an aggregator's builder returns."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional, Union

import tensorflow_federated as tff

from si_federated.privacy import participation, strategies
from si_federated.privacy import record as record_lib


@dataclasses.dataclass(frozen=True)
class Mechanism:
  """How updates are combined, and the privacy of the result.

  Attributes:
    factory: TFF's aggregation factory for the clients' updates. That of a
      private mechanism has a method `with_record`, see below.
    client_weighting: The weight of an update: `'tokens'`, `'examples'` or
      `'uniform'`.
    record: The description for the accounting; None for a mechanism that is not
      private, or that is accounted for elsewhere.
    contract: The participation of clients that the mechanism was built for;
      None if any is allowed.
    noise_cohort_size: If given, the noise and the record are those of a cohort
      of this size: privacy is simulated.
    unnoised_measurements: The names of measurements that are released without
      noise; no record covers them.
    simulated_because: Clauses that say why its noise protects nobody outside
      of a simulation.
    sends_scales: Whether clients also receive a number for each weight, to
      scale their updates by.
  """

  factory: Union[
    tff.aggregators.WeightedAggregationFactory,
    tff.aggregators.UnweightedAggregationFactory,
  ]
  client_weighting: str
  record: Optional[record_lib.Record] = None
  contract: Optional[participation.Participation] = None
  noise_cohort_size: Optional[int] = None
  unnoised_measurements: tuple[str, ...] = ()
  simulated_because: tuple[str, ...] = ()
  sends_scales: bool = False

  def __post_init__(self):
    if self.client_weighting not in ('tokens', 'examples', 'uniform'):
      raise ValueError(
        'weighting must be tokens, examples or uniform, found '
        f'{self.client_weighting!r}.'
      )
    if self.record is not None and self.client_weighting != 'uniform':
      raise ValueError(
        'A private mechanism weighs all clients the same; found weighting '
        f'{self.client_weighting!r}.'
      )

  def for_dimension(self, dimension: int) -> Mechanism:
    """Returns the mechanism for updates of a known size.

    Args:
      dimension: The number of weights in an update.

    Returns:
      Itself, unless its privacy depends on that number.

    Raises:
      ValueError: If the number is not positive.
    """
    record = self.record and self.record.for_dimension(dimension)
    return self if record is self.record else self._replace_record(record)

  def with_record(self, record: record_lib.Record) -> Mechanism:
    """Returns the mechanism with the noise of another record.

    Calibration thus reuses the strategy, which takes long to optimise.

    Args:
      record: This mechanism's record with another noise multiplier,
        amplification or both.

    Returns:
      The mechanism with the record's noise.

    Raises:
      ValueError: If the mechanism has no record, or one with another strategy
        or contract.
    """
    if self.record is None:
      raise ValueError(
        'This mechanism has no accounting of its own, so its noise cannot be '
        'calibrated; give a noise multiplier.'
      )
    if not self.record.is_variant_of(record):
      raise ValueError(
        'The record has another strategy or contract than the mechanism; '
        "change the mechanism's own record."
      )
    return self._replace_record(record)

  def with_strategy(self, strategy: strategies.Strategy) -> Mechanism:
    """Returns the mechanism with another correlation of noise.

    Args:
      strategy: The mechanism's strategy in another run, or before a restart.

    Raises:
      ValueError: If the mechanism has no strategy, or if its contract has more
        rounds than the new strategy.
    """
    record: Any = self.record
    if not hasattr(record, 'strategy'):
      raise ValueError(
        'This mechanism has no strategy to replace; give its own options.'
      )
    factory: Any = self.factory
    return dataclasses.replace(
      self,
      record=dataclasses.replace(record, strategy=strategy),
      factory=dataclasses.replace(factory, strategy=strategy),
    )

  def _replace_record(self, record):
    factory: Any = self.factory
    return dataclasses.replace(
      self, record=record, factory=factory.with_record(record)
    )
