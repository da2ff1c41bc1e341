"""Accounting of distributed differential privacy: discrete noise from clients.

Clients clip and rotate their update, scale it, round it at random to whole
numbers, add discrete noise, and only the sum is seen. What depends on an update
besides the noisy sum modulo a power of two is nothing: that values wrap around
costs utility, never privacy.

The guarantee supposes that as many clients as planned add their share of the
noise in every round, and that none of them tells the server its share.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar, Optional

import dp_accounting
import numpy as np
from dp_accounting import rdp
from scipy import special

from si_federated.privacy import accounting, participation, sensitivity

NOISES = ('skellam', 'discrete_gaussian')
ROTATIONS = ('hadamard', 'fourier')
# The bound of Skellam noise is for whole orders only.
_ORDERS = np.array([*range(2, 129), *range(136, 257, 8), 512, 1024, 2048])
# Both of TFF: what a scale may be at most, and what it adds to a norm so that
# its own check allows for numerical errors.
_MAX_SCALE = 1e6
_LEEWAY = 1e-5


@dataclasses.dataclass(frozen=True)
class Grid:
  """The mechanism of one round in units of the whole numbers it works on.

  Attributes:
    scale: What updates are multiplied by before they are rounded.
    dimension: The number of coordinates after the rotation, padding included.
    l1: The most that the L1 norm of one client's rounded update can be.
    l2: The same of its L2 norm.
    local_stddev: The standard deviation of one client's noise.
  """

  scale: float
  dimension: int
  l1: float
  l2: float
  local_stddev: float


@dataclasses.dataclass(frozen=True)
class DistributedRecord:
  """All that the privacy of a distributed mechanism depends on.

  To be used as `accounting.PrivacyRecord`. Rounds have independent noise and
  compose adaptively, so that a client's k participations cost k times one.

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
    beta: Of conditional rounding, in [0, 1); 0 for unconditional rounding.
    wrap_probability: That of wrapping around, which sets the scale.
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

  # No result on subsampling of these mechanisms is used.
  amplification: ClassVar[None] = None
  neighbouring_relation: ClassVar[str] = 'zero-out'

  def __post_init__(self):
    for name, known in (('noise', NOISES), ('rotation', ROTATIONS)):
      if getattr(self, name) not in known:
        raise ValueError(
          f'{name} is {getattr(self, name)!r}; known are {" and ".join(known)}.'
        )
    for name, least, most, range_name in (
      ('noise_multiplier', 0, math.inf, 'finite and not negative'),
      ('beta', 0, 1, 'at least 0 and below 1'),
      ('clients_per_round', 1, math.inf, 'at least 1'),
      ('bits', 1, 23, '1 to 22'),
    ):
      if not least <= getattr(self, name) < most:
        raise ValueError(
          f'{name} is {getattr(self, name)}; it is {range_name}.'
        )
    if not 0 < self.clip_norm < math.inf:
      raise ValueError(
        f'clip_norm is {self.clip_norm}; it is finite and positive.'
      )
    if not 0 < self.wrap_probability < 1:
      raise ValueError(
        f'wrap_probability is {self.wrap_probability}; it lies between 0 and 1.'
      )
    if self.dimension is not None and self.dimension < 1:
      raise ValueError(
        f'dimension is {self.dimension}; an update has at least 1 weight.'
      )
    for name in ('clients_per_round', 'bits', 'dimension'):
      value = getattr(self, name)
      if value is not None and value != int(value):
        raise ValueError(f'{name} is {value}; it is a whole number.')
    if 2**self.bits < self.clients_per_round or (
      4**self.bits <= self.clients_per_round * self._deviations**2
    ):
      raise ValueError(
        f'bits is {self.bits}, too few for sums over {self.clients_per_round} '
        'clients; take more bits or fewer clients.'
      )

  def for_dimension(self, dimension: int) -> DistributedRecord:
    """Returns the record for updates of a known size.

    Args:
      dimension: The number of weights in an update.

    Raises:
      ValueError: If it is not positive.
    """
    return dataclasses.replace(self, dimension=dimension)

  def is_variant_of(self, other: Any) -> bool:
    """Tells whether only the noise multiplier may differ.

    Args:
      other: Another record.
    """
    if not isinstance(other, DistributedRecord):
      return False
    return self == dataclasses.replace(
      other, noise_multiplier=self.noise_multiplier
    )

  @property
  def _deviations(self) -> float:
    """How many standard deviations the range of sums is wide, to each side."""
    return math.sqrt(2) * float(special.erfcinv(self.wrap_probability))

  @functools.cached_property
  def grid(self) -> Grid:
    """What TFF's `DistributedDpSumFactory` makes of these parameters.

    Section 4 of arXiv 2102.06387. With c the scaled clip norm and d the padded
    dimension, a rounded update is at most `c + sqrt(d)` long, with conditional
    rounding also at most the root of
    `c^2 + d / 4 + sqrt(2 log(1 / beta)) (c + sqrt(d) / 2)`. On whole numbers
    the L1 norm is at most the square of the L2 norm.

    Raises:
      ValueError: If the dimension is unknown.
    """
    if self.dimension is None:
      raise ValueError(
        'The privacy of distributed_dp depends on the size of the model; give '
        'the number of trained weights by for_dimension.'
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
      # TensorFlow Privacy samples at the next whole standard deviation.
      local = float(np.ceil(np.float32(local)))
    l1 = math.ceil(l2 * min(math.sqrt(dimension), l2))
    return Grid(scale, dimension, l1, l2, local)

  @property
  def sensitivity(self) -> sensitivity.Sensitivity:
    """Of all participations to the noise-free sums, relative to the clip."""
    once = self.grid.l2 / (self.grid.scale * self.clip_norm)
    return sensitivity.Sensitivity(
      once * math.sqrt(self.contract.participations),
      False,
      'bound on the norm after rounding, of independent rounds (RDP)',
    )

  @property
  def rho(self) -> Optional[float]:
    """The zCDP of the mechanism; None of Skellam noise, as none is known."""
    if not self.noise_multiplier:
      return math.inf
    if self.noise == 'skellam':
      return None
    # At order 1 the bounds are no less than rho, and linear in the order.
    return self.contract.participations * float(
      discrete_gaussian_rdp(np.ones(1), self.grid, self.clients_per_round)[0]
    )

  def event(self) -> dp_accounting.DpEvent:
    """Returns what dp_accounting has for it: nothing, with noise."""
    if not self.noise_multiplier:
      return dp_accounting.NonPrivateDpEvent()
    return dp_accounting.UnsupportedDpEvent()

  def renyi(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns Renyi orders, and the bound on the divergence at each of them."""
    bound = skellam_rdp if self.noise == 'skellam' else discrete_gaussian_rdp
    once = bound(_ORDERS, self.grid, self.clients_per_round)
    return _ORDERS, self.contract.participations * once

  def epsilon(self, delta: float, *, method: str = 'rdp') -> float:
    """Returns epsilon at delta, a bound from Renyi differential privacy.

    Args:
      delta: In (0, 1).
      method: As of `PrivacyRecord.epsilon`; both give the same, as nothing
        tighter is known.

    Raises:
      ValueError: If delta or the method is unknown, or the dimension is.
    """
    accounting.check_delta(delta)
    if method not in accounting.METHODS:
      raise ValueError(f'method is {method!r}; known are exact and rdp.')
    if not self.noise_multiplier:
      return math.inf
    return float(rdp.compute_epsilon(*self.renyi(), delta)[0])

  def after(self, observed: participation.Participation) -> DistributedRecord:
    """Returns the record of a run so far.

    Args:
      observed: What a `ParticipationRecorder` has observed.
    """
    return dataclasses.replace(self, contract=observed)

  def calibrate(
    self, *, target_epsilon: float, delta: float
  ) -> DistributedRecord:
    """Returns the record with the least noise that keeps to an epsilon.

    To a relative 1e-6; as the discrete Gaussian's noise grows in steps, it is
    then one of several that are nearly as small.

    Args:
      target_epsilon: The epsilon to keep to, finite and positive.
      delta: In (0, 1).

    Raises:
      ValueError: If no noise is enough, or the dimension is unknown.
    """

    def enough(noise):
      record = dataclasses.replace(self, noise_multiplier=noise)
      return record.epsilon(delta) <= target_epsilon

    high = 1.0
    while enough(high) and high > 1e-6:
      high /= 2
    while not enough(high):
      high *= 2
      # More noise means a smaller scale and coarser rounding, so that epsilon
      # has a floor above 0.
      if high > 1e9:
        raise ValueError(
          f'No noise multiplier is enough for epsilon {target_epsilon} at '
          f'delta {delta} with {self.bits} bits; take more bits or a larger '
          'epsilon.'
        )
    low = high / 2
    while high - low > 1e-6 * high:
      middle = (low + high) / 2
      if enough(middle):
        high = middle
      else:
        low = middle
    return dataclasses.replace(self, noise_multiplier=high)

  def summary(self, delta: float, *, method: str = 'rdp') -> dict[str, Any]:
    """Returns the guarantee as plain values, fit for JSON.

    Args:
      delta: In (0, 1).
      method: As for `epsilon`.
    """
    return {
      'kind': f'distributed_{self.noise}',
      'noise_multiplier': self.noise_multiplier,
      'sensitivity': self.sensitivity.value,
      'sensitivity_is_exact': self.sensitivity.is_exact,
      'sensitivity_method': self.sensitivity.method,
      'rho': self.rho,
      'epsilon': self.epsilon(delta, method=method),
      'delta': delta,
      'neighbouring_relation': self.neighbouring_relation,
      'contract': dataclasses.asdict(self.contract),
      'amplification': None,
      'clients_per_round': self.clients_per_round,
      'bits': self.bits,
      'rotation': self.rotation,
      'dimension': self.dimension,
      'grid': dataclasses.asdict(self.grid),
    }


def skellam_rdp(orders: np.ndarray, grid: Grid, clients: int) -> np.ndarray:
  """Returns a bound on the Renyi divergence of Skellam noise.

  The theorem on the multi-dimensional mechanism of Agarwal et al. 2021 (arXiv
  2110.04995), with the variance of the sum: a sum of Skellam variables is one.

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
  3). Such a sum is no discrete Gaussian; tau bounds by how much it is not.

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
