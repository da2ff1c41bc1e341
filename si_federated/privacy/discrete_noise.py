"""Accounting of distributed differential privacy: discrete noise from clients.

Clients clip, rotate and scale their updates, round them at random to whole
numbers and add discrete noise; only the sum is revealed. An update affects only
the noisy sum modulo a power of two, so that values that wrap around cost
utility, never privacy.

The guarantee assumes that as many clients as planned add their share of the
noise in every round, and that no client reveals its share to the server.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Optional

import dp_accounting
import numpy as np
from dp_accounting import rdp
from scipy import special

from si_federated.privacy import participation, record, sensitivity

NOISES = ('skellam', 'discrete_gaussian')
ROTATIONS = ('hadamard', 'fourier')
# The bound for Skellam noise is proven for integer orders only.
_ORDERS = np.array([*range(2, 129), *range(136, 257, 8), 512, 1024, 2048])
# As in TFF: the largest scale, and the slack of its check of norms, which
# allows for numerical errors.
_MAX_SCALE = 1e6
_LEEWAY = 1e-5


@dataclasses.dataclass(frozen=True)
class Grid:
  """The mechanism of one round, in units of its whole numbers.

  Attributes:
    scale: The factor that updates are multiplied by before rounding.
    dimension: The number of coordinates after the rotation, padding included.
    l1: The largest possible L1 norm of one client's rounded update.
    l2: The largest possible L2 norm of that update.
    local_stddev: The standard deviation of one client's noise.
  """

  scale: float
  dimension: int
  l1: float
  l2: float
  local_stddev: float


@dataclasses.dataclass(frozen=True)
class DistributedRecord(record.Record):
  """All facts that determine the privacy of a distributed mechanism.

  Rounds have independent noise and compose adaptively: k participations of a
  client cost k times as much as one.

  Attributes:
    noise: `'skellam'` (Agarwal et al. 2021, arXiv 2110.04995) or
      `'discrete_gaussian'` (Kairouz et al. 2021, arXiv 2102.06387).
    noise_multiplier: The standard deviation of the noise on the sum, of all
      clients together, relative to the clip norm.
    contract: The participation that the schedule promises.
    clip_norm: The clip norm, before rounding.
    clients_per_round: The number of clients that share the noise.
    bits: The width of the numbers that are summed.
    rotation: `'hadamard'`, which pads to a power of two, or `'fourier'`.
    dimension: The number of weights in an update; None while unknown.
    beta: The beta of conditional rounding, in [0, 1); 0 rounds unconditionally.
    wrap_probability: The probability that a value wraps around, which
      determines the scale.
  """

  noise: str
  noise_multiplier: float
  contract: participation.Participation
  clip_norm: float
  clients_per_round: int
  bits: int
  rotation: str = 'hadamard'
  dimension: Optional[int] = None
  beta: float = 0.0
  wrap_probability: float = 1e-4

  def __post_init__(self):
    for name, known in (('noise', NOISES), ('rotation', ROTATIONS)):
      if getattr(self, name) not in known:
        raise ValueError(
          f'{name} is {getattr(self, name)!r}; known are {" and ".join(known)}.'
        )
    for name, is_valid, allowed in (
      ('noise_multiplier', lambda x: 0 <= x < math.inf, 'finite, not negative'),
      ('clip_norm', lambda x: 0 < x < math.inf, 'finite and positive'),
      ('beta', lambda x: 0 <= x < 1, 'at least 0 and below 1'),
      ('wrap_probability', lambda x: 0 < x < 1, 'between 0 and 1'),
      ('clients_per_round', _is_count, 'a whole number of at least 1'),
      ('bits', lambda x: _is_count(x) and x <= 22, 'a whole number, 1 to 22'),
      ('dimension', _is_count, 'a whole number of at least 1'),
    ):
      value = getattr(self, name)
      if value is not None and not is_valid(value):
        raise ValueError(f'{name} is {value}; it must be {allowed}.')
    if 2**self.bits < self.clients_per_round or (
      4**self.bits <= self.clients_per_round * self._deviations**2
    ):
      raise ValueError(
        f'bits is {self.bits}, too few for sums over {self.clients_per_round} '
        'clients; take more bits or fewer clients.'
      )

  @property
  def amplification(self) -> None:  # type: ignore[override]
    """None: no result on subsampling is used for these mechanisms."""
    return None

  @property
  def kind(self) -> str:  # type: ignore[override]
    """The name of the mechanism."""
    return f'distributed_{self.noise}'

  def for_dimension(self, dimension):
    """Returns the record for updates of a known size.

    Args:
      dimension: The number of weights in an update.

    Raises:
      ValueError: If it is not positive.
    """
    return dataclasses.replace(self, dimension=dimension)

  def is_variant_of(self, other):
    """Returns whether only the noise multiplier may differ."""
    return self == other.with_noise(self.noise_multiplier)

  @property
  def _deviations(self) -> float:
    """The half width of the range of sums, in standard deviations."""
    return math.sqrt(2) * float(special.erfcinv(self.wrap_probability))

  @functools.cached_property
  def grid(self) -> Grid:
    """The values that TFF's `DistributedDpSumFactory` derives.

    Section 4 of arXiv 2102.06387. With c the scaled clip norm and d the padded
    dimension, the norm of a rounded update is at most `c + sqrt(d)`. With
    conditional rounding, its square is also at most
    `c^2 + d / 4 + sqrt(2 log(1 / beta)) (c + sqrt(d) / 2)`. The L1 norm of
    whole numbers is at most the square of their L2 norm.

    Raises:
      ValueError: If the dimension is unknown.
    """
    if self.dimension is None:
      raise ValueError(
        'The privacy of distributed_dp depends on the size of the model; give '
        'the number of trained weights to for_dimension.'
      )
    dimension = (
      2 ** math.ceil(math.log2(self.dimension))
      if self.rotation == 'hadamard'
      else 2 * math.ceil(self.dimension / 2)
    )
    clients, clip = self.clients_per_round, self.clip_norm
    local = self.noise_multiplier * clip / math.sqrt(clients)
    width = self._deviations
    spread = math.sqrt((clip * clients) ** 2 / dimension + clients * local**2)
    scale = math.sqrt(4**self.bits - clients * width**2) / (2 * width * spread)
    scale = min(scale, _MAX_SCALE)
    norm = scale * clip
    l2 = norm + math.sqrt(dimension)
    if self.beta:
      conditional = norm**2 + dimension / 4
      conditional += math.sqrt(2 * math.log(1 / self.beta)) * (
        norm + math.sqrt(dimension) / 2
      )
      l2 = min(l2, math.sqrt(conditional))
    l2 += _LEEWAY * scale
    local *= scale
    if self.noise == 'discrete_gaussian':
      # TensorFlow Privacy rounds the standard deviation up to a whole number.
      local = float(np.ceil(np.float32(local)))
    l1 = math.ceil(l2 * min(math.sqrt(dimension), l2))
    return Grid(scale, dimension, l1, l2, local)

  @property
  def sensitivity(self) -> sensitivity.Sensitivity:  # type: ignore[override]
    """The sensitivity of the noise-free sums, relative to the clip norm."""
    once = self.grid.l2 / (self.grid.scale * self.clip_norm)
    return sensitivity.Sensitivity(
      once * math.sqrt(self.contract.participations),
      False,
      'bound on the norm after rounding, of independent rounds (RDP)',
    )

  @property
  def rho(self) -> Optional[float]:  # type: ignore[override]
    """The zCDP of the mechanism; unknown, so None, for Skellam noise."""
    if not self.noise_multiplier:
      return math.inf
    if self.noise == 'skellam':
      return None
    # The bounds are linear in the order, and at least rho at order 1.
    return self.contract.participations * float(
      discrete_gaussian_rdp(np.ones(1), self.grid, self.clients_per_round)[0]
    )

  def event(self):
    """Returns an event of dp_accounting, which supports no such noise."""
    if not self.noise_multiplier:
      return dp_accounting.NonPrivateDpEvent()
    return dp_accounting.UnsupportedDpEvent()

  def renyi(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns Renyi orders, and a bound on the divergence at each order."""
    bound = skellam_rdp if self.noise == 'skellam' else discrete_gaussian_rdp
    once = bound(_ORDERS, self.grid, self.clients_per_round)
    return _ORDERS, self.contract.participations * once

  def _epsilon(self, delta, method):
    # No tighter bound is known than that from Renyi differential privacy.
    del method
    return float(rdp.compute_epsilon(*self.renyi(), delta)[0])

  def after(self, observed):
    """Returns the record of a run so far; see `Record.after`."""
    return dataclasses.replace(self, contract=observed)

  def calibrated(self, target_epsilon, delta):
    """Returns the record with the least noise, to a relative error of 1e-6.

    The discrete Gaussian's noise grows in steps, so that the result is only
    nearly the smallest.

    Args:
      target_epsilon: The largest acceptable epsilon, finite and positive.
      delta: In (0, 1).

    Raises:
      ValueError: If no noise suffices, or the dimension is unknown.
    """

    def enough(noise):
      return self.with_noise(noise).epsilon(delta) <= target_epsilon

    high = 1.0
    while enough(high) and high > 1e-6:
      high /= 2
    noise = record.least_enough(
      enough, low=high / 2, high=high, limit=1e9, tolerance=1e-6
    )
    if math.isinf(noise):
      # More noise needs a smaller scale, and so coarser rounding: epsilon has a
      # lower limit above 0.
      raise ValueError(
        f'No noise multiplier achieves epsilon {target_epsilon} at delta '
        f'{delta} with {self.bits} bits; take more bits or a larger epsilon.'
      )
    return self.with_noise(noise)

  def _details(self):
    return {
      **{
        name: getattr(self, name)
        for name in ('clients_per_round', 'bits', 'rotation', 'dimension')
      },
      'grid': dataclasses.asdict(self.grid),
    }


