"""The round loop of all training."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional, Protocol

import numpy as np
import tensorflow_federated as tff
import tree

from si_federated.training import evaluation, run_folder, signals
from si_federated.training import progress as progress_lib
from si_federated.training.callbacks import Callback, Cohort, Round

_MEASUREMENTS = (
  'trained_fraction',
  'clip_norm',
  'clip_fraction',
  'nonfinite_updates',
)


class DivergedError(ValueError):
  """A run's results are not finite; its records are kept."""


class Process(Protocol):
  """The part of `tff.learning.templates.LearningProcess` that is used."""

  def initialize(self) -> Any:
    """Returns the state before the first round."""

  def next(self, state: Any, cohort: Any) -> Any:
    """Runs a round; returns `state` and `metrics`."""

  def get_model_weights(self, state: Any) -> tff.learning.models.ModelWeights:
    """Returns a copy of the model's weights."""


@dataclasses.dataclass(frozen=True)
class _Complete:
  """The run after a round whose results are recorded."""

  state: Any
  round_num: int
  facts: Mapping[str, Any]


_NO_FACTS = {
  'secs_total': 0.0,
  'bytes_total': {'up': 0, 'down': 0},
  'last_eval': {},
  'best': {},
}


def _measurements(metrics: Mapping[str, Any]) -> dict[str, float]:
  """Returns the measurements of aggregator and clients, without training's."""
  return {
    f'train/{name}': float(measured[name])
    for part in ('client_work', 'aggregator')
    if isinstance(measured := metrics.get(part), Mapping)
    for name in _MEASUREMENTS
    if name in measured
  }


def _is_finite(row: Mapping[str, float], cohort: Optional[Cohort]) -> bool:
  """Whether a round's losses are finite.

  A round without clients has no training loss, which is then ignored.
  """
  names = ['eval/loss']
  if cohort is not None and len(cohort):
    names.append('train/loss')
  return all(math.isfinite(row[name]) for name in names if name in row)


