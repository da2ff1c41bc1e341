"""Tree aggregation, for DP-FTRL."""

from __future__ import annotations

from typing import Optional

from si_federated.aggregators import correlated_noise, mechanism
from si_federated.privacy import strategies


def build_tree(
  *,
  clip_norm: float,
  noise_multiplier: float,
  clients_per_round: int,
  total_rounds: int,
  min_separation: Optional[int] = None,
  max_participations: Optional[int] = None,
  noise_seed: Optional[int] = None,
  noise_cohort_size: Optional[int] = None,
  efficient: bool = True,
  restart: bool = False,
  keep_rows: Optional[bool] = None,
) -> mechanism.Mechanism:
  """Builds tree aggregation (Kairouz et al. 2021, arXiv 2103.00039).

  The noise is that of TensorFlow Privacy's tree queries, and kept as there: the
  state has the size of at most log2(rounds of a tree) models, rounded up. A
  round that completes a node of height h makes h + 1 rows of z (one if not
  efficient), 2 on average and log2(rounds) + 1 at most; the last round of a
  tree before a restart makes those of its virtual rounds too, 2 for each.

  Differs from the paper: a restart is of the noise alone, the momentum of the
  server's optimizer goes on.

  Args:
    clip_norm: The most that the L2 norm of a client's update counts.
    noise_multiplier: The standard deviation of the noise of a node, relative to
      the clip norm.
    clients_per_round: The number that the sum is divided by.
    total_rounds: The number of rounds.
    min_separation: The least distance of two rounds of one client.
    max_participations: The most rounds of one client; as many as fit if none.
    noise_seed: Makes the noise reproducible; None for a secret one.
    noise_cohort_size: If given, the noise is that of a cohort of this size.
    efficient: Whether nodes are estimated from those below them too (Honaker).
    restart: Whether a new tree begins every `min_separation` rounds, which is
      an epoch in fixed cycles, after the one before was completed.
    keep_rows: Whether estimates of nodes are kept, as by default; if not there
      is no state, but an efficient tree makes all nodes below a node anew,
      2^(h + 1) - 1 rows of z: 4,095 in round 2,048. A plain tree makes at most
      12 then.

  Returns:
    The mechanism.

  Raises:
    ValueError: If an argument is missing or out of range.
  """
  contract = mechanism.separated_contract(
    'tree', total_rounds, min_separation, max_participations
  )
  return correlated_noise.build_mechanism(
    correlated_noise.CorrelatedNoiseFactory(
      strategies.Tree(
        total_rounds,
        'honaker' if efficient else 'plain',
        restart_every=contract.min_separation if restart else 0,
        complete=restart,
      ),
      clip_norm=clip_norm,
      noise_multiplier=noise_multiplier,
      clients_per_round=clients_per_round,
      noise_seed=noise_seed,
      noise_cohort_size=noise_cohort_size,
      keep_rows=keep_rows,
    ),
    contract,
  )