def _is_count(value):
  return value == int(value) >= 1


def skellam_rdp(orders: np.ndarray, grid: Grid, clients: int) -> np.ndarray:
  """Returns a bound on the Renyi divergence of Skellam noise.

  The theorem on the multi-dimensional mechanism of Agarwal et al. 2021 (arXiv
  2110.04995), with the variance of the sum, which is Skellam again.

  Args:
    orders: Whole numbers from 2 on.
    grid: The mechanism of a round.
    clients: The number of clients that add noise.
  """
  variance = clients * grid.local_stddev**2
  fine = ((2 * orders - 1) * grid.l2**2 + 6 * grid.l1) / (4 * variance**2)
  coarse = 3 * grid.l1 / (2 * variance)
  return orders * grid.l2**2 / (2 * variance) + np.minimum(fine, coarse)


def discrete_gaussian_rdp(
  orders: np.ndarray, grid: Grid, clients: int
) -> np.ndarray:
  """Returns a bound on the Renyi divergence of a sum of discrete Gaussians.

  The least of three bounds of Kairouz et al. 2021 (arXiv 2102.06387, section
  3). Such a sum is not a discrete Gaussian; tau bounds the deviation.

  Args:
    orders: Numbers from 1 on.
    grid: The mechanism of a round.
    clients: The number of clients that add noise.
  """
  k = np.arange(1, clients)
  exponents = 2 * (math.pi * grid.local_stddev) ** 2 * k / (k + 1)
  tau = 10 * float(np.exp(-exponents).sum())
  stddev = math.sqrt(clients) * grid.local_stddev
  l1, l2, d = grid.l1 / stddev, grid.l2 / stddev, grid.dimension
  return np.minimum.reduce(
    [
      orders / 2 * l2**2 + tau * d,
      orders / 2 * (l2**2 + 2 * l1 * tau + tau**2 * d),
      orders / 2 * (l2 + math.sqrt(d) * tau) ** 2,
    ]
  )
