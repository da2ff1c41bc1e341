"""Disclosures: quantities that a private run's guarantee does not cover."""

from __future__ import annotations

from collections.abc import Sequence

from si_federated import config
from si_federated.aggregators import NOISE_FROM_CLIENTS, Mechanism
from si_federated.assembly import earlier_run, earlier_training
from si_federated.assembly.learning_process import traits_of
from si_federated.assembly.registries import build_part
from si_federated.diagnostics.quantities import OF_TRAINING_CLIENTS
from si_federated.tasks import (
  HOLD_OUT_TEXTS,
  MIXES_AUTHORS,
  PUBLIC_VOCABULARIES,
)


def trust_model(
  experiment: config.ExperimentConfig, mechanism: Mechanism
) -> str:
  """Returns a clause that says whom clients must trust; empty without noise.

  Args:
    experiment: The experiment.
    mechanism: How updates are combined, calibrated.
  """
  if mechanism.record is None or not mechanism.record.noise_multiplier:
    return ''
  if experiment.aggregator.name in NOISE_FROM_CLIENTS:
    return (
      'the server need not be trusted with single updates: clients add the '
      'noise, and secure aggregation, which is simulated here, reveals only '
      'sums; clients must trust that as many as planned add their share'
    )
  return (
    'the server is trusted: it sees the updates, adds the noise, and keeps its '
    'checkpoints secret, which contain the state of the noise; clients need '
    'not trust those who see the releases'
  )


def released(
  experiment: config.ExperimentConfig, mechanism: Mechanism
) -> list[str]:
  """Returns phrases for what is released under the guarantee, if there is one.

  Args:
    experiment: The experiment.
    mechanism: How updates are combined, calibrated.
  """
  if mechanism.record is None or not mechanism.record.noise_multiplier:
    return []
  phrases = [
    'the models after all rounds together, and anything computed from them '
    'alone, such as predictions and exports'
  ]
  if traits_of(experiment).releases_per_round > 1:
    phrases.append("a second noisy sum per round, of the clients' gradients")
  if getattr(mechanism.factory, 'adaptive', None) is not None:
    phrases.append(
      'the clip norm of each round (train/clip_norm), which is computed from '
      'noisy counts of clipped clients'
    )
  return phrases


def unnoised(
  experiment: config.ExperimentConfig,
  mechanism: Mechanism,
  train_metrics: Sequence[str],
) -> list[str]:
  """Returns the names of the quantities that are written without noise.

  Args:
    experiment: The experiment.
    mechanism: The aggregator.
    train_metrics: The names of the metrics of training.
  """
  names = [f'train/{name}' for name in train_metrics]
  names += [f'train/{name}' for name in mechanism.unnoised_measurements]
  sends_parts = traits_of(experiment).sends_parts
  if sends_parts:
    names.append('train/trained_fraction')
  # The size of an upload reveals which variables a client did not change.
  if experiment.compression.upload is not None or sends_parts:
    names += ['bytes_up_per_client', 'bytes_up_total']
  if mechanism.record is not None and mechanism.record.amplification:
    # The size of the cohort reveals whether a client was sampled.
    names += [
      f'{name} (the exact size of cohorts)'
      for name in ('clients_per_sec', 'bytes_up_total', 'bytes_down_total')
    ]
    names.append(
      'privacy.json: observed, and so_far without amplification (how often '
      'clients were sampled)'
    )
  names.append(
    'task.json: train_fingerprint (a digest, which confirms a guess of all '
    'training data), and the number of training clients and other facts about '
    'their data'
  )
  if build_part(experiment, 'diagnostics') is not None:
    names += [f'diagnostics.csv: {name}' for name in OF_TRAINING_CLIENTS]
  return names


def simulated_because(
  experiment: config.ExperimentConfig, mechanism: Mechanism
) -> list[str]:
  """Returns clauses that say why the guarantee does not apply to this run.

  The run's folder, except its checkpoints, counts as public.

  Args:
    experiment: The experiment.
    mechanism: The aggregator, with calibrated noise.
  """
  record = mechanism.record
  if record is None or not record.noise_multiplier:
    return []
  reasons = list(mechanism.simulated_because)
  if (before := earlier_run.read(experiment)) is not None:
    reasons += [
      f'of the run of --clip_norm_from: {reason}'
      for reason in before.simulated_because
    ]
  if (reason := earlier_training.reason_against(experiment)) is not None:
    reasons.append(reason)
  if mechanism.noise_cohort_size is not None:
    reasons.append(
      f'the noise is that of cohorts of {mechanism.noise_cohort_size} clients '
      f'(--noise_cohort_size), but those here have '
      f'{experiment.clients_per_round}'
    )
  if experiment.noise_seed is not None:
    reasons.append(
      'the seed of the noise is public (--noise_seed), so that it can be '
      'subtracted'
    )
  if record.amplification is not None:
    reasons.append(
      'who takes part follows from a public seed (--client_seed), while '
      'amplification needs secret sampling'
    )
  if experiment.client_similarity:
    reasons.append(
      'clients are mixtures of several people (--client_similarity)'
    )
  if _mixes_authors(experiment):
    reasons.append(
      f"clients are mixtures of several authors' texts "
      f'(--task={experiment.task})'
    )
  return reasons


def _mixes_authors(experiment: config.ExperimentConfig) -> bool:
  mixes = MIXES_AUTHORS.get(experiment.task.name)
  return mixes is not None and mixes(dict(experiment.task.options))


def not_covered(experiment: config.ExperimentConfig) -> list[str]:
  """Returns phrases for other things that the guarantee does not cover.

  Args:
    experiment: The experiment.
  """
  phrases = [
    'held-out texts, which give exact metrics (eval/...), even if they are of '
    'training clients: only the texts that clients train on are protected'
    if experiment.task.name in HOLD_OUT_TEXTS
    else 'validation clients, whose data give exact metrics (eval/...): only '
    'training clients are protected'
  ]
  if _mixes_authors(experiment):
    phrases.append(
      f'any one author: with --task={experiment.task} the texts of an author '
      'can be spread over many clients'
    )
  if experiment.vocabulary.name not in PUBLIC_VOCABULARIES:
    phrases.append(
      f'the vocabulary (--vocabulary={experiment.vocabulary}), which is made '
      "from the training clients' text, without noise, before training"
    )
  if experiment.clip_norm_from is not None:
    phrases.append(
      'outputs without noise of the run of --clip_norm_from, see its '
      'privacy.json'
    )
  if experiment.client_similarity:
    phrases.append(
      'any one person: with --client_similarity='
      f'{experiment.client_similarity} a client is a mixture of several '
      "people's sentences, and each person's are spread over many clients"
    )
  if traits_of(experiment).trains_experts:
    opted_out = 'clients that opted out are in no round'
    if experiment.vocabulary.name not in PUBLIC_VOCABULARIES:
      opted_out += ', but the vocabulary is made from their text, too'
    phrases.append(
      'the experts that clients train for themselves after the last round '
      '(experts.json, experts.csv and clients/), which are made from their own '
      f'data; {opted_out}'
    )
  if dict(experiment.runtime.options).get('record') is not None:
    phrases.append(
      f'the recording of --runtime={experiment.runtime}, which contains the '
      'data of training clients'
    )
  if experiment.personalize_epochs:
    phrases.append(
      'the evaluation of validation clients before and after fine-tuning '
      '(personalization.json and .csv)'
    )
  if experiment.initial_model is not None:
    phrases.append(
      'the data that the initial model was trained on '
      f'(--initial_model={experiment.initial_model}); the choice of this model '
      'must not depend on the training clients'
    )
  return phrases