class _Loop:
  """The state of a loop; see `run` for its arguments."""

  def __init__(
    self,
    process: Process,
    evaluate: Callable[..., dict[str, float]],
    folder: run_folder.RunFolder,
    callbacks: Sequence[Callback],
    in_place: bool,
  ):
    self._process = process
    self._evaluate = evaluate
    self._folder = folder
    self._callbacks = callbacks
    self._in_place = in_place
    state, round_num, facts = folder.checkpoints.restore(process.initialize())
    self.resumed = bool(facts)
    first = round_num if self.resumed else -1
    for callback in callbacks:
      callback.begin(first, facts, folder)
    folder.open_metrics(first)
    # The state that an interrupt saves.
    self.complete = _Complete(state, first, {**_NO_FACTS, **facts})
    self._saved_round = first
    self._state_is_stale = False

  def finish(
    self,
    round_num: int,
    state: Any,
    row: dict[str, float],
    *,
    cohort: Optional[Cohort] = None,
    is_evaluated: bool,
    has_row: bool,
    is_last: bool,
    **facts: Any,
  ) -> None:
    """Evaluates and records a round, which completes it."""
    before, process = self.complete, self._process
    facts = {**before.facts, **facts}
    if is_evaluated:
      start = time.monotonic()
      metrics = self._evaluate(process.get_model_weights(state))
      facts['last_eval'] = {
        f'eval/{key}': value
        for key, value in metrics.items()
        if key not in ('num_tokens', 'num_examples')
      }
      facts['best'] = dict(
        evaluation.best_so_far(metrics, facts['best'], round_num)
      )
      row.update(facts['last_eval'], eval_secs=time.monotonic() - start)
    if _is_finite(row, cohort):
      facts.pop('not_finite_since', None)
    else:
      facts.setdefault('not_finite_since', round_num)
    done = Round(
      round_num,
      row,
      has_row=has_row,
      is_last=is_last,
      cohort=cohort,
      weights=lambda: process.get_model_weights(state),
      weights_before=None
      if cohort is None
      else lambda: process.get_model_weights(before.state),
    )
    for callback in self._callbacks:
      row.update(callback.after_round(done))
      facts.update(callback.facts())
    if has_row:
      self._folder.write_metrics(round_num, row)
    self.complete = _Complete(state, round_num, facts)
    self._state_is_stale = False

  def train(
    self, cohort: Cohort, bytes_per_client: Callable[..., dict[str, float]]
  ) -> tuple[Any, dict[str, float], dict[str, Any]]:
    """Trains a round; returns the state, the columns and the new facts."""
    facts = self.complete.facts
    self._state_is_stale = self._in_place
    start = time.monotonic()
    output = self._process.next(self.complete.state, cohort)
    secs = time.monotonic() - start
    secs_total = facts['secs_total'] + secs
    row = {
      f'train/{key}': float(value)
      for key, value in output.metrics['client_work']['train'].items()
    }
    row.update(
      _measurements(output.metrics), round_secs=secs, secs_total=secs_total
    )
    if cohort.clients:
      row['clients_per_sec'] = len(cohort) / secs
    bytes_total = dict(facts['bytes_total'])
    for way, sent in bytes_per_client(output.metrics).items():
      bytes_total[way] += sent * len(cohort)
      row[f'bytes_{way}_per_client'] = sent
      row[f'bytes_{way}_total'] = bytes_total[way]
    return (
      output.state,
      row,
      {'secs_total': secs_total, 'bytes_total': bytes_total},
    )

  def weights_are_finite(self, state: Any) -> bool:
    """Whether all trained weights of a state are finite."""
    weights = self._process.get_model_weights(state)
    return all(
      np.isfinite(leaf).all() for leaf in tree.flatten(weights.trainable)
    )

  def evaluation_is_finite(self) -> bool:
    """Whether the last evaluation's loss is finite."""
    return math.isfinite(self.complete.facts['last_eval'].get('eval/loss', 0.0))

  def has_diverged(self) -> bool:
    """Whether the weights or the last evaluation are not finite.

    Training losses don't count, since a single client's can be NaN for a while.
    """
    return not (
      self.evaluation_is_finite()
      and self.weights_are_finite(self.complete.state)
    )

  def save(self) -> int:
    """Saves the last complete round; returns the round that is saved."""
    complete = self.complete
    if self._saved_round != complete.round_num and not self._state_is_stale:
      for callback in self._callbacks:
        callback.before_checkpoint(complete.facts, self._folder)
      self._folder.checkpoints.save(
        complete.state, complete.round_num, dict(complete.facts)
      )
      self._saved_round = complete.round_num
    return self._saved_round

  def summarize(self) -> dict[str, Any]:
    """Writes and returns the summary."""
    facts = self.complete.facts
    weights = self._process.get_model_weights(self.complete.state)
    since = None
    if self.has_diverged():
      since = facts.get('not_finite_since', self.complete.round_num)
    summary = {
      'rounds': self.complete.round_num,
      'secs_total': facts['secs_total'],
      'num_parameters': sum(
        leaf.size for leaf in tree.flatten(weights.trainable)
      ),
      'best': facts['best'],
      'final': facts['last_eval'],
      **({} if since is None else {'diverged_since': since}),
    }
    for callback in self._callbacks:
      summary.update(callback.summary(self._folder))
    self._folder.write_json('summary.json', summary)
    return summary


