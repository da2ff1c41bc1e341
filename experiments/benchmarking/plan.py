"""What a run of the benchmark is to do, and what it has found."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from experiments.benchmarking import workload

CONTESTANTS = ('local', 'ray', 'tff', 'fedjax', 'pfl')
MODELS = ('lstm', 'cifg', 'si_cifg')
# The first clips alone.
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
  """The choices of a run; records and notes gather here.

  Attributes:
    settings: The shape of the work.
    contestants: Who takes part, of `CONTESTANTS`.
    models: Which models, of `MODELS`; others than us have `lstm` only.
    kinds: Which clients, of `workload.KINDS`.
    repetitions: How often each round is measured.
    pythons: The interpreters of `fedjax` and `pfl`.
    square: The size of the largest matrix product.
    rate_seconds: How long a rate is measured.
    cohort_sizes: The cohorts of the section on memory.
    starts: How often a fresh start is measured.
    noise_models: The models of the section on noise, as in `--model`.
    noise_mechanisms: The mechanisms, as in `--aggregator`; options here may
      also set what flags of their own set there.
    noise_vocab_size: The models' number of ids.
    noise_rounds: How many rounds the mechanisms are made for.
    noise_dense_rounds: The same of the dense one, slow to optimise.
    noise_rows: Rounds that make more rows of z are not measured.
    attention_sizes: The options of the Transformers beside stock Keras.
    attention_num_words: The words of these and of the large models.
    large_models: The models whose rounds and memory are measured.
    partial_model: The model of the section on partial training.
    partial_clients: Its clients a round.
    partial_batches: The batches of each.
    environment: Variables for our own child processes.
    records: What was found, as JSON lines.
    notes: What a reader must know beside the tables.
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
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  records: List[Dict[str, Any]] = dataclasses.field(default_factory=list)
  notes: List[str] = dataclasses.field(default_factory=list)

  def record(self, record: str, **fields: Any) -> None:
    """Keeps a finding."""
    self.records.append({'record': record, **fields})

  def found(self, record: str, **fields: Any) -> List[Dict[str, Any]]:
    """Returns the findings of a sort whose fields have these values."""
    return [
      entry
      for entry in self.records
      if entry['record'] == record
      and all(entry.get(key) == value for key, value in fields.items())
    ]

  def note(self, text: str) -> None:
    """Keeps a sentence for the reader, once."""
    if text not in self.notes:
      self.notes.append(text)

  def leave_out(self, contestant: str, reason: object) -> None:
    """Takes a contestant out of what is still to be measured."""
    self.note(f'{contestant} is left out: {reason}')
    self.contestants = [c for c in self.contestants if c != contestant]

  def present(self, names: Sequence[str]) -> List[str]:
    """Returns those of some contestants that take part."""
    return [name for name in names if name in self.contestants]

  def log_file(self, name: str) -> str:
    """Returns where a child's standard error goes."""
    return os.path.join(self.settings.folder, f'{name.replace(" ", "_")}.log')


def progress(text: str) -> None:
  """Tells whoever waits what is being done."""
  print(text, file=sys.stderr, flush=True)
