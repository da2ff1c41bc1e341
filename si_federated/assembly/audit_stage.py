"""The privacy audit of a finished run by its canaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from si_federated.aggregators import canaries as canary_clients
from si_federated.assembly import private_mechanism
from si_federated.privacy import auditing
from si_federated.training import checkpoints, run_folder

_CONFIDENCE = 0.95


def write(
  folder: run_folder.RunFolder,
  *,
  privacy: Mapping[str, Any],
  canaries: private_mechanism.Canaries,
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
