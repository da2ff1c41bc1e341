"""The ledger of a private run: who took part, and the epsilon so far."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any, Optional

import numpy as np

from si_federated.privacy import participation
from si_federated.privacy import record as record_lib

_NOT_COVERED = (
  'the choice of hyper-parameters, if other runs on the same data led to it',
  'other statistics of the data made before training',
  'the times and sizes of the files written',
)


def sentence(summary: Mapping[str, Any]) -> str:
  """Returns the guarantee of a private run in a sentence.

  Args:
    summary: From `Ledger.summary`, or read from privacy.json.
  """
  simulated = ' (simulated)' if summary['simulated'] else ''
  return (
    f'Privacy{simulated}: epsilon {summary["epsilon"]:.3f} at delta '
    f'{summary["delta"]:.3g}; see privacy.json for what it covers.'
  )


class Ledger:
  """Enforces a run's contract in each round, and reports its epsilon."""

  def __init__(
    self,
    *,
    mechanism: str,
    delta: float,
    contract: Optional[participation.Participation] = None,
    record: Optional[record_lib.Record] = None,
    simulated_because: Iterable[str] = (),
    facts: Optional[dict[str, Any]] = None,
    trust_model: str = '',
    update_noise: Optional[float] = None,
    released: Iterable[str] = (),
    unnoised: Iterable[str] = (),
    not_covered: Iterable[str] = (),
  ):
    """Initializes the ledger of a new run.

    Args:
      mechanism: The aggregator's name and options.
      delta: The delta at which epsilon is reported, in (0, 1).
      contract: The contract to enforce; without one, clients are only recorded.
      record: The description of the mechanism; None for an aggregator that is
        not private, whose epsilon is infinite.
      simulated_because: Clauses that say why the guarantee is not that of this
        run; empty if it is.
      facts: Further plain values that determine privacy, such as clip norm,
        schedule and seeds. A run only resumes from a ledger with equal facts.
      trust_model: A clause that says whom clients must trust.
      update_noise: The noise multiplier of the updates themselves, if it
        differs from the record's because other sums are released as well.
      released: Phrases that name what the guarantee covers.
      unnoised: The names of outputs that are written without noise.
      not_covered: Phrases that name further limits of the guarantee.
    """
    self._mechanism = mechanism
    self._delta = delta
    self._contract = contract
    self._record = record
    self._simulated_because = list(simulated_because)
    self._facts = dict(facts or {})
    self._trust_model = trust_model
    self._update_noise = update_noise
    self._released = list(released)
    self._unnoised = list(unnoised)
    self._not_covered = [*not_covered, *_NOT_COVERED]
    self._recorder = participation.ParticipationRecorder(contract)
    self._epsilon_of = functools.lru_cache(maxsize=1)(self._epsilon_after)

  @property
  def facts(self) -> dict[str, Any]:
    """The values that determine privacy, equal in runs that share a state."""
    noise = self._record and self._record.noise_multiplier
    return {
      'mechanism': self._mechanism,
      'noise_multiplier': noise,
      'contract': self._contract and dataclasses.asdict(self._contract),
      **self._facts,
    }

  def check(self, round_num: int, clients: Iterable[Any]) -> None:
    """Raises if a cohort, before it trains, breaks the contract.

    Args:
      round_num: The round, from 1 on.
      clients: The ids of its clients.

    Raises:
      ValueError: If it does.
    """
    self._recorder.check(round_num, clients)

  def record(self, round_num: int, clients: Iterable[Any]) -> None:
    """Records the cohort of a completed round.

    Args:
      round_num: The round, from 1 on.
      clients: The ids of its clients.

    Raises:
      ValueError: If it breaks the contract.
    """
    self._recorder.record(round_num, clients)

  def epsilon(self) -> float:
    """Returns the epsilon of all rounds so far; infinite without noise.

    It is that of the observed participation, and at most the contract's. Under
    sampling it is a bound, at most the epsilon of the whole run.
    """
    if self._record is None or not self._record.noise_multiplier:
      return math.inf
    if not self._has_cost(self._recorder):
      return self._record.epsilon_before(self._delta)
    return self._epsilon_of(self._recorder.observed())

  def _has_cost(self, observed: participation.ParticipationRecorder) -> bool:
    """Whether the rounds so far cost privacy."""
    if self._record is not None and self._record.amplification is not None:
      # An empty cohort costs as much as any other, since the guarantee is for
      # all that could have been drawn.
      return observed.last_round > 0
    return observed.max_participations > 0

  def _epsilon_after(self, observed: participation.Participation) -> float:
    assert self._record is not None
    record = self._record.after(observed)
    if not record.is_amplified:
      return record.epsilon(self._delta)
    # Privacy loss distributions take seconds per round; Renyi bounds are looser
    # but fast.
    bound = record.epsilon(self._delta, method='rdp')
    return min(bound, self._promised_epsilon)

  @functools.cached_property
  def _promised(self) -> dict[str, Any]:
    """The guarantee of all rounds of the run."""
    assert self._record is not None
    return self._record.summary(self._delta)

  @property
  def _promised_epsilon(self) -> float:
    return self._promised['epsilon']

  def row(self) -> dict[str, float]:
    """Returns the privacy columns of a row of metrics."""
    return {'privacy/epsilon': self.epsilon()}

  def notices(self) -> list[str]:
    """Returns sentences to print at the start of a private run."""
    record = self._record
    if record is None:
      return []
    if not record.noise_multiplier:
      return ['Updates are clipped but not noised: there is no privacy.']
    promised = self._promised_epsilon
    because = self._simulated_because
    simulated = ' (simulated)' if because else ''
    lines = [
      f'Privacy{simulated}: at most epsilon {promised:.4g} at delta '
      f'{self._delta:.3g} ({record.neighbouring_relation}), by a noise '
      f'multiplier of {record.noise_multiplier:.4g}.'
    ]
    if record.is_amplified:
      plain = record.without_amplification().epsilon(self._delta)
      lines.append(
        f'Against those who know who takes part when, epsilon is {plain:.4g}.'
      )
    if record.confidence is not None:
      lines.append(
        'Epsilon with sampling is a bound by Monte Carlo, which holds with '
        f'confidence {record.confidence}.'
      )
    if before := record.epsilon_before(self._delta):
      lines.append(
        f'Of this, epsilon {before:.4g} is already spent: the clip norm is '
        'that of an earlier run on these clients.'
      )
    if population := self._facts.get('simulated_population'):
      lines.append(
        'Cohorts of that size, whose clients take part as often, need a '
        f'population of {population["num_clients"]:,}: epsilon '
        f'{population["epsilon"]:.4g} at delta {population["delta"]:.3g}.'
      )
    if because:
      lines.append(f'Privacy is simulated: {"; ".join(because)}.')
    if self._facts.get('noise_seed_is_secret'):
      lines.append(
        'The noise has a secret seed, as real privacy needs: this run cannot '
        'be repeated, and its checkpoints must stay secret.'
      )
    return lines

  @property
  def is_private(self) -> bool:
    """Whether there is noise."""
    return bool(self._record and self._record.noise_multiplier)

  def summary(
    self, state: Optional[dict[str, np.ndarray]] = None
  ) -> dict[str, Any]:
    """Returns the content of privacy.json; values may be infinite.

    Args:
      state: A result of `state`, for the run up to that time; by default now.
    """
    observed = self._recorder
    if state is not None:
      observed = participation.ParticipationRecorder(self._contract)
      observed.restore(state)
    noise_of_updates = self._update_noise
    if noise_of_updates is None and self._record is not None:
      noise_of_updates = self._record.noise_multiplier
    result: dict[str, Any] = {
      **self.facts,
      'private': self.is_private,
      'simulated': bool(self._simulated_because),
      'simulated_because': list(self._simulated_because),
      'observed': {
        'rounds': observed.last_round,
        'clients': observed.num_clients,
        'max_participations': observed.max_participations,
        'min_separation': observed.min_separation,
      },
      'unit': 'all the updates of one client',
      'trust_model': self._trust_model,
      'released': self._released,
      'update_noise_multiplier': noise_of_updates,
      'epsilon': 0.0 if self.is_private else math.inf,
      'delta': self._delta,
    }
    if self._record is not None:
      if self.is_private:
        result['epsilon'] = self._record.epsilon_before(self._delta)
      result['promised'] = self._promised
      result['neighbouring_relation'] = self._record.neighbouring_relation
      if self._has_cost(observed):
        so_far = self._record.after(observed.observed()).summary(self._delta)
        if self._record.is_amplified:
          # Whoever knows the cohorts knows how often clients took part.
          plain = self._record.without_amplification().after(
            observed.observed()
          )
          so_far['epsilon_without_amplification'] = plain.epsilon(self._delta)
          so_far['profile_without_amplification'] = plain.profile(self._delta)
        result['so_far'] = so_far
        result.update({key: so_far[key] for key in ('rho', 'epsilon')})
    result['released_without_noise'] = self._unnoised
    result['not_covered'] = list(self._not_covered)
    return result

  def state(self) -> dict[str, np.ndarray]:
    """Returns plain arrays that `restore` reads."""
    return self._recorder.state()

  def restore(self, state: dict[str, np.ndarray]) -> None:
    """Restores a state.

    Args:
      state: A result of `state`, in a run with the same facts.

    Raises:
      ValueError: If the state is not one of a ledger.
    """
    self._recorder.restore(state)
