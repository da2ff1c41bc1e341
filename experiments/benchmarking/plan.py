"""The plan of a benchmark run, and its findings."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from experiments.benchmarking import protocol, workload

CONTESTANTS = ('local', 'ray', 'tff', 'fedjax', 'pfl')
MODELS = ('lstm', 'cifg', 'si_cifg')
# The first only clips.
MECHANISMS = (
  'gaussian:noise_multiplier=0',
  'gaussian',
  'adaptive_gaussian',
  'tree',
  'tree:keep_rows=false',
  'banded',
  'banded:keep_rows=false',
  'blt:num_buffers=4',
  'dense',
  'distributed_dp',
)


@dataclasses.dataclass
class Plan:
  """The choices of a run, and the records and notes it collects.

  Attributes:
    settings: The shape of the work.
    contestants: The contestants, of `CONTESTANTS`.
    models: The models, of `MODELS`; other libraries have `lstm` only.
    kinds: The kinds of clients, of `workload.KINDS`.
    repetitions: Measurements of each round.
    pythons: The Python interpreters of `fedjax` and `pfl`.
    square: The size of the largest matrix product.
    rate_seconds: The duration of measuring a rate.
    cohort_sizes: The cohorts of the section on memory.
    starts: Measurements of a fresh start.
    noise_models: The models of the section on noise, as in `--model`.
    noise_mechanisms: The mechanisms, as in `--aggregator`; their options
      may also override other flags of training.
    noise_vocab_size: The models' number of ids.
    noise_rounds: The number of rounds that mechanisms are built for.
    noise_dense_rounds: The number of rounds for the dense mechanism, which is
      slow to optimize.
    noise_rows: Rounds that make more rows of z are not measured.
    attention_sizes: The options of the Transformers compared with stock Keras.
    attention_num_words: The vocabulary of these and of the large models.
    large_models: The models whose rounds and memory are measured.
    partial_model: The model of the section on partial training.
    partial_clients: The number of clients per round in that section.
    partial_batches: The number of batches of each of them.
    accelerator_models: The models of the section on accelerators: names in
      `MODELS`, or models with options.
    accelerator_clients: The numbers of clients per round in that section.
    accelerator_python: The Python whose JAX knows the device; None for this
      one, on the processor.
    accelerator_device: JAX's name of the platform; None if JAX chooses.
    accelerator_group: How many clients run at once; None for the default.
    matmul_precision: The precision of products in the JAX runtime and in plain
      JAX.
    record_folder: A folder in which to record that section's programs, instead
      of measuring them.
    records: The findings, as JSON lines.
    notes: Sentences that a reader of the tables needs.
  """

  settings: workload.Settings
  contestants: Sequence[str] = CONTESTANTS
  models: Sequence[str] = MODELS
  kinds: Sequence[str] = workload.KINDS
  repetitions: int = 3
  pythons: Mapping[str, str] = dataclasses.field(default_factory=dict)
  square: int = 2048
  rate_seconds: float = 1.0
  cohort_sizes: Tuple[int, ...] = (10, 100, 1000)
  starts: int = 2
  # Of 4.70 and 18.79 million parameters.
  noise_models: Tuple[str, ...] = ('cifg:size=small', 'cifg:size=large')
  noise_mechanisms: Tuple[str, ...] = MECHANISMS
  noise_vocab_size: int = 4004
  noise_rounds: int = 2048
  noise_dense_rounds: int = 128
  noise_rows: int = 8
  attention_sizes: Tuple[str, ...] = ('size=small', 'size=large')
  attention_num_words: int = 4000
  large_models: Tuple[str, ...] = tuple(
    f'{model}:size=large'
    for model in (
      'lstm',
      'cifg',
      'si_cifg',
      'transformer',
      'si_transformer',
      'conformer',
      'si_conformer',
    )
  )
  partial_model: str = 'transformer:size=large'
  partial_clients: int = 10
  partial_batches: int = 4
  # Of 4.05, 18.8 and 21 million parameters.
  accelerator_models: Tuple[str, ...] = (
    'lstm',
    'cifg:size=large',
    'transformer:size=large',
  )
  accelerator_clients: Tuple[int, ...] = (10, 100, 1000)
  accelerator_python: Optional[str] = None
  accelerator_device: Optional[str] = None
  accelerator_group: Optional[int] = None
  matmul_precision: str = 'default'
  record_folder: Optional[str] = None
  records: List[Dict[str, Any]] = dataclasses.field(default_factory=list)
  notes: List[str] = dataclasses.field(default_factory=list)

  def record(self, record: str, **fields: Any) -> None:
    """Keeps a finding."""
    self.records.append({'record': record, **fields})

  def found(self, record: str, **fields: Any) -> List[Dict[str, Any]]:
    """Returns the records of a kind whose fields have these values."""
    return [
      entry
      for entry in self.records
      if entry['record'] == record
      and all(entry.get(key) == value for key, value in fields.items())
    ]

  def note(self, text: str) -> None:
    """Adds a sentence for the reader, without duplicates."""
    if text not in self.notes:
      self.notes.append(text)

  def leave_out(self, contestant: str, reason: object) -> None:
    """Excludes a contestant from further measurements."""
    self.note(f'{contestant} is left out: {reason}')
    self.contestants = [c for c in self.contestants if c != contestant]

  def present(self, names: Sequence[str]) -> List[str]:
    """Returns the contestants among `names` that take part."""
    return [name for name in names if name in self.contestants]

  def child(
    self,
    name: str,
    module: str,
    fields: Mapping[str, Any],
    *,
    python: str = sys.executable,
  ) -> protocol.Child:
    """Starts a child process; its standard error goes to a log file.

    Args:
      name: The name in messages.
      module: The module in `experiments`.
      fields: Further fields of its request; they override the settings.
      python: The interpreter.
    """
    log = f'{module.rpartition(".")[2]}_{name}.log'.replace(' ', '_')
    return protocol.Child(
      name,
      f'experiments.{module}',
      {**self.settings.as_json(), **fields},
      log=os.path.join(self.settings.folder, log),
      python=python,
    )


def progress(text: str) -> None:
  """Reports progress on standard error."""
  print(text, file=sys.stderr, flush=True)
