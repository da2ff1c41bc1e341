"""Gaussian mechanisms of independent noise: DP-FedAvg, and DP-SGD on clients.

They compute the same as TFF's `DifferentiallyPrivateFactory.gaussian_fixed` and
`gaussian_adaptive`, with noise keyed by seed and round.
"""

from __future__ import annotations

from si_federated.aggregators.adaptive_clip import AdaptiveClip
from si_federated.aggregators.correlated_noise import build_mechanism
from si_federated.aggregators.mechanism import Mechanism
from si_federated.aggregators.private_settings import (
  PrivateSettings,
  private_builder,
)
from si_federated.aggregators.update_scaling import UpdateScaling
from si_federated.privacy import strategies


@private_builder()
def build_gaussian(settings: PrivateSettings) -> Mechanism:
  """Builds independent noise at a fixed clip norm (arXiv 1710.06963).

  Args:
    settings: The fields of `PrivateSettings`, as keyword arguments.

  Returns:
    The mechanism.

  Raises:
    ValueError: If an argument is out of range.
  """
  return build_mechanism(strategies.identity(settings.total_rounds), settings)


@private_builder(clip_norm=0.1)
def build_adaptive_gaussian(
  settings: PrivateSettings,
  *,
  target_quantile: float = 0.5,
  clip_learning_rate: float = 0.2,
  count_noise: float = 0.05,
) -> Mechanism:
  """Builds independent noise at a clip norm that follows a quantile.

  The geometric updates of Andrew et al., arXiv 1905.03871, with TFF's defaults.
  The noise multiplier is that of the whole mechanism: the sum gets slightly
  more noise, to leave privacy budget for the quantile.

  Args:
    settings: The fields of `PrivateSettings`, as keyword arguments; the clip
      norm is the initial one, and the noise multiplier that of sum and count
      together.
    target_quantile: The fraction of updates that should not be clipped.
    clip_learning_rate: A round changes the norm by at most a factor of
      exp(clip_learning_rate).
    count_noise: The standard deviation of the noise on the count of updates
      that were not clipped, relative to the cohort.

  Returns:
    The mechanism.

  Raises:
    ValueError: If an argument is out of range.
  """
  return build_mechanism(
    strategies.identity(settings.total_rounds),
    settings,
    adaptive=AdaptiveClip(target_quantile, clip_learning_rate, count_noise),
  )


@private_builder()
def build_scaled_gaussian(
  settings: PrivateSettings,
  *,
  scale_decay: float = 0.9,
  scale_damping: float = 0.1,
  scale_delay: int = 1,
) -> Mechanism:
  """Builds independent noise in proportion to the usual size of coordinates.

  Scale-then-privatise, for adaptive server optimizers: see `update_scaling`.
  Sensitivity and accounting are those of `build_gaussian`, since scales follow
  from earlier releases.

  Args:
    settings: The fields of `PrivateSettings`, as keyword arguments; the clip
      norm is that of scaled updates.
    scale_decay: The decay of the running mean of squared releases.
    scale_damping: Added to the relative sizes of coordinates; a larger value
      makes scales more equal.
    scale_delay: The number of rounds between changes of scales.

  Returns:
    The mechanism.

  Raises:
    ValueError: If an argument is out of range.
  """
  return build_mechanism(
    strategies.identity(settings.total_rounds),
    settings,
    scaling=UpdateScaling(scale_decay, scale_damping, scale_delay),
  )
