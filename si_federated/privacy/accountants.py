"""The accountants of dp_accounting, and the event of a round of sampling.

They also support Poisson samples that are truncated to a maximum size.
"""

from __future__ import annotations

import functools
from typing import Union

import dp_accounting
import numpy as np
from dp_accounting import pld, rdp
from dp_accounting.pld import privacy_loss_distribution

from si_federated.privacy import amplification, truncated_poisson

# Renyi orders: fine near 1 for large epsilon, far out for small ones.
_ORDERS = (
  [1 + x / 10 for x in range(1, 100)]
  + list(range(11, 64))
  + [80, 128, 256, 512, 1024]
)


def sampled_gaussian(
  sampling: amplification.Amplification, noise_multiplier: float
) -> dp_accounting.DpEvent:
  """Returns the event of a round of Poisson sampling.

  Args:
    sampling: Poisson sampling of all clients, or of those of a group.
    noise_multiplier: The standard deviation of the noise over the largest norm
      of one client's part, positive.
  """
  plain = dp_accounting.PoissonSampledDpEvent(
    sampling.probability, dp_accounting.GaussianDpEvent(noise_multiplier)
  )
  if sampling.max_cohort_size is None or sampling.num_clients is None:
    return plain
  cut = truncated_poisson.TruncatedPoissonDpEvent(
    sampling.num_clients,
    sampling.probability,
    sampling.max_cohort_size,
    noise_multiplier,
  )
  return cut if cut.cut_probability else plain


class PldAccountant(pld.PLDAccountant):
  """dp_accounting's accountant, which also takes `TruncatedPoissonDpEvent`."""

  _pld: privacy_loss_distribution.PrivacyLossDistribution

  def _maybe_compose(self, event, count, do_compose):
    if not isinstance(event, truncated_poisson.TruncatedPoissonDpEvent):
      return super()._maybe_compose(event, count, do_compose)
    if do_compose:
      once = event.loss_distribution(self._value_discretization_interval)
      self._pld = self._pld.compose(once.self_compose(count))
    return None


# A run asks for the same event after each round.
@functools.lru_cache(maxsize=8)
def _renyi(
  event: truncated_poisson.TruncatedPoissonDpEvent, orders: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
  return event.renyi(np.array(orders))


class RdpAccountant(rdp.RdpAccountant):
  """dp_accounting's accountant, which also takes `TruncatedPoissonDpEvent`.

  Rare exchanges have large Renyi divergences. But unless a cohort is truncated,
  with a probability that does not depend on the client, this is plain Poisson
  sampling: that probability can be charged to delta instead.
  """

  _rdp: np.ndarray
  _more_by_cuts: Union[float, np.ndarray] = 0.0
  _chance_of_cuts = 0.0

  def _maybe_compose(self, event, count, do_compose):
    if not isinstance(event, truncated_poisson.TruncatedPoissonDpEvent):
      return super()._maybe_compose(event, count, do_compose)
    if do_compose:
      plain, cut = _renyi(event, tuple(self._orders))
      more = np.subtract(cut, plain, where=np.isfinite(cut), out=0 * plain)
      self._rdp = self._rdp + count * cut
      self._more_by_cuts = self._more_by_cuts + count * more
      self._chance_of_cuts += count * event.cut_probability
    return None

  def get_epsilon(self, target_delta: float) -> float:
    """Returns the epsilon at delta of the events so far."""
    found = super().get_epsilon(target_delta)
    rest = target_delta - self._chance_of_cuts
    if not self._chance_of_cuts or rest <= 0:
      return found
    uncut = self._rdp - self._more_by_cuts
    return min(found, rdp.compute_epsilon(self._orders, uncut, rest)[0])


def accountant(method: str) -> dp_accounting.PrivacyAccountant:
  """Returns an accountant without events.

  Gaussian and Poisson-sampled events cost the same whether a client is zeroed
  out or removed.

  Args:
    method: `'exact'`, by privacy loss distributions, or `'rdp'`.
  """
  return RdpAccountant(_ORDERS) if method == 'rdp' else PldAccountant()
