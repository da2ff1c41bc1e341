"""The privacy audit of a finished run by its canaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow_federated as tff

from si_federated.aggregators.canaries import scores as canary_scores
from si_federated.assembly import private_mechanism
from si_federated.privacy import auditing
from si_federated.training import checkpoints, run_folder


def write(
  folder: run_folder.RunFolder,
  *,
  initial: tff.learning.models.ModelWeights,
  privacy: Mapping[str, Any],
  canaries: private_mechanism.Canaries,
) -> dict[str, Any]:
  """Compares the last weights with the first and writes `audit.json`.

  Args:
    folder: The run's folder, with the checkpoint of its last round.
    initial: The weights that it began with.
    privacy: The ledger's summary, with the promised guarantee.
    canaries: The canaries that took part.

  Returns:
    The content of the file: the estimate and the guarantee.
  """
  final = checkpoints.read_weights(folder.checkpoints.newest()[0])
  scores = canary_scores(
    [after - before for after, before in zip(final, initial.trainable)],
    canary_seed=canaries.seed,
    num_canaries=canaries.count,
  )
  dimension = sum(weight.size for weight in initial.trainable)
  delta = privacy['delta']
  result = {
    'epsilon_estimate': auditing.estimate_epsilon(
      scores, delta, dimension=dimension
    ),
    'epsilon_promised': privacy['promised']['epsilon'],
    'delta': delta,
    'simulated': privacy['simulated'],
    'simulated_because': privacy['simulated_because'],
    'canaries': dataclasses.asdict(canaries),
    'mean_score': float(scores.mean()),
    'std_score': float(scores.std(ddof=1)),
    'std_score_unseen': dimension**-0.5,
    'what': 'A one-shot estimate from the final model (arXiv 2302.03098), '
    'without a confidence interval; an observer of every round can learn more.',
    'not_covered': [
      'clipping: canaries are added to the clipped sum, as long as the clip '
      'norm',
      'compression: canaries are not compressed',
    ],
  }
  folder.write_json('audit.json', result)
  return result
