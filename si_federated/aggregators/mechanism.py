"""The record that an aggregator's builder returns, and checks they share."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Optional, Union

import tensorflow_federated as tff

from si_federated.privacy import accounting, discrete_noise, participation

Record = Union[accounting.PrivacyRecord, discrete_noise.DistributedRecord]


@dataclasses.dataclass(frozen=True)
class Mechanism:
  """How updates are combined, and what that means for privacy.

  Attributes:
    factory: TFF's aggregation factory for the clients' updates.
    client_weighting: What an update's weight is: `'tokens'`, `'examples'` or
      `'uniform'`.
    record: What the accounting needs to know; None of a mechanism that is not
      private, or whose accounting is not ours.
    contract: The participation of clients that the mechanism was built for;
      None if any will do.
    noise_cohort_size: If given, the noise is only that of a cohort of this
      size, and the record holds for such a cohort: privacy is simulated.
    unnoised_measurements: The names of the measurements that are released
      without noise, which no record covers.
  """

  factory: Union[
    tff.aggregators.WeightedAggregationFactory,
    tff.aggregators.UnweightedAggregationFactory,
  ]
  client_weighting: str
  record: Optional[Record] = None
  contract: Optional[participation.Participation] = None
  noise_cohort_size: Optional[int] = None
  unnoised_measurements: tuple[str, ...] = ()

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
    if not isinstance(self.record, discrete_noise.DistributedRecord):
      return self
    factory: Any = self.factory
    return dataclasses.replace(
      self,
      record=self.record.for_dimension(dimension),
      factory=factory.with_dimension(dimension),
    )

  def with_record(self, record: Record) -> Mechanism:
    """Returns the mechanism with the noise of another record.

    This is how noise is calibrated: what takes long, the strategy, is kept.

    Args:
      record: This mechanism's record with another noise multiplier,
        amplification or both.

    Returns:
      The mechanism, making as much noise as the record says.

    Raises:
      ValueError: If the mechanism has no record, or one of another strategy or
        contract.
    """
    if self.record is None:
      raise ValueError(
        'This mechanism has no accounting of its own, so its noise can not be '
        'calibrated; give a noise multiplier.'
      )
    if not self.record.is_variant_of(record):
      raise ValueError(
        'The record is of another strategy or contract than the mechanism; '
        "change the mechanism's own record."
      )
    factory: Any = self.factory
    return dataclasses.replace(
      self,
      record=record,
      factory=factory.with_noise_multiplier(record.noise_multiplier),
    )


def check_clip_and_noise(
  clip_norm: float, noise_multiplier: float, clients_per_round: int
) -> None:
  """Raises unless these make a private mechanism, or one without noise.

  Args:
    clip_norm: The clip norm.
    noise_multiplier: The noise multiplier.
    clients_per_round: The size of a cohort.

  Raises:
    ValueError: If one is out of range.
  """
  if not 0 < clip_norm < math.inf:
    raise ValueError(f'clip_norm is {clip_norm}; it is finite and positive.')
  if not 0 <= noise_multiplier < math.inf:
    raise ValueError(
      f'noise_multiplier is {noise_multiplier}; it is finite and not negative.'
    )
  if clients_per_round < 1:
    raise ValueError(
      f'clients_per_round is {clients_per_round}; a cohort needs a client.'
    )


def separated_contract(
  name: str,
  rounds: int,
  min_separation: Optional[int],
  max_participations: Optional[int],
  cyclic: bool = False,
) -> participation.Participation:
  """Returns the contract of a mechanism that needs separated participations.

  Args:
    name: The mechanism, for the message.
    rounds: The number of rounds.
    min_separation: The least distance of two rounds of one client.
    max_participations: The most rounds of one client; as many as fit if none.
    cyclic: See `participation.Participation`.

  Raises:
    ValueError: If the separation is missing, or a number is out of range.
  """
  if min_separation is None:
    raise ValueError(
      f'{name} needs min_separation, the least distance of two rounds of one '
      'client.'
    )
  return participation.Participation(
    rounds,
    rounds if max_participations is None else max_participations,
    min_separation,
    cyclic,
  )
