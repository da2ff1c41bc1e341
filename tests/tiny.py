"""Tiny experiments: the one factory of configurations for tests."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import os
import pathlib
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Union

import numpy as np
from absl import flags as absl_flags

from si_federated import config, flags

ROOT = pathlib.Path(__file__).parents[1]
TIMINGS = frozenset(
  {'round_secs', 'eval_secs', 'secs_total', 'clients_per_sec'}
)
FLAGS = {
  'task': 'synthetic:num_clients=30',
  'model': 'cifg:units=8,embedding_size=4',
  'vocab_size': 20,
  'sequence_length': 6,
  'clients_per_round': 2,
  'total_rounds': 2,
  'num_validation_examples': 16,
}


def tiny_config(name: str = 'x', **changes: Any) -> config.ExperimentConfig:
  """Returns the configuration of a run that takes a few seconds.

  Args:
    name: Its name.
    **changes: Fields of the configuration that differ from `FLAGS`; parts as
      on the command line, such as `cifg:units=8`.
  """

  def value_of(key: str, value: Any) -> Any:
    parse = getattr(getattr(config.ExperimentConfig, key, None), 'parse', None)
    return parse(value) if parse and isinstance(value, str) else value

  values = {**FLAGS, **changes}
  return config.ExperimentConfig(
    name, **{key: value_of(key, value) for key, value in values.items()}
  )


def tiny_flags(name: str = 'x', **changes: Any) -> list[str]:
  """Returns the same as command-line arguments."""
  values = {'experiment_name': name, **FLAGS, **changes}
  return [f'--{key}={value}' for key, value in values.items()]


def config_from_flags(*arguments: str) -> config.ExperimentConfig:
  """Returns the configuration that command-line arguments stand for."""
  values = absl_flags.FlagValues()
  names = [field.name for field in dataclasses.fields(config.ExperimentConfig)]
  flags.define_config_flags(names, values)
  values(['x', *arguments])
  return flags.experiment_from_flags(values)


def train_a_round(built: Any) -> tuple[Any, Any, dict[str, float]]:
  """Trains a round of a built experiment, which must change its weights.

  Returns:
    The trained weights before and after it, and an evaluation after it.
  """
  state = built.process.initialize()
  before = built.process.get_model_weights(state).trainable
  output = built.process.next(state, built.sample_cohort(1))
  weights = built.process.get_model_weights(output.state)
  after = weights.trainable
  assert np.isfinite(output.metrics['client_work']['train']['loss'])
  assert any(not np.array_equal(a, b) for a, b in zip(before, after))
  return before, after, built.evaluate(weights)


def command(binary: str, *args: Any) -> list[str]:
  """Returns the command of a binary."""
  return [sys.executable, '-m', f'experiments.{binary}', *map(str, args)]


def run_binary(
  binary: str, *args: Any, **options: Any
) -> subprocess.CompletedProcess:
  """Runs a binary in a process of its own."""
  return subprocess.run(
    command(binary, *args),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
    **options,
  )


def read_rows(folder: Union[str, os.PathLike]) -> list[dict[str, str]]:
  """Returns the rows of a run's metrics without timings."""
  with open(os.path.join(folder, 'metrics.csv'), newline='') as file:
    return [
      {key: value for key, value in row.items() if key not in TIMINGS}
      for row in csv.DictReader(file)
    ]


def read_newest_checkpoint(
  folder: Union[str, os.PathLike],
) -> dict[str, np.ndarray]:
  """Returns the arrays of a run's newest checkpoint by name."""
  newest = max(pathlib.Path(folder, 'checkpoints').glob('*.npz'))
  with np.load(newest) as arrays:
    return {name: arrays[name] for name in arrays.files if name != 'facts'}


def assert_same_run(
  one: Union[str, os.PathLike], other: Union[str, os.PathLike]
) -> None:
  """Asserts that two runs agree to the bit, timings left out."""
  assert read_rows(one) == read_rows(other)
  arrays, expected = read_newest_checkpoint(one), read_newest_checkpoint(other)
  assert list(arrays) == list(expected)
  for name, value in expected.items():
    np.testing.assert_array_equal(arrays[name], value, err_msg=name)


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[None]:
  """Lets no file grow beyond a number of bytes, as a full disk would."""
  before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
