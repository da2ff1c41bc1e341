"""Privacy accounting: from a mechanism's description to rho and epsilon.

Without amplification, a correlated-noise mechanism is a single Gaussian
mechanism, whose noise is the noise multiplier over the sensitivity. Two data
sets are neighbours if one client's updates are all replaced by zeros
("zero-out"); with Poisson sampling, if they differ by one client ("add or
remove one"). For balls in bins and b-min-separation sampling, both relations
give the same epsilon, which is computed by Monte Carlo.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Optional

import dp_accounting
import numpy as np

from si_federated.privacy import (
  accountants,
  calibration,
  gaussian_mixture,
  monte_carlo,
  participation,
  schedules,
  sensitivity,
  separated_mixture,
  strategies,
)
from si_federated.privacy import record as record_lib
from si_federated.privacy.amplification import BY_MONTE_CARLO
from si_federated.privacy.gaussian import (
  gaussian_epsilon,
  gaussian_true_positive_rates,
)

_KINDS = (
  'identity',
  'tree',
  'banded_toeplitz',
  'toeplitz',
  'banded',
  'banded_inverse',
  'blt',
  'dense',
)


@dataclasses.dataclass(frozen=True)
class PrivacyRecord(record_lib.Record):
  """Everything that the privacy of a Gaussian-noise mechanism depends on.

  Attributes:
    strategy: The correlation of the noise; `strategies.identity` for DP-FedAvg.
    noise_multiplier: The standard deviation of z relative to the clip norm, on
      the *sum* of clipped updates.
    contract: The participation that the schedule promises.
    amplification: The amplification by the schedule's sampling, if any.
    releases: The number of sums that a round releases, each clipped and noised
      separately: 2 for MimeLite, an update and a gradient.
    earlier: The mechanisms that used the same clients' data before, such as a
      run to choose the clip norm; their cost is included.
  """

  strategy: strategies.Strategy
  noise_multiplier: float
  contract: participation.Participation
  amplification: Optional[schedules.Amplification] = None
  releases: int = 1
  earlier: tuple[PrivacyRecord, ...] = ()

  def __post_init__(self):
    if self.releases < 1:
      raise ValueError(f'releases is {self.releases}; it must be at least 1.')
    if self.kind not in _KINDS:
      raise ValueError(
        f'Strategies of kind {self.kind!r} cannot be accounted for; known are '
        f'{", ".join(_KINDS)}.'
      )
    if not 0 <= self.noise_multiplier < math.inf:
      raise ValueError(
        f'noise_multiplier is {self.noise_multiplier}; it must be at least 0 '
        'and finite.'
      )
    strategies.check_rounds(self.strategy.rounds, self.contract)
    for record in self.earlier:
      if not record.noise_multiplier or record.is_by_monte_carlo:
        raise ValueError(
          'Composition with an earlier mechanism needs noise in it, and no '
          f'amplification by {" or ".join(BY_MONTE_CARLO)}; give its record '
          'without that.'
        )
    if self.amplification is None:
      return
    self.amplification.check_strategy(self.strategy)
    if self.is_by_monte_carlo and any(
      record.is_amplified for record in self.earlier
    ):
      raise ValueError(
        f'{self.amplification.kind} cannot be composed with earlier sampling; '
        'leave out the amplification of one of them.'
      )

  @property
  def kind(self) -> str:  # type: ignore[override]
    """The kind of the strategy."""
    return getattr(self.strategy, 'kind', 'unknown')

  def is_variant_of(self, other):
    """Returns whether only the noise multiplier and amplification differ."""
    return (
      isinstance(other, PrivacyRecord)
      and other.strategy is self.strategy
      and other.contract == self.contract
    )

  @functools.cached_property
  def sensitivity(self) -> sensitivity.Sensitivity:  # type: ignore[override]
    """That of all releases under the contract, relative to the clip norm."""
    one = self.strategy.sensitivity(self.contract)
    # A round's releases form one vector, so their squared sensitivities add up.
    return dataclasses.replace(one, value=one.value * self.releases**0.5)

  @functools.cached_property
  def sensitivity_once(self) -> float:
    """The sensitivity to a client that takes part only once."""
    rounds = self.contract.rounds
    once = participation.Participation(rounds, 1, rounds)
    return self.strategy.sensitivity(once).value * self.releases**0.5

  @property
  def is_amplified(self) -> bool:
    """Whether epsilon relies on secret sampling, here or earlier."""
    return self.amplification is not None or any(
      record.is_amplified for record in self.earlier
    )

  @property
  def neighbouring_relation(self):
    """Which data sets the guarantee makes hard to distinguish."""
    # Zeroing a client out costs the same under these samplings.
    relations = {record.neighbouring_relation for record in self.earlier}
    relations.add(super().neighbouring_relation)
    return relations.pop() if len(relations) == 1 else 'zero-out'

  def without_amplification(self):
    """Returns the record against those who know who takes part when."""
    if not self.is_amplified:
      return self
    return dataclasses.replace(
      self,
      amplification=None,
      earlier=tuple(one.without_amplification() for one in self.earlier),
    )

  def epsilon_before(self, delta):
    """Returns the epsilon at delta of all earlier mechanisms together."""
    if not self.earlier:
      return 0.0
    first, *others = self.earlier
    return dataclasses.replace(first, earlier=tuple(others)).epsilon(delta)

  @property
  def is_by_monte_carlo(self) -> bool:
    """Whether epsilon is computed by Monte Carlo."""
    amplification = self.amplification
    return amplification is not None and amplification.kind in BY_MONTE_CARLO

  @property
  def confidence(self):
    """The confidence level of sampled figures; None if they are exact."""
    return monte_carlo.CONFIDENCE if self.is_by_monte_carlo else None

  def mixture(self) -> monte_carlo.Mixture:
    """Returns the release under random participation, a mixture of Gaussians.

    There is one for each choice of rounds. Its mean is the sum of the columns
    of C for these rounds (Choquette-Choo et al. 2024).

    Raises:
      ValueError: If the amplification is another one, or there is no noise.
    """
    amplification = self.amplification
    if amplification is None or not self.is_by_monte_carlo:
      raise ValueError(
        f'Only {" and ".join(BY_MONTE_CARLO)} make a mixture; choose such a '
        'participation.'
      )
    if not self.noise_multiplier:
      raise ValueError('There is no noise; give a positive noise_multiplier.')
    rounds = self.contract.rounds
    matrix = self.strategy.matrix()[:rounds, :rounds]
    scale = self.releases**0.5 / self.noise_multiplier
    before = sum((record.mu or 0.0) ** 2 for record in self.earlier)
    if amplification.kind == 'b_min_sep':
      return separated_mixture.SeparatedMixture(
        scale * matrix, amplification, before
      )
    groups = min(amplification.groups, rounds)
    weights = np.full(groups, amplification.probability)
    means = [
      matrix[:, group :: amplification.groups].sum(axis=1)
      for group in range(groups)
    ]
    scaled = scale * np.stack(means)
    gram = scaled @ scaled.T
    if before:
      # The earlier release adds the same mean to all components, also to the
      # one without a group.
      if (rest := 1 - weights.sum()) > 1e-9:
        gram = np.pad(gram, (0, 1))
        weights = np.append(weights, rest)
      gram = gram + before
    return gaussian_mixture.GaussianMixture(gram, weights)

  @functools.cached_property
  def _sampled(self) -> monte_carlo.Sampled:
    return monte_carlo.Sampled(self.mixture())

  def event(self):
    """Returns the mechanism as an event of dp_accounting."""
    if not self.noise_multiplier:
      return dp_accounting.NonPrivateDpEvent()
    if self.earlier:
      own = dataclasses.replace(self, earlier=())
      return dp_accounting.ComposedDpEvent(
        [record.event() for record in (*self.earlier, own)]
      )
    if self.is_by_monte_carlo:
      return dp_accounting.UnsupportedDpEvent()
    if self.amplification is None:
      return dp_accounting.GaussianDpEvent(
        self.noise_multiplier / self.sensitivity.value
      )
    # Theorem 4 of Choquette-Choo et al. 2023: like DP-SGD with one step for
    # each turn of a group, and the sensitivity of one participation.
    noise = self.noise_multiplier / self.sensitivity_once
    turns = -(-self.contract.rounds // self.amplification.groups)
    return dp_accounting.SelfComposedDpEvent(
      accountants.sampled_gaussian(self.amplification, noise), turns
    )

  @property
  def rho(self) -> Optional[float]:  # type: ignore[override]
    """The zCDP of the mechanism; None with amplification."""
    if self.is_amplified:
      return None
    if not self.noise_multiplier:
      return math.inf
    own = (self.sensitivity.value / self.noise_multiplier) ** 2 / 2
    return own + sum(record.rho or 0.0 for record in self.earlier)

  @property
  def mu(self) -> Optional[float]:
    """The mu of Gaussian differential privacy; None with amplification."""
    if self.is_amplified:
      return None
    if not self.noise_multiplier:
      return math.inf
    own = self.sensitivity.value / self.noise_multiplier
    return math.hypot(own, *(record.mu or 0.0 for record in self.earlier))

  def _true_positive_rates(self, rates, method):
    if method == 'exact' and self.mu is not None:
      return gaussian_true_positive_rates(self.mu, rates)
    found = super()._true_positive_rates(rates, method)
    if self.is_amplified:
      # Knowing who takes part when only helps an attack.
      plain = self.without_amplification().mu
      assert plain is not None
      found = np.minimum(found, gaussian_true_positive_rates(plain, rates))
    return found

  def _curve(self, method):
    if method != 'exact' or not self.is_amplified:
      return super()._curve(method)
    if self.is_by_monte_carlo:
      epsilons = np.linspace(0, self._epsilon(1e-4, 'rdp'), 201)
      return epsilons, self._sampled.deltas(epsilons)
    # The deltas of many epsilons take no longer than that of one.
    epsilons = np.linspace(0, self.epsilon(1e-12), 2001)
    return epsilons, self._accountants[method].get_delta(epsilons)

  @functools.cached_property
  def _accountants(self) -> dict[str, dp_accounting.PrivacyAccountant]:
    """The accountants used for this mechanism so far, by method."""
    return {}

  def _epsilon(self, delta, method):
    if method == 'exact' and not self.is_amplified:
      noise = self.noise_multiplier / self.sensitivity.value
      if self.earlier:
        assert self.mu is not None
        noise = 1 / self.mu
      return gaussian_epsilon(noise, delta)
    if self.is_by_monte_carlo:
      # The epsilon of a known group: never less, and no better Renyi bound is
      # known.
      known = gaussian_epsilon(self._sampled.mixture.most**-0.5, delta)
      return (
        known if method == 'rdp' else min(known, self._sampled.epsilon(delta))
      )
    if method not in self._accountants:
      # Composing takes seconds, while asking for another delta does not.
      accountant = accountants.accountant(method)
      self._accountants[method] = accountant.compose(self.event())
    return float(self._accountants[method].get_epsilon(delta))

  def after(self, observed):
    """Returns the record of a run so far; see `Record.after`.

    With amplification, only the number of observed rounds matters.
    """
    if self.amplification is not None:
      observed = dataclasses.replace(self.contract, rounds=observed.rounds)
    return dataclasses.replace(self, contract=observed)

  def calibrated(self, target_epsilon, delta):
    """Returns the record with the least noise; use `calibrate`."""
    return calibration.calibrated(self, target_epsilon, delta)

  def _details(self):
    details: dict[str, Any] = {'releases_per_round': self.releases}
    if self.earlier:
      details['earlier'] = [
        {
          'kind': record.kind,
          'noise_multiplier': record.noise_multiplier,
          'sensitivity': record.sensitivity.value,
          'rho': record.rho,
        }
        for record in self.earlier
      ]
    if self.confidence is not None:
      details['epsilon_confidence'] = self.confidence
    return details


def calibrate(
  record: record_lib.AnyRecord, *, target_epsilon: float, delta: float
) -> record_lib.AnyRecord:
  """Returns the record with the least noise that achieves an epsilon.

  Args:
    record: The mechanism; its noise multiplier does not matter.
    target_epsilon: The largest acceptable epsilon; infinite for no noise.
    delta: In (0, 1).

  Returns:
    The record with its noise multiplier replaced.

  Raises:
    ValueError: If epsilon or delta is out of range, or no noise suffices.
  """
  record_lib.check_delta(delta)
  if not target_epsilon > 0:
    raise ValueError(
      f'target_epsilon is {target_epsilon}; it must be positive.'
    )
  if math.isinf(target_epsilon):
    return record.with_noise(0.0)
  return record.calibrated(target_epsilon, delta)
