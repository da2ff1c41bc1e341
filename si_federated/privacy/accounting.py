"""Privacy accounting: from a mechanism's description to rho and epsilon.

Without amplification, a mechanism of correlated noise is one Gaussian
mechanism of the noise multiplier over the sensitivity. Two data sets are
neighbours if one client's updates are all replaced by zeros ("zero-out"); with
Poisson sampling, if they differ by one client ("add or remove one").
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Optional

import dp_accounting
from dp_accounting import pld, rdp
from dp_accounting.pld import common as pld_common
from dp_accounting.pld import privacy_loss_mechanism

from si_federated.privacy import (
  participation,
  schedules,
  sensitivity,
  strategies,
)

METHODS = ('exact', 'rdp')
_KINDS = (
  'identity',
  'tree',
  'banded_toeplitz',
  'toeplitz',
  'banded',
  'blt',
  'dense',
)
# RDP orders: fine near 1 for large epsilon, far out for small ones.
_ORDERS = (
  [1 + x / 10 for x in range(1, 100)]
  + list(range(11, 64))
  + [80, 128, 256, 512, 1024]
)


@dataclasses.dataclass(frozen=True)
class PrivacyRecord:
  """All that the privacy of a mechanism depends on.

  Attributes:
    strategy: The correlation of noise; `strategies.identity` for DP-FedAvg.
    noise_multiplier: The standard deviation of the noise z relative to the
      clip norm, on the *sum* of clipped updates.
    contract: The participation that the schedule promises.
    amplification: Of a schedule that earns it; None if none.
    releases: How many sums a round releases, each clipped and noised like this
      by itself: 2 of MimeLite, an update and a gradient.
  """

  strategy: strategies.Strategy
  noise_multiplier: float
  contract: participation.Participation
  amplification: Optional[schedules.Amplification] = None
  releases: int = 1

  def __post_init__(self):
    if self.releases < 1:
      raise ValueError(f'releases is {self.releases}; a round has at least 1.')
    kind = getattr(self.strategy, 'kind', None)
    if kind not in _KINDS:
      raise ValueError(
        f'Accounting of a strategy of kind {kind!r} is unknown; known are '
        f'{", ".join(_KINDS)}.'
      )
    if not (
      self.noise_multiplier >= 0 and math.isfinite(self.noise_multiplier)
    ):
      raise ValueError(
        f'noise_multiplier is {self.noise_multiplier}; it is finite and not '
        'negative.'
      )
    if self.contract.rounds > self.strategy.rounds:
      raise ValueError(
        f'A strategy for {self.strategy.rounds} rounds can not serve '
        f'{self.contract.rounds} rounds.'
      )
    amplification = self.amplification
    if amplification is None:
      return
    if amplification.kind == 'poisson' and kind != 'identity':
      raise ValueError(
        f'Poisson sampling does not amplify the correlated noise of {kind}; '
        'use the gaussian mechanism, or cyclic Poisson sampling with a banded '
        'strategy.'
      )
    if kind == 'tree' or self.strategy.bands > amplification.groups:
      raise ValueError(
        f'A {kind} strategy of {self.strategy.bands} bands is not amplified by '
        f'{amplification.kind} sampling in {amplification.groups} groups; it '
        'takes at least as many groups as bands.'
      )

  def is_variant_of(self, other: Any) -> bool:
    """Tells whether only noise multiplier and amplification may differ.

    Args:
      other: Another record.
    """
    return (
      isinstance(other, PrivacyRecord)
      and other.strategy is self.strategy
      and other.contract == self.contract
    )

  @functools.cached_property
  def sensitivity(self) -> sensitivity.Sensitivity:
    """Of all releases under the contract, relative to the clip norm."""
    one = self.strategy.sensitivity(self.contract)
    # Side by side, releases are one vector: their squares add up.
    return dataclasses.replace(one, value=one.value * self.releases**0.5)

  @functools.cached_property
  def sensitivity_once(self) -> float:
    """The sensitivity to a client that takes part a single time."""
    rounds = self.contract.rounds
    once = participation.Participation(rounds, 1, rounds)
    return self.strategy.sensitivity(once).value * self.releases**0.5

  @property
  def neighbouring_relation(self) -> str:
    """Which data sets the guarantee makes hard to tell apart."""
    return 'zero-out' if self.amplification is None else 'add-or-remove-one'

  def event(self) -> dp_accounting.DpEvent:
    """Returns the mechanism as dp_accounting has it."""
    if not self.noise_multiplier:
      return dp_accounting.NonPrivateDpEvent()
    if self.amplification is None:
      return dp_accounting.GaussianDpEvent(
        self.noise_multiplier / self.sensitivity.value
      )
    # Theorem 4 of Choquette-Choo et al. 2023: as DP-SGD of one step for each
    # turn of a group, with the sensitivity of one participation.
    noise = self.noise_multiplier / self.sensitivity_once
    turns = -(-self.contract.rounds // self.amplification.groups)
    return dp_accounting.SelfComposedDpEvent(
      dp_accounting.PoissonSampledDpEvent(
        self.amplification.probability, dp_accounting.GaussianDpEvent(noise)
      ),
      turns,
    )

  @property
  def rho(self) -> Optional[float]:
    """The zCDP of the mechanism; None with amplification, which has none."""
    if self.amplification is not None:
      return None
    if not self.noise_multiplier:
      return math.inf
    return (self.sensitivity.value / self.noise_multiplier) ** 2 / 2

  def epsilon(self, delta: float, *, method: str = 'exact') -> float:
    """Returns epsilon at delta.

    Args:
      delta: In (0, 1).
      method: `'exact'`: the privacy profile of a Gaussian, or with
        amplification dp_accounting's privacy loss distributions; `'rdp'`: from
        Renyi differential privacy, a little larger.

    Raises:
      ValueError: If delta or the method is unknown.
    """
    check_delta(delta)
    if method not in METHODS:
      raise ValueError(f'method is {method!r}; known are exact and rdp.')
    if not self.noise_multiplier:
      return math.inf
    if method == 'exact' and self.amplification is None:
      return gaussian_epsilon(
        self.noise_multiplier / self.sensitivity.value, delta
      )
    accountant = _accountant(method)
    accountant.compose(self.event())
    return float(accountant.get_epsilon(delta))

  def after(self, observed: participation.Participation) -> PrivacyRecord:
    """Returns the record of a run so far.

    Args:
      observed: What a `ParticipationRecorder` has observed. Its guarantee
        holds for the clients' participation as it was, which does not depend
        on their data. With amplification only its rounds count.
    """
    if self.amplification is not None:
      observed = dataclasses.replace(self.contract, rounds=observed.rounds)
    return dataclasses.replace(self, contract=observed)

  def summary(self, delta: float, *, method: str = 'exact') -> dict[str, Any]:
    """Returns the guarantee as plain values, fit for JSON.

    Args:
      delta: In (0, 1).
      method: As for `epsilon`.
    """
    amplification = self.amplification
    return {
      'kind': self.strategy.kind,
      'noise_multiplier': self.noise_multiplier,
      'sensitivity': self.sensitivity.value,
      'sensitivity_is_exact': self.sensitivity.is_exact,
      'sensitivity_method': self.sensitivity.method,
      'releases_per_round': self.releases,
      'rho': self.rho,
      'epsilon': self.epsilon(delta, method=method),
      'delta': delta,
      'neighbouring_relation': self.neighbouring_relation,
      'contract': dataclasses.asdict(self.contract),
      'amplification': amplification and dataclasses.asdict(amplification),
    }


def gaussian_epsilon(noise: float, delta: float) -> float:
  """Returns epsilon of a Gaussian mechanism of sensitivity 1, exactly.

  Args:
    noise: The standard deviation over the sensitivity.
    delta: In (0, 1).
  """
  check_delta(delta)
  if noise <= 0:
    return math.inf
  loss = privacy_loss_mechanism.GaussianPrivacyLoss(noise)
  if loss.get_delta_for_epsilon(0.0) <= delta:
    return 0.0
  # Epsilon from rho is an upper bound, so the root lies below.
  rho = 0.5 / noise**2
  most = rho + 2 * math.sqrt(rho * math.log(1 / delta))
  return float(
    pld_common.inverse_monotone_function(
      loss.get_delta_for_epsilon,
      delta,
      pld_common.BinarySearchParameters(0.0, most, tolerance=1e-9 * most),
    )
  )


def calibrate(record: Any, *, target_epsilon: float, delta: float) -> Any:
  """Returns the record with the least noise that keeps to an epsilon.

  Args:
    record: The mechanism, a `PrivacyRecord` or one with a `calibrate` of its
      own; its noise multiplier does not count.
    target_epsilon: The epsilon to keep to; infinite for no noise.
    delta: In (0, 1).

  Returns:
    The record with its noise multiplier replaced.

  Raises:
    ValueError: If epsilon or delta is out of range, or no noise is enough.
  """
  check_delta(delta)
  if not target_epsilon > 0:
    raise ValueError(f'target_epsilon is {target_epsilon}; it is positive.')
  if math.isinf(target_epsilon):
    return dataclasses.replace(record, noise_multiplier=0.0)
  if not isinstance(record, PrivacyRecord):
    return record.calibrate(target_epsilon=target_epsilon, delta=delta)
  if record.amplification is None:
    noise = _gaussian_noise(target_epsilon, delta) * record.sensitivity.value
    return dataclasses.replace(record, noise_multiplier=noise)

  def search(method, bracket, tolerance):
    return dp_accounting.calibrate_dp_mechanism(
      lambda: _accountant(method),
      lambda z: dataclasses.replace(record, noise_multiplier=z).event(),
      target_epsilon,
      delta,
      bracket,
      tol=tolerance,
    )

  # RDP is fast and its noise a little too much: it brackets what privacy loss
  # distributions, which are slow for little noise, then find.
  guess = record.sensitivity_once
  try:
    most = search(
      'rdp',
      dp_accounting.LowerEndpointAndGuess(0.02 * guess, guess),
      1e-3 * guess,
    )
    noise = search(
      'exact',
      dp_accounting.ExplicitBracketInterval(0.6 * most, 1.001 * most),
      1e-4 * most,
    )
  except (
    dp_accounting.mechanism_calibration.NoBracketIntervalFoundError,
    ValueError,
  ) as e:
    raise ValueError(
      f'No noise multiplier was found for epsilon {target_epsilon} at delta '
      f'{delta}; ask for an epsilon that is neither tiny nor huge.'
    ) from e
  return dataclasses.replace(record, noise_multiplier=float(noise))


def _gaussian_noise(epsilon, delta):
  """Returns the noise of a Gaussian of sensitivity 1 by bisection."""
  low, high = 1e-6, 1.0
  while gaussian_epsilon(high, delta) > epsilon:
    low, high = high, high * 2
  while high - low > 1e-10 * high:
    middle = (low + high) / 2
    if gaussian_epsilon(middle, delta) > epsilon:
      low = middle
    else:
      high = middle
  return high


def _accountant(method):
  # Both Gaussian and Poisson-sampled events are the same here for clients
  # zeroed out and removed.
  if method == 'rdp':
    return rdp.RdpAccountant(_ORDERS)
  return pld.PLDAccountant()


def check_delta(delta: float) -> None:
  """Raises unless delta is one.

  Args:
    delta: In (0, 1).

  Raises:
    ValueError: If it is not.
  """
  if not 0 < delta < 1:
    raise ValueError(f'delta is {delta}; it lies between 0 and 1.')