def run(
  *,
  process: Process,
  sample_cohort: Callable[[int], Cohort],
  evaluate: Callable[[tff.learning.models.ModelWeights], dict[str, float]],
  folder: run_folder.RunFolder,
  total_rounds: int,
  rounds_per_eval: int,
  rounds_per_checkpoint: int,
  bytes_per_client: Callable[[Mapping[str, Any]], dict[str, float]],
  callbacks: Sequence[Callback] = (),
  rounds_per_row: int = 1,
  in_place: bool = False,
  stop_when_diverged: bool = False,
  unit: str = 'round',
) -> dict[str, Any]:
  """Runs the remaining rounds, and records their results.

  A run that was killed at any moment resumes from its newest whole checkpoint.
  All results except timings equal those of an uninterrupted run.

  Args:
    process: The learning process.
    sample_cohort: Returns the datasets of a round's clients; must depend only
      on the round.
    evaluate: Returns metrics of weights, including `loss` and `accuracy`.
    folder: The run's folder.
    total_rounds: The number of the last round.
    rounds_per_eval: Rounds between evaluations; it also evaluates before the
      first and after the last round.
    rounds_per_checkpoint: Rounds between checkpoints; it also saves after the
      last round and when interrupted.
    bytes_per_client: Returns what a client sent, `up`, and received, `down`,
      given a round's metrics; empty if nothing is sent.
    callbacks: Called in this order before and after each round.
    rounds_per_row: Rounds between rows of the metrics; it also writes one
      before the first and after the last round.
    in_place: Whether the process changes its state in place. An interrupt then
      waits for the end of the round, and a round that fails is not saved.
    stop_when_diverged: Whether to stop after a round if the weights or the
      evaluation's loss are not finite. Copies the weights each round.
    unit: The word for a round in messages.

  Returns:
    The summary, which is also written to the folder.

  Raises:
    KeyboardInterrupt: If interrupted by Ctrl-C or SIGTERM, after the state of
      the last complete round was saved.
    checkpoints.CheckpointError: If there are checkpoints, but none is usable,
      or the newest was made under another privacy guarantee.
    DivergedError: If the final weights or the last evaluation's loss are not
      finite; all files are written as usual, with `diverged_since` in the
      summary, whose `rounds` is the last one trained.
    ValueError: If a callback refuses a cohort, which then does not train;
      earlier rounds are saved.
  """
  loop = _Loop(process, evaluate, folder, callbacks, in_place)
  with (
    signals.as_interrupts(deferred=in_place) as interrupts,
    progress_lib.Progress(
      total_rounds, start_round=max(loop.complete.round_num, 0), unit=unit
    ) as progress,
  ):
    for callback in callbacks:
      for notice in callback.notices():
        progress.message(notice)
    if loop.resumed:
      progress.message(f'Resuming from {unit} {loop.complete.round_num}.')
    try:
      if not loop.resumed:
        loop.finish(
          0,
          loop.complete.state,
          {'secs_total': 0.0},
          is_evaluated=True,
          has_row=True,
          is_last=False,
        )
        loop.save()
      first_round = loop.complete.round_num + 1
      if stop_when_diverged and loop.has_diverged():
        first_round = total_rounds + 1  # The run has already stopped.
      for round_num in range(first_round, total_rounds + 1):
        interrupts.raise_deferred()
        cohort = sample_cohort(round_num)
        for callback in callbacks:
          callback.before_round(round_num, cohort)
        state, row, facts = loop.train(cohort, bytes_per_client)
        loss = row['train/loss']
        is_last = round_num == total_rounds or (
          stop_when_diverged and not loop.weights_are_finite(state)
        )
        loop.finish(
          round_num,
          state,
          row,
          cohort=cohort,
          is_evaluated=is_last or round_num % rounds_per_eval == 0,
          has_row=is_last or round_num % rounds_per_row == 0,
          is_last=is_last,
          **facts,
        )
        if loop.complete.facts.get('not_finite_since') == round_num:
          progress.message(f'The loss of {unit} {round_num} is not finite.')
        last_eval = loop.complete.facts['last_eval']
        progress.update(
          round_num,
          loss,
          last_eval.get('eval/perplexity'),
          accuracy=last_eval.get('eval/accuracy'),
          clients=len(cohort.clients),
        )
        if round_num % rounds_per_checkpoint == 0:
          loop.save()
        if is_last or (stop_when_diverged and not loop.evaluation_is_finite()):
          break
      loop.save()
      interrupts.raise_deferred()
    except (KeyboardInterrupt, Exception) as error:
      saved = loop.save()
      if interrupts.arrived or isinstance(error, KeyboardInterrupt):
        progress.message(f'Interrupted; {unit} {saved} is saved.')
        raise KeyboardInterrupt from error
      raise
  summary = loop.summarize()
  if 'diverged_since' in summary:
    last = summary['rounds']
    stopped = f', and it stopped after {unit} {last}'
    raise DivergedError(
      f'Training diverged: loss or weights are not finite since {unit} '
      f'{summary["diverged_since"]} (see {folder.path}/metrics.csv)'
      f'{stopped if last < total_rounds else ""}; train again under another '
      'name with lower learning rates.'
    )
  return summary
