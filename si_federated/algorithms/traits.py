"""What other parts of an experiment must know of an algorithm."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Traits:
  """The traits in which an algorithm differs from federated averaging.

  Attributes:
    releases_per_round: How many sums over clients a round releases, each by a
      mechanism of its own; the builder of an algorithm with two takes a
      `gradient_aggregation_factory`.
    makes_client_steps: Whether clients make steps, and so can make epochs.
    sends_parts: Whether clients send only some variables, so that the size of
      an update is measured.
    trains_experts: Whether clients train experts of their own after the rounds.
  """

  releases_per_round: int = 1
  makes_client_steps: bool = True
  sends_parts: bool = False
  trains_experts: bool = False
