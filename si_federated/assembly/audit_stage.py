"""The privacy audit of a run: its canaries, and the search for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Optional

from si_federated import config
from si_federated.aggregators import Mechanism
from si_federated.aggregators import canaries as canary_clients
from si_federated.privacy import auditing, schedules
from si_federated.training import checkpoints, run_folder

_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Canaries:
  """Clients with known updates, for an audit.

  Attributes:
    count: The number of canaries.
    seed: The seed of their updates.
  """

  count: int
  seed: int


def add_canaries(
  experiment: config.ExperimentConfig,
  mechanism: Mechanism,
  added: Canaries,
  schedule: Optional[schedules.Schedule] = None,
) -> Mechanism:
  """Returns a mechanism with canaries in its cohorts.

  Args:
    experiment: The experiment.
    mechanism: The calibrated mechanism.
    added: The canaries. They take part as often as the contract allows, or are
      sampled like clients if the accounting relies on sampling.
    schedule: The clients of each round, built for this number of canaries. It
      also draws them if cohorts have a maximum size, where they can displace
      clients, and clients them.

  Raises:
    config.ConfigError: If the mechanism can't be audited.
  """
  factory: Any = mechanism.factory
  record = mechanism.record
  try:
    if record is None or not record.noise_multiplier:
      raise ValueError(
        'Only noise can be audited; choose a private aggregator.'
      )
    contract = record.contract
    strategy = getattr(record, 'strategy', None)
    if strategy is None:
      raise ValueError('Only noise that the server adds can be audited.')
    drawn = None
    sampling = record.amplification
    if sampling is not None and sampling.max_cohort_size is not None:
      assert isinstance(schedule, (schedules.Poisson, schedules.CyclicPoisson))
      drawn = [schedule.guests_of(t + 1) for t in range(strategy.rounds)]
    return dataclasses.replace(
      mechanism,
      factory=canary_clients.CanaryFactory(
        factory,
        added.seed,
        canary_clients.schedule(
          num_canaries=added.count,
          strategy=strategy,
          participations=contract.participations,
          # Rounds that are a block apart are in different blocks.
          separation=max(contract.min_separation, contract.block),
          amplification=sampling,
          canary_seed=added.seed,
          drawn=drawn,
        ),
      ),
    )
  except ValueError as error:
    raise config.ConfigError(
      f'--aggregator={experiment.aggregator}: {error}'
    ) from error


def write(
  folder: run_folder.RunFolder,
  *,
  privacy: Mapping[str, Any],
  canaries: Canaries,
) -> dict[str, Any]:
  """Looks for the canaries in a run's releases, and writes `audit.json`.

  Args:
    folder: The run's folder, with the checkpoint of its last round.
    privacy: The ledger's summary, with the promised guarantee.
    canaries: The canaries, including those held out.

  Returns:
    The content of the file: bounds, an estimate, and the guarantee.
  """
  scores = canary_clients.scores(
    checkpoints.read_list(folder.checkpoints.newest()[0], canary_clients.SUMS),
    canary_seed=canaries.seed,
    num_canaries=canaries.count,
  )
  is_member = canary_clients.members(canaries.count, canaries.seed)
  delta, promised = privacy['delta'], privacy['promised']
  bounds = {
    'epsilon_lower_bound': auditing.one_run_epsilon(
      scores, is_member, delta, confidence=_CONFIDENCE
    ),
    'epsilon_lower_bound_if_independent': auditing.epsilon_lower_bound(
      scores,
      is_member,
      delta,
      confidence=_CONFIDENCE,
      gaussian=promised['profile']['mu'] is not None,
    ),
  }
  result = {
    **bounds,
    'confidence': _CONFIDENCE,
    'epsilon_estimate': auditing.estimate_epsilon(scores, is_member, delta),
    'epsilon_promised': promised['epsilon'],
    'promise_is_broken': max(bounds.values()) > promised['epsilon'],
    'delta': delta,
    'simulated': privacy['simulated'],
    'simulated_because': privacy['simulated_because'],
    'canaries': {
      **dataclasses.asdict(canaries),
      'members': int(is_member.sum()),
    },
    'mean_score': float(scores[is_member].mean()),
    'std_score': float(scores[is_member].std(ddof=1)),
    'mean_score_unseen': float(scores[~is_member].mean()),
    'std_score_unseen': float(scores[~is_member].std(ddof=1)),
    'what': 'Canaries are clipped like clients; an independent coin decides '
    'whether each is in the run or held out. Scores are from the releases of '
    'all rounds. epsilon_lower_bound has the stated confidence (one-run '
    'auditing, arXiv 2305.08846), and cannot exceed about the logarithm of the '
    'number of canaries; the second bound (Clopper-Pearson) assumes '
    'independent scores; the estimate (arXiv 2302.03098) has no confidence '
    'level.',
    'not_covered': ['compression: canaries are not compressed'],
  }
  folder.write_json('audit.json', result)
  return result
