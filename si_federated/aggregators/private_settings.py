"""The settings that all private aggregators share."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Container
from typing import Any, Optional

from si_federated import signatures
from si_federated.aggregators import keyed_noise, mechanism
from si_federated.privacy import participation


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivateSettings:
  """The clip norm, noise and participation of a private aggregator.

  Attributes:
    clip_norm: The largest L2 norm of a client's update; longer ones are scaled
      down to it.
    noise_multiplier: The standard deviation of the noise on the sum of clipped
      updates (of z, for correlated noise), relative to the clip norm.
    clients_per_round: The number that the sum is divided by.
    total_rounds: The number of rounds.
    min_separation: The least distance between two rounds of one client; 1 if
      None.
    max_participations: The most rounds of one client; as many as fit if None.
    noise_seed: Makes the noise reproducible; None for a secret one.
    noise_cohort_size: If given, the noise is that of a cohort of this size.
    block: If not 0, a client takes part at most once in each block of this many
      rounds, see `participation.Participation`.
  """

  clip_norm: float
  noise_multiplier: float
  clients_per_round: int
  total_rounds: int
  min_separation: Optional[int] = None
  max_participations: Optional[int] = None
  noise_seed: Optional[int] = None
  noise_cohort_size: Optional[int] = None
  block: int = 0

  def __post_init__(self):
    if not 0 < self.clip_norm < math.inf:
      raise ValueError(
        f'clip_norm is {self.clip_norm}; it must be finite and positive.'
      )
    if not 0 <= self.noise_multiplier < math.inf:
      raise ValueError(
        f'noise_multiplier is {self.noise_multiplier}; it must be at least 0 '
        'and finite.'
      )
    if self.clients_per_round < 1:
      raise ValueError(
        f'clients_per_round is {self.clients_per_round}; a cohort needs a '
        'client.'
      )
    if self.cohort_size < self.clients_per_round:
      raise ValueError(
        f'noise_cohort_size is {self.noise_cohort_size}, below the '
        f'{self.clients_per_round} clients per round; it simulates a larger '
        'cohort.'
      )
    keyed_noise.check_seed(self.noise_seed)
    self.contract()

  @property
  def cohort_size(self) -> int:
    """The size of the cohort that the noise is relative to."""
    if self.noise_cohort_size is None:
      return self.clients_per_round
    return self.noise_cohort_size

  def contract(self, *, cyclic: bool = False) -> participation.Participation:
    """Returns the participation that the aggregator is built for.

    Args:
      cyclic: See `participation.Participation`.
    """
    return participation.Participation(
      self.total_rounds,
      self.total_rounds
      if self.max_participations is None
      else self.max_participations,
      1 if self.min_separation is None else self.min_separation,
      cyclic,
      0 if cyclic else self.block,
    )


def private_builder(
  *,
  needs_separation: bool = False,
  without: Container[str] = (),
  **defaults: Any,
) -> Callable[
  [Callable[..., mechanism.Mechanism]], Callable[..., mechanism.Mechanism]
]:
  """Turns a function of `PrivateSettings` into an aggregator's builder.

  The builder takes the settings, and the function's own options, as keyword
  arguments, and has their signature.

  Args:
    needs_separation: Whether the builder raises unless `min_separation` is
      given.
    without: The settings that the builder does not take.
    **defaults: Defaults that differ from those of `PrivateSettings`.
  """

  def decorate(build):
    _, *options = inspect.signature(build).parameters.values()
    settings = signatures.options_of(
      PrivateSettings, without=without, **defaults
    )

    def call(**given: Any) -> mechanism.Mechanism:
      values = {setting.name: given.pop(setting.name) for setting in settings}
      if needs_separation and values['min_separation'] is None:
        raise ValueError(
          f'{build.__name__[len("build_") :]} needs min_separation, the least '
          'distance between two rounds of one client.'
        )
      return build(PrivateSettings(**values), **given)

    return signatures.wrap(build, call, [*settings, *options])

  return decorate
