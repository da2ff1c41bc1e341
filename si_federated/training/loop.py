"""The one round loop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Optional, Protocol

import numpy as np
import tensorflow_federated as tff
import tree

from si_federated.training import checkpoints, evaluation, run_folder
from si_federated.training import progress as progress_lib

_MEASUREMENTS = (
  'trained_fraction',
  'clip_norm',
  'clip_fraction',
  'nonfinite_updates',
)


class Cohort(Protocol):
  """The datasets of a round's clients."""

  @property
  def clients(self) -> list[int]:
    """The clients' indices."""

  def __len__(self) -> int: ...

  def __getitem__(self, position: Any) -> Any: ...


class Ledger(Protocol):
  """What keeps account of privacy, as `privacy.ledger.Ledger` does."""

  @property
  def facts(self) -> dict[str, Any]:
    """What determines privacy, as plain values."""

  def check(self, round_num: int, clients: Iterable[Any]) -> None:
    """Raises ValueError if a cohort breaks the contract."""

  def record(self, round_num: int, clients: Iterable[Any]) -> None:
    """Enters the cohort of a complete round."""

  def notices(self) -> list[str]:
    """Returns what whoever starts the run should know."""

  def row(self) -> dict[str, float]:
    """Returns columns of the metrics."""

  def summary(self) -> dict[str, Any]:
    """Returns all that is known, as plain values."""

  def state(self) -> dict[str, np.ndarray]:
    """Returns arrays that restore it."""

  def restore(self, state: dict[str, np.ndarray]) -> None:
    """Goes back to a state."""


class Diagnostics(Protocol):
  """What looks at the model by round, as `diagnostics.Recorder` does."""

  def open(self, round_num: int) -> None:
    """Goes on after a round; -1 for a new run."""

  def is_due(
    self, round_num: int, *, is_evaluated: bool, is_last: bool = False
  ) -> bool:
    """Whether to measure after a round."""

  def record(
    self,
    round_num: int,
    *,
    after: Any,
    before: Any = None,
    cohort: Any = None,
    measured: Any,
  ) -> None:
    """Measures after a round."""

  def summary(self) -> dict[str, Any]:
    """Returns what the run's summary says of it."""


