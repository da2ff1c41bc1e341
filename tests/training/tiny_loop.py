"""A loop of ten rounds on numbers, which takes no time."""

from __future__ import annotations

import math
import os
import types
from typing import Any, NamedTuple

import numpy as np
import tensorflow_federated as tff

from si_federated import config
from si_federated.training import callbacks, loop, run_folder


class _State(NamedTuple):
  global_model_weights: Any
  finalizer: Any


def state_after(weights, step):
  """Returns the state with these weights after a number of rounds."""
  return _State(
    tff.learning.models.ModelWeights((weights,), ()), {'step': np.int32(step)}
  )


class Process:
  """A learning process whose state shows the cohorts of all rounds."""

  def __init__(self, interrupt_in=None, nan_from=math.inf):
    self.interrupt_in = interrupt_in
    self.nan_from = nan_from
    self.rounds = []

  def initialize(self):
    return state_after(np.zeros([2], np.float32), 0)

  def get_model_weights(self, state):
    return state.global_model_weights

  def next(self, state, cohort):
    step = int(state.finalizer['step']) + 1
    self.rounds.append(step)
    if step == self.interrupt_in:
      raise KeyboardInterrupt
    (weights,) = state.global_model_weights.trainable
    weights = (weights * np.float32(0.9) + np.float32(sum(cohort))).astype(
      np.float32
    )
    loss = math.nan if step >= self.nan_from else float(weights[0])
    return types.SimpleNamespace(
      state=state_after(weights, step),
      metrics={
        'client_work': {
          'train': {'loss': loss, 'accuracy': 0.5, 'num_tokens': 10.0}
        }
      },
    )


def evaluate_weights(weights):
  """Returns metrics that follow from the first weight."""
  loss = float(weights.trainable[0][0]) / 100
  return {
    'loss': loss,
    'accuracy': 0.1,
    'accuracy_no_oov': 0.1,
    'accuracy_no_oov_no_eos': 0.1,
    'num_tokens': 3.0,
    'perplexity': math.exp(10 - loss),
  }


class Cohort(list):
  """Client n has the data n."""

  @property
  def clients(self):
    return list(self)


def run_loop(
  path,
  process=None,
  evaluate=evaluate_weights,
  total_rounds=10,
  sample_cohort=lambda round_num: Cohort([round_num, 2 * round_num]),
  ledger=None,
  in_place=False,
  stop_when_diverged=False,
):
  """Runs or resumes a loop; evaluates every 4 rounds, saves every 3."""
  folder = run_folder.RunFolder(path)
  folder.open(config.ExperimentConfig('x'))
  try:
    return loop.run(
      process=process or Process(),
      sample_cohort=sample_cohort,
      evaluate=evaluate,
      folder=folder,
      total_rounds=total_rounds,
      rounds_per_eval=4,
      rounds_per_checkpoint=3,
      bytes_per_client=lambda metrics: {'up': 8, 'down': 12},
      callbacks=[] if ledger is None else [callbacks.PrivacyAccounting(ledger)],
      in_place=in_place,
      stop_when_diverged=stop_when_diverged,
    )
  finally:
    folder.close()


def last_weights(path):
  """Returns the name of the newest checkpoint, and its weights."""
  newest = sorted(os.listdir(path / 'checkpoints'))[-1]
  with np.load(path / 'checkpoints' / newest) as arrays:
    return newest, arrays['state/global_model_weights/trainable/0']
