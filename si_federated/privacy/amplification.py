"""Privacy amplification by sampling: its kinds, and the strategies for each."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

import numpy as np

from si_federated.privacy import strategies

_KINDS = ('poisson', 'cyclic_poisson', 'balls_in_bins', 'b_min_sep')
# The kinds whose epsilon is computed by Monte Carlo.
BY_MONTE_CARLO = ('balls_in_bins', 'b_min_sep')


@dataclasses.dataclass(frozen=True)
class Amplification:
  """Sampling that makes a mechanism more private than its noise alone.

  Attributes:
    kind: `'poisson'`: each client takes part in each round independently;
      `'cyclic_poisson'`: the same within fixed groups that take turns
      (Choquette-Choo et al. 2023, section 4); `'balls_in_bins'`: each client
      draws a group, and takes part in all its turns (Choquette-Choo et al.
      2024); `'b_min_sep'`: each client takes part in each round independently,
      unless it did in one of the `groups - 1` rounds before (Dong and Ganesh
      2026).
    probability: The probability that a client takes part in its group's turn;
      for `'balls_in_bins'`, that it is in a given group; for `'b_min_sep'`,
      that an available client takes part.
    groups: The number of groups; 1 for `'poisson'`. `'b_min_sep'` has none:
      there it is the least distance between two rounds of a client.
    max_cohort_size: For `'poisson'` and `'cyclic_poisson'`, the size to which
      cohorts are truncated at random; None for no truncation.
    num_clients: With a maximum size, the number of clients that can be drawn:
      of the population, or of a group.
  """

  kind: str
  probability: float
  groups: int = 1
  max_cohort_size: Optional[int] = None
  num_clients: Optional[int] = None

  def __post_init__(self):
    if self.kind not in _KINDS:
      raise ValueError(
        f'amplification kind is {self.kind!r}; known are {", ".join(_KINDS)}.'
      )
    if not 0 < self.probability <= 1:
      raise ValueError(
        f'a sampling probability of {self.probability} is not in (0, 1].'
      )
    if self.groups < 1 or (self.kind == 'poisson' and self.groups != 1):
      raise ValueError(f'{self.kind} cannot have {self.groups} groups.')
    if self.kind == 'balls_in_bins' and self.groups * self.probability > 1.001:
      raise ValueError(
        f'{self.groups} groups cannot have a probability of '
        f'{self.probability} each; their sum must be at most 1.'
      )
    most, clients = self.max_cohort_size, self.num_clients
    if (most is None and clients is None) or (
      self.kind not in BY_MONTE_CARLO and 1 <= (most or 0) <= (clients or 0)
    ):
      return
    raise ValueError(
      f'{self.kind} sampling of {clients} clients cannot have cohorts of at '
      f'most {most}; poisson and cyclic_poisson take a maximum, of at most all '
      'clients.'
    )

  @property
  def first_available(self) -> np.ndarray:
    """The probability of each leading round to be a client's first available.

    For `'b_min_sep'`, shape `[groups]`. It is stationary: a client takes part
    in every round with the same probability, as if there were earlier rounds.
    """
    free = 1 / (1 + (self.groups - 1) * self.probability)
    return np.array([free] + [self.probability * free] * (self.groups - 1))

  def facts(self) -> dict[str, Any]:
    """Returns the attributes that are set, as plain values."""
    given = dataclasses.asdict(self)
    return {key: value for key, value in given.items() if value is not None}

  def check_strategy(self, strategy: strategies.Strategy) -> None:
    """Raises unless the sampling amplifies a strategy.

    Args:
      strategy: The correlation of the noise.

    Raises:
      ValueError: If it does not; the message says which ones it amplifies.
    """
    kind = strategy.kind
    # The dominance of fixed means is proven only for these.
    if self.kind in BY_MONTE_CARLO and (
      kind == 'tree' or strategy.has_negative_entries
    ):
      raise ValueError(
        f'A {kind} strategy is not amplified by {self.kind}, which takes a '
        'square matrix without negative entries.'
      )
    if self.kind == 'balls_in_bins':
      return
    if self.kind == 'poisson' and kind != 'identity':
      raise ValueError(
        'Poisson sampling does not amplify the correlated noise of '
        f'{kind}; use the gaussian mechanism, or cyclic Poisson sampling '
        'with a banded strategy.'
      )
    if kind == 'tree' or strategy.bands > self.groups:
      what = 'rounds between' if self.kind == 'b_min_sep' else 'groups'
      raise ValueError(
        f'A {kind} strategy with {strategy.bands} bands is not amplified by '
        f'{self.kind} sampling with {self.groups} {what}, which takes at most '
        f'{self.groups} bands.'
      )
