"""Callbacks of the round loop, and the one that accounts for privacy."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional, Protocol

import numpy as np
import tensorflow_federated as tff

from si_federated.privacy.ledger import Ledger
from si_federated.training import checkpoints, run_folder


class Cohort(Protocol):
  """The datasets of a round's clients."""

  @property
  def clients(self) -> list[int]:
    """The clients' indices."""

  def __len__(self) -> int: ...

  def __getitem__(self, position: Any) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Round:
  """A finished round, whose row is not yet written.

  Attributes:
    round_num: The round; 0 is the evaluation before the first.
    row: The round's columns of the metrics, so far.
    has_row: Whether a row is written after it.
    is_last: Whether it is the last round.
    cohort: The round's clients; None before the first round.
    weights: Returns a copy of the weights after the round.
    weights_before: Returns a copy of those before it; None before round 1.
  """

  round_num: int
  row: Mapping[str, float]
  has_row: bool
  is_last: bool
  cohort: Optional[Cohort]
  weights: Callable[[], tff.learning.models.ModelWeights]
  weights_before: Optional[Callable[[], tff.learning.models.ModelWeights]]


class Callback:
  """Takes part in the round loop; by default does nothing."""

  def begin(
    self, round_num: int, facts: Mapping[str, Any], folder: run_folder.RunFolder
  ) -> None:
    """Continues after a round.

    Args:
      round_num: The round of the checkpoint; -1 for a new run.
      facts: The facts kept with the checkpoint; empty for a new run.
      folder: The run's folder.
    """

  def notices(self) -> list[str]:
    """Returns messages to show when the run starts."""
    return []

  def before_round(self, round_num: int, cohort: Cohort) -> None:
    """Checks a cohort before it trains; raises ValueError to refuse it."""

  def after_round(self, done: Round) -> Mapping[str, float]:
    """Returns further columns of the metrics after a round."""
    del done
    return {}

  def facts(self) -> Mapping[str, Any]:
    """Returns JSON values and arrays to keep with a checkpoint."""
    return {}

  def before_checkpoint(
    self, facts: Mapping[str, Any], folder: run_folder.RunFolder
  ) -> None:
    """Writes files that belong to a checkpoint, which is saved next.

    Args:
      facts: The facts of the checkpoint; a later round may already have begun.
      folder: The run's folder.
    """

  def summary(self, folder: run_folder.RunFolder) -> Mapping[str, Any]:
    """Returns entries of the run's summary, once all rounds are done."""
    del folder
    return {}


class Notices(Callback):
  """Shows messages when a run starts."""

  def __init__(self, messages: Sequence[str]):
    self._messages = list(messages)

  def notices(self):
    """Returns the messages."""
    return self._messages


def _same(one: Any, other: Any) -> bool:
  # Noise for a target epsilon, and all that depends on it, can differ in the
  # last digit between machines.
  if isinstance(one, float) and isinstance(other, float):
    return math.isclose(one, other, rel_tol=1e-9)
  if isinstance(one, dict) and isinstance(other, dict):
    return one.keys() == other.keys() and all(
      _same(value, other[key]) for key, value in one.items()
    )
  return one == other


class PrivacyAccounting(Callback):
  """Checks each cohort against a ledger's contract, and records it."""

  def __init__(self, ledger: Ledger):
    self._ledger = ledger

  def begin(self, round_num, facts, folder):
    """Restores the ledger of a checkpoint.

    Raises:
      checkpoints.CheckpointError: If the checkpoint was made under another
        privacy guarantee, or does not record who took part.
    """
    if 'ledger' not in facts:
      if facts and self._ledger.is_private:
        raise checkpoints.CheckpointError(
          f'The checkpoint of round {round_num} in {folder.path} does not '
          'record who took part in earlier rounds, so that no privacy can be '
          'promised; start a new run under another --experiment_name.'
        )
      return
    # JSON turns tuples into lists.
    here, there = json.loads(json.dumps(self._ledger.facts)), facts['privacy']
    differences = [
      f'{key}: {there.get(key)} there, {here.get(key)} here'
      for key in sorted(set(here) | set(there))
      if not _same(here.get(key), there.get(key))
    ]
    if differences:
      raise checkpoints.CheckpointError(
        f'The checkpoint in {folder.path} was made under another privacy '
        f'guarantee ({"; ".join(differences)}); resume it with that one, or '
        'start a new run under another --experiment_name.'
      )
    self._ledger.restore(
      {key: np.array(value) for key, value in facts['ledger'].items()}
    )

  def notices(self):
    """Returns the ledger's notices."""
    return self._ledger.notices()

  def before_round(self, round_num, cohort):
    """Checks the contract."""
    self._ledger.check(round_num, cohort.clients)

  def after_round(self, done):
    """Records the cohort; returns the ledger's columns."""
    if done.cohort is not None:
      self._ledger.record(done.round_num, done.cohort.clients)
    return self._ledger.row()

  def facts(self):
    """Returns what `begin` restores."""
    return {'privacy': self._ledger.facts, 'ledger': self._ledger.state()}

  def before_checkpoint(self, facts, folder):
    """Writes `privacy.json` as of the checkpoint.

    Since it is written before the checkpoint, a kill between the two leaves it
    covering a round too many, not one too few.
    """
    state = {key: np.array(value) for key, value in facts['ledger'].items()}
    folder.write_json('privacy.json', self._ledger.summary(state))

  def summary(self, folder):
    """Writes `privacy.json`; returns the guarantee."""
    privacy = self._ledger.summary()
    folder.write_json('privacy.json', privacy)
    keys = ('epsilon', 'delta', 'private', 'simulated')
    return {'privacy': {key: privacy[key] for key in keys}}
