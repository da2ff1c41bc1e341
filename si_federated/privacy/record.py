"""The description of a private mechanism, and its interface for accounting."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Optional, TypeVar

import dp_accounting
import numpy as np

from si_federated.privacy import participation, sensitivity
from si_federated.privacy.amplification import Amplification

METHODS = ('exact', 'rdp')
# Summaries report epsilon at these deltas, besides the requested one...
_DELTAS = (1e-4, 1e-6, 1e-8, 1e-10)
# ...and the best attack's true positives at these rates of false positives.
_FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)
AnyRecord = TypeVar('AnyRecord', bound='Record')


class Record(abc.ABC):
  """The description of a private mechanism, as a frozen dataclass.

  Attributes:
    noise_multiplier: The standard deviation of the noise on the *sum* of
      clipped updates, relative to the clip norm.
    contract: The participation that the schedule promises.
    amplification: The amplification by the schedule's sampling, if any.
    kind: The name of the mechanism.
    sensitivity: The sensitivity of all releases under the contract, relative to
      the clip norm.
    rho: The zCDP of the mechanism; None if none is known.
  """

  noise_multiplier: float
  contract: participation.Participation
  amplification: Optional[Amplification]
  kind: str
  sensitivity: sensitivity.Sensitivity
  rho: Optional[float]

  @property
  def is_amplified(self) -> bool:
    """Whether epsilon relies on secret sampling."""
    return self.amplification is not None

  def epsilon_before(self, delta: float) -> float:
    """Returns the epsilon at delta that is spent before the first round."""
    del delta
    return 0.0

  @property
  def confidence(self) -> Optional[float]:
    """The confidence level of sampled figures; None if they are exact."""
    return None

  @property
  def neighbouring_relation(self) -> str:
    """The pairs of data sets that the guarantee makes hard to distinguish."""
    return 'zero-out' if self.amplification is None else 'add-or-remove-one'

  def epsilon(self, delta: float, *, method: str = 'exact') -> float:
    """Returns epsilon at delta.

    Args:
      delta: In (0, 1).
      method: `'exact'`: the tightest known, from the privacy profile of a
        Gaussian or, with amplification, dp_accounting's privacy loss
        distributions or Monte Carlo; `'rdp'`: fast, from Renyi differential
        privacy, a little larger.

    Raises:
      ValueError: If delta or the method is invalid.
    """
    check_delta(delta)
    if method not in METHODS:
      raise ValueError(f'method is {method!r}; known are exact and rdp.')
    if not self.noise_multiplier:
      return math.inf
    return self._epsilon(delta, method)

  def summary(self, delta: float, *, method: str = 'exact') -> dict[str, Any]:
    """Returns the guarantee as plain values, fit for JSON.

    Args:
      delta: In (0, 1).
      method: As for `epsilon`.
    """
    plain = self.without_amplification()
    profile = self.profile(delta, method=method)
    return {
      'kind': self.kind,
      'noise_multiplier': self.noise_multiplier,
      'sensitivity': self.sensitivity.value,
      'sensitivity_is_exact': self.sensitivity.is_exact,
      'sensitivity_method': self.sensitivity.method,
      'rho': self.rho,
      'epsilon': self.epsilon(delta, method=method),
      'epsilon_without_amplification': plain.epsilon(delta, method=method),
      'delta': delta,
      'profile': profile,
      'profile_without_amplification': profile
      if plain is self
      else plain.profile(delta, method=method),
      'neighbouring_relation': self.neighbouring_relation,
      'contract': dataclasses.asdict(self.contract),
      'amplification': self.amplification and self.amplification.facts(),
      **self._details(),
    }

  def profile(self, delta: float, *, method: str = 'exact') -> dict[str, Any]:
    """Returns other forms of the guarantee, as plain values fit for JSON.

    Args:
      delta: In (0, 1); epsilon is reported at some others as well.
      method: As for `epsilon`.

    Returns:
      `rho`, the `mu` of Gaussian differential privacy, epsilon by delta, and
      the true positive rate of the best attack by its false positive rate.
    """
    rates = self.true_positive_rates(_FALSE_POSITIVE_RATES, method=method)
    return {
      'rho': self.rho,
      'mu': self.mu,
      'epsilons': [
        {'delta': one, 'epsilon': self.epsilon(one, method=method)}
        for one in sorted({delta, *_DELTAS}, reverse=True)
      ],
      'best_attack': [
        {'false_positive_rate': false, 'true_positive_rate': float(true)}
        for false, true in zip(_FALSE_POSITIVE_RATES, rates)
      ],
    }

  @property
  def mu(self) -> Optional[float]:
    """The mu of Gaussian differential privacy; None if it has none."""
    return None

  def true_positive_rates(
    self, false_positive_rates: Sequence[float], *, method: str = 'exact'
  ) -> np.ndarray:
    """Returns how often the best attack can detect a client.

    An attack sees all releases and guesses whether a client's updates are in
    them. For any test between two (epsilon, delta)-indistinguishable
    distributions, two lines bound the true positive rate at a given false
    positive rate (Kairouz, Oh and Viswanath 2015, arXiv 1311.0776, theorem
    2.1). The minimum over deltas is a bound, too, and tight up to the steps
    between them.

    Args:
      false_positive_rates: In (0, 1).
      method: As for `epsilon`.

    Returns:
      Upper bounds on the true positive rates, of the same length.

    Raises:
      ValueError: If a rate or the method is invalid.
    """
    rates = np.asarray(false_positive_rates, np.float64)
    if not ((rates > 0) & (rates < 1)).all():
      raise ValueError(
        f'False positive rates are {false_positive_rates}; they must be '
        'in (0, 1).'
      )
    if not self.noise_multiplier:
      return np.ones(len(rates))
    return self._true_positive_rates(rates, method)

  def _true_positive_rates(self, rates, method):
    epsilons, deltas = (part[:, None] for part in self._curve(method))
    with np.errstate(over='ignore'):
      growth = np.exp(epsilons)
    first = growth * rates + deltas
    second = 1 - (1 - deltas - rates) / growth
    # The second line is valid only up to its root.
    second = np.where(deltas + rates < 1, second, 1.0)
    return np.minimum(first, second).min(axis=0, initial=1.0)

  def _curve(self, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns pairs of epsilon and delta, in fine steps."""
    # False positive rates are far above 1e-4.
    deltas = np.concatenate(
      [np.logspace(-12, -4, 17), np.logspace(-4, 0, 161)[1:-1]]
    )
    return np.array([self.epsilon(d, method=method) for d in deltas]), deltas

  def for_dimension(self, dimension: int) -> Record:
    """Returns the record for updates of a known size.

    Args:
      dimension: The number of weights in an update.
    """
    del dimension
    return self

  def without_amplification(self: AnyRecord) -> AnyRecord:
    """Returns the record against those who know who takes part when."""
    if self.amplification is None:
      return self
    record: Any = self
    return dataclasses.replace(record, amplification=None)

  def with_noise(self: AnyRecord, noise_multiplier: float) -> AnyRecord:
    """Returns the record with another noise multiplier."""
    record: Any = self
    return dataclasses.replace(record, noise_multiplier=noise_multiplier)

  @abc.abstractmethod
  def is_variant_of(self, other: Record) -> bool:
    """Returns whether at most the noise multiplier and amplification differ."""

  @abc.abstractmethod
  def after(self, observed: participation.Participation) -> Record:
    """Returns the record of a run so far.

    Args:
      observed: The participation that a `ParticipationRecorder` has observed.
        The guarantee is for this participation, which does not depend on the
        clients' data.
    """

  @abc.abstractmethod
  def event(self) -> dp_accounting.DpEvent:
    """Returns the mechanism as an event of dp_accounting."""

  @abc.abstractmethod
  def calibrated(
    self: AnyRecord, target_epsilon: float, delta: float
  ) -> AnyRecord:
    """Returns the record with the least noise; use `calibrate`."""

  @abc.abstractmethod
  def _epsilon(self, delta: float, method: str) -> float:
    """Returns the epsilon of a mechanism with noise."""

  @abc.abstractmethod
  def _details(self) -> dict[str, Any]:
    """Returns further entries of the summary."""


def check_delta(delta: float) -> None:
  """Raises ValueError unless delta lies in (0, 1)."""
  if not 0 < delta < 1:
    raise ValueError(f'delta is {delta}; it must be in (0, 1).')


def least_enough(
  enough: Callable[[float], bool],
  *,
  low: float = 0.0,
  high: float = 1.0,
  limit: float = math.inf,
  tolerance: float,
) -> float:
  """Returns the least number that suffices, by doubling and bisection.

  Args:
    enough: Returns whether a number suffices; then all larger ones must, too.
    low: A number that does not suffice.
    high: The first guess.
    limit: The largest number to try.
    tolerance: The relative error of the result.

  Returns:
    A number that suffices; infinite if no number up to the limit does.
  """
  while not enough(high):
    low, high = high, 2 * high
    if high > limit:
      return math.inf
  while high - low > tolerance * high:
    middle = (low + high) / 2
    low, high = (low, middle) if enough(middle) else (middle, high)
  return high
