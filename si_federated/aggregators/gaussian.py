"""Gaussian mechanisms of independent noise: DP-FedAvg, and DP-SGD on clients.

What TFF's `DifferentiallyPrivateFactory.gaussian_fixed` and
`gaussian_adaptive` compute, with noise that is keyed by seed and round, which
theirs can not be.
"""

from __future__ import annotations

from typing import Optional

from si_federated.aggregators import (
  adaptive_clip,
  correlated_noise,
  mechanism,
)
from si_federated.privacy import participation, strategies


def build_gaussian(
  *,
  clip_norm: float,
  noise_multiplier: float,
  clients_per_round: int,
  total_rounds: int,
  min_separation: Optional[int] = None,
  max_participations: Optional[int] = None,
  noise_seed: Optional[int] = None,
  noise_cohort_size: Optional[int] = None,
) -> mechanism.Mechanism:
  """Builds independent noise at a fixed clip norm (arXiv 1710.06963).

  Args:
    clip_norm: The most that the L2 norm of a client's update counts.
    noise_multiplier: The standard deviation of the noise on the sum of clipped
      updates, relative to the clip norm.
    clients_per_round: The number that the sum is divided by.
    total_rounds: The number of rounds.
    min_separation: The least distance of two rounds of one client; 1 if none.
    max_participations: The most rounds of one client; as many as fit if none.
    noise_seed: Makes the noise reproducible; None for a secret one.
    noise_cohort_size: If given, the noise is that of a cohort of this size.

  Returns:
    The mechanism.

  Raises:
    ValueError: If an argument is out of range.
  """
  return _build(
    total_rounds,
    min_separation,
    max_participations,
    clip_norm=clip_norm,
    noise_multiplier=noise_multiplier,
    clients_per_round=clients_per_round,
    noise_seed=noise_seed,
    noise_cohort_size=noise_cohort_size,
  )


def build_adaptive_gaussian(
  *,
  noise_multiplier: float,
  clients_per_round: int,
  total_rounds: int,
  clip_norm: float = 0.1,
  min_separation: Optional[int] = None,
  max_participations: Optional[int] = None,
  noise_seed: Optional[int] = None,
  noise_cohort_size: Optional[int] = None,
  target_quantile: float = 0.5,
  clip_learning_rate: float = 0.2,
  count_noise: float = 0.05,
) -> mechanism.Mechanism:
  """Builds independent noise at a clip norm that follows a quantile.

  Andrew et al., arXiv 1905.03871, geometric updates; defaults are TFF's. The
  noise multiplier is that of the whole: the sum gets a little more noise to
  make up for what following the quantile costs.

  Args:
    noise_multiplier: As for `build_gaussian`, of sum and count together.
    clients_per_round: The number that the sum is divided by.
    total_rounds: The number of rounds.
    clip_norm: The initial clip norm.
    min_separation: The least distance of two rounds of one client; 1 if none.
    max_participations: The most rounds of one client; as many as fit if none.
    noise_seed: Makes the noise reproducible; None for a secret one.
    noise_cohort_size: If given, the noise is that of a cohort of this size.
    target_quantile: The part of updates that should not be clipped.
    clip_learning_rate: The norm changes by at most a factor of its exponential
      in a round.
    count_noise: The standard deviation of the noise on the count of updates
      that were not clipped, relative to the cohort.

  Returns:
    The mechanism.

  Raises:
    ValueError: If an argument is out of range.
  """
  return _build(
    total_rounds,
    min_separation,
    max_participations,
    clip_norm=clip_norm,
    noise_multiplier=noise_multiplier,
    clients_per_round=clients_per_round,
    noise_seed=noise_seed,
    noise_cohort_size=noise_cohort_size,
    adaptive=adaptive_clip.AdaptiveClip(
      target_quantile, clip_learning_rate, count_noise
    ),
  )


def _build(total_rounds, min_separation, max_participations, **options):
  separation = 1 if min_separation is None else min_separation
  contract = participation.Participation(
    total_rounds,
    total_rounds if max_participations is None else max_participations,
    separation,
  )
  return correlated_noise.build_mechanism(
    correlated_noise.CorrelatedNoiseFactory(
      strategies.identity(total_rounds), **options
    ),
    contract,
  )