@contextlib.contextmanager
def _terminate_as_interrupt():
  """Makes SIGTERM end the loop as Ctrl-C does."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def interrupt(signum, frame):
    del signum, frame
    raise KeyboardInterrupt

  previous = signal.signal(signal.SIGTERM, interrupt)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, previous)


@dataclasses.dataclass(frozen=True)
class _Complete:
  """What is known after a round whose row is written."""

  state: Any
  round_num: int
  secs_total: float
  bytes_total: dict[str, float]
  last_eval: dict[str, float]
  best: dict[str, float]
  ledger: dict[str, np.ndarray]


def _restore_ledger(
  ledger: Optional[Ledger], facts: dict[str, Any], folder: str
) -> None:
  """Takes up the ledger of a checkpoint."""
  if ledger is None or 'ledger' not in facts:
    return
  # JSON makes lists of tuples.
  mine, theirs = json.loads(json.dumps(ledger.facts)), facts['privacy']
  differences = [
    f'{key}: {theirs.get(key)} there, {mine.get(key)} here'
    for key in sorted(set(mine) | set(theirs))
    if mine.get(key) != theirs.get(key)
  ]
  if differences:
    raise checkpoints.CheckpointError(
      f'The checkpoint in {folder} was made under another promise of privacy '
      f'({"; ".join(differences)}); go on with that one, or start anew under '
      'another --experiment_name.'
    )
  ledger.restore(
    {key: np.array(value) for key, value in facts['ledger'].items()}
  )


def _measurements(output: Any) -> dict[str, float]:
  """Returns what aggregator and clients have measured beside the training."""
  return {
    f'train/{name}': float(measured[name])
    for part in ('client_work', 'aggregator')
    if isinstance(measured := output.metrics.get(part), Mapping)
    for name in _MEASUREMENTS
    if name in measured
  }


def run(
  *,
  process: tff.learning.templates.LearningProcess,
  sample_cohort: Callable[[int], Cohort],
  evaluate: Callable[[tff.learning.models.ModelWeights], dict[str, float]],
  folder: run_folder.RunFolder,
  total_rounds: int,
  rounds_per_eval: int,
  rounds_per_checkpoint: int,
  bytes_per_client: Callable[[Mapping[str, Any]], dict[str, float]],
  ledger: Optional[Ledger] = None,
  diagnostics: Optional[Diagnostics] = None,
) -> dict[str, Any]:
  """Runs the rounds that are still to be run, and keeps their results.

  Killed at any moment and started again, it goes on from the newest whole
  checkpoint; all but the timings is as if it had never stopped.

  Args:
    process: The learning process.
    sample_cohort: Returns the datasets of a round's clients; must depend on the
      round alone.
    evaluate: Returns metrics of weights, `loss` and `accuracy` among them.
    folder: Where the results go.
    total_rounds: The number of the last round.
    rounds_per_eval: How often to evaluate; always before the first and after
      the last round.
    rounds_per_checkpoint: How often to save; always after the last round and
      when interrupted.
    bytes_per_client: Returns what a client sent, `up`, and received, `down`,
      given a round's metrics.
    ledger: Checks each cohort before it trains, and keeps account of it.
    diagnostics: Looks at the model before the first and after each round.

  Returns:
    The summary, which is also written to the folder.

  Raises:
    KeyboardInterrupt: If interrupted by Ctrl-C or SIGTERM, after the state of
      the last complete round was saved.
    checkpoints.CheckpointError: If checkpoints are there, but none is usable,
      or the newest was made under another promise of privacy.
    ValueError: If a cohort breaks the ledger's contract; nothing of it was
      used, and the rounds before are saved.
  """
  initial_state = process.initialize()
  state, round_num, facts = folder.checkpoints.restore(initial_state)
  resumed = bool(facts)
  _restore_ledger(ledger, facts, folder.path)
  weights = initial_state.global_model_weights
  folder.open_metrics(round_num if resumed else -1)
  if diagnostics is not None:
    diagnostics.open(round_num if resumed else -1)
  # What an interrupt saves: a round is complete when its row is written.
  complete = _Complete(
    state,
    round_num if resumed else -1,
    facts.get('secs_total', 0.0),
    facts.get('bytes_total', {'up': 0, 'down': 0}),
    facts.get('last_eval', {}),
    facts.get('best', {}),
    ledger.state() if ledger is not None else {},
  )
  saved_round = complete.round_num

  def evaluate_after(round_num, state, row):
    start = time.monotonic()
    metrics = evaluate(process.get_model_weights(state))
    last_eval = {
      f'eval/{key}': value
      for key, value in metrics.items()
      if key not in ('num_tokens', 'num_examples')
    }
    row.update(last_eval, eval_secs=time.monotonic() - start)
    best = dict(evaluation.better(metrics, complete.best, round_num))
    return last_eval, best

  def ledger_facts():
    if ledger is None:
      return {}
    state = {key: array.tolist() for key, array in complete.ledger.items()}
    return {'privacy': ledger.facts, 'ledger': state}

  def save():
    nonlocal saved_round
    if saved_round != complete.round_num:
      folder.checkpoints.save(
        complete.state,
        complete.round_num,
        {
          'secs_total': complete.secs_total,
          'bytes_total': complete.bytes_total,
          'last_eval': complete.last_eval,
          'best': complete.best,
          **ledger_facts(),
        },
      )
      saved_round = complete.round_num

  with (
    _terminate_as_interrupt(),
    progress_lib.Progress(total_rounds, start_round=round_num) as progress,
  ):
    for notice in ledger.notices() if ledger is not None else ():
      progress.message(notice)
    if resumed:
      progress.message(f'Going on from round {round_num}.')
    try:
      if not resumed:
        row: dict[str, float] = {'secs_total': 0.0}
        if ledger is not None:
          row.update(ledger.row())
        last_eval, best = evaluate_after(0, state, row)
        if diagnostics is not None and diagnostics.is_due(0, is_evaluated=True):
          diagnostics.record(
            0, after=process.get_model_weights(state), measured=row
          )
        folder.write_metrics(0, row)
        complete = dataclasses.replace(
          complete, round_num=0, last_eval=last_eval, best=best
        )
        save()
      for round_num in range(complete.round_num + 1, total_rounds + 1):
        cohort = sample_cohort(round_num)
        if ledger is not None:
          ledger.check(round_num, cohort.clients)
        start = time.monotonic()
        output = process.next(complete.state, cohort)
        secs = time.monotonic() - start
        secs_total = complete.secs_total + secs
        sent = bytes_per_client(output.metrics)
        bytes_total = {
          way: complete.bytes_total[way] + sent[way] * len(cohort)
          for way in ('up', 'down')
        }
        row = {
          **{
            f'train/{key}': float(value)
            for key, value in output.metrics['client_work']['train'].items()
          },
          **_measurements(output),
          'round_secs': secs,
          'secs_total': secs_total,
          'clients_per_sec': len(cohort) / secs,
          **{f'bytes_{way}_per_client': sent[way] for way in sent},
          **{f'bytes_{way}_total': bytes_total[way] for way in sent},
        }
        last_eval, best = complete.last_eval, complete.best
        if round_num % rounds_per_eval == 0 or round_num == total_rounds:
          last_eval, best = evaluate_after(round_num, output.state, row)
        # Taking the weights out of a state copies them: only if they are read.
        if diagnostics is not None and diagnostics.is_due(
          round_num,
          is_evaluated='eval/loss' in row,
          is_last=round_num == total_rounds,
        ):
          diagnostics.record(
            round_num,
            before=process.get_model_weights(complete.state),
            after=process.get_model_weights(output.state),
            cohort=cohort,
            measured=row,
          )
        if ledger is not None:
          ledger.record(round_num, cohort.clients)
          row.update(ledger.row())
        folder.write_metrics(round_num, row)
        complete = _Complete(
          output.state,
          round_num,
          secs_total,
          bytes_total,
          last_eval,
          best,
          ledger.state() if ledger is not None else {},
        )
        progress.update(
          round_num,
          row['train/loss'],
          last_eval.get('eval/perplexity'),
          accuracy=last_eval.get('eval/accuracy'),
          clients=len(cohort),
        )
        if round_num % rounds_per_checkpoint == 0:
          save()
      save()
    except KeyboardInterrupt:
      save()
      progress.message(f'Interrupted; round {complete.round_num} is saved.')
      raise
    except Exception:
      save()
      raise
  summary = {
    'rounds': complete.round_num,
    'secs_total': complete.secs_total,
    'num_parameters': sum(
      leaf.size for leaf in tree.flatten(weights.trainable)
    ),
    'best': complete.best,
    'final': complete.last_eval,
  }
  if ledger is not None:
    privacy = ledger.summary()
    folder.write_json('privacy.json', privacy)
    summary['privacy'] = {
      key: privacy[key] for key in ('epsilon', 'delta', 'private', 'simulated')
    }
  if diagnostics is not None:
    summary['diagnostics'] = diagnostics.summary()
  folder.write_json('summary.json', summary)
  return summary
