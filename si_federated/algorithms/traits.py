"""Traits of an algorithm that other parts of an experiment depend on."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Traits:
  """The traits in which an algorithm differs from federated averaging.

  Attributes:
    releases_per_round: The number of sums over clients that a round releases,
      each by a mechanism of its own; the builder of an algorithm with two takes
      a `gradient_aggregation_factory`.
    makes_client_steps: Whether clients make steps, and so can make epochs.
    sends_parts: Whether clients send only some variables, so that the size of
      an update has to be measured.
    trains_experts: Whether clients train experts of their own after the rounds.
  """

  releases_per_round: int = 1
  makes_client_steps: bool = True
  sends_parts: bool = False
  trains_experts: bool = False
