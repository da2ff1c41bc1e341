"""Tree aggregation, for DP-FTRL."""

from __future__ import annotations

from typing import Optional

from si_federated.aggregators.correlated_noise import build_mechanism
from si_federated.aggregators.mechanism import Mechanism
from si_federated.aggregators.private_settings import (
  PrivateSettings,
  private_builder,
)
from si_federated.privacy import strategies


@private_builder(needs_separation=True)
def build_tree(
  settings: PrivateSettings,
  *,
  efficient: bool = True,
  restart: bool = False,
  keep_rows: Optional[bool] = None,
) -> Mechanism:
  """Builds tree aggregation (Kairouz et al. 2021, arXiv 2103.00039).

  The noise has the same distribution and state as TensorFlow Privacy's tree
  queries: the state is at most log2(rounds of a tree) models, rounded up. A
  round that completes a node of height h makes h + 1 rows of z (one if not
  efficient): 2 on average, at most log2(rounds) + 1. The last round of a tree
  before a restart also makes two rows for each of its virtual rounds.

  Differs from the paper: only the noise restarts, while the momentum of the
  server's optimizer continues.

  Args:
    settings: The fields of `PrivateSettings`, as keyword arguments; the noise
      multiplier is that of a node, and `min_separation` is required.
    efficient: Whether nodes are also estimated from those below them (Honaker).
    restart: Whether a new tree begins with each epoch, of `block` or
      `min_separation` rounds, after completing the previous tree.
    keep_rows: Whether to store estimates of nodes; true by default. Otherwise
      there is no state, but an efficient tree regenerates all nodes below a
      node, 2^(h + 1) - 1 rows of z: 4,095 in round 2,048. A plain tree then
      makes at most 12 rows.

  Returns:
    The mechanism.

  Raises:
    ValueError: If an argument is missing or out of range.
  """
  return build_mechanism(
    strategies.Tree(
      settings.total_rounds,
      'honaker' if efficient else 'plain',
      restart_every=settings.block or settings.contract().min_separation
      if restart
      else 0,
      complete=restart,
    ),
    settings,
    keep_rows=keep_rows,
  )
