"""Kills runs at random moments, and compares their end with an unkilled one's.

  python -m tests.soak --rounds=200 --kills=100

A private and another recipe are trained, killed by SIGKILL and started again;
exports likewise. The end must equal that of a run that was never killed, to the
bit, and leave no temporary files or processes.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from tests import tiny

_COMMON: Mapping[str, Any] = {
  'model': 'si_cifg:units=16,embedding_size=8',
  'clients_per_round': 3,
  'num_validation_examples': 64,
  'rounds_per_eval': 4,
  'rounds_per_checkpoint': 3,
}
RECIPES: Mapping[str, Mapping[str, Any]] = {
  'mean': _COMMON,
  'private': {
    **_COMMON,
    'task': 'synthetic:num_clients=200',
    'aggregator': 'blt:num_buffers=2',
    'participation': 'min_separation',
    'min_separation': 4,
    'clip_norm': 0.5,
    'noise_multiplier': 1.0,
    'noise_seed': 5,
    'server_optimizer': 'sgdm',
  },
}
# Files that runs and exports keep although their names begin with a dot.
_KEPT = {'.lock'}
_POLL_SECS = 0.002


def _start(binary: str, *arguments: Any) -> subprocess.Popen:
  return subprocess.Popen(
    tiny.command(binary, *arguments),
    cwd=tiny.ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    start_new_session=True,
  )


def _num_rows(folder: pathlib.Path) -> int:
  try:
    return len((folder / 'metrics.csv').read_text().splitlines())
  except FileNotFoundError:
    return 0


def _names(folder: pathlib.Path) -> set[str]:
  return set(os.listdir(folder)) if folder.is_dir() else set()


def _moment(
  folder: pathlib.Path, generator: random.Random
) -> tuple[str, Callable[[], bool], float]:
  """Draws the moment of a kill: its kind, a condition and a delay."""
  kind = generator.choice(['start-up', 'rounds', 'rounds', 'checkpoint'])
  if kind == 'start-up':
    return kind, lambda: True, generator.uniform(0, 10)
  if kind == 'checkpoint':
    saved = _names(folder / 'checkpoints')
    # A temporary file that is being written counts.
    return (
      kind,
      lambda: bool(_names(folder / 'checkpoints') - saved),
      generator.uniform(0, 0.01),
    )
  rows = _num_rows(folder) + generator.randint(1, 5)
  return kind, lambda: _num_rows(folder) >= rows, generator.uniform(0, 0.2)


def _end(process: subprocess.Popen) -> None:
  """Waits for a process; raises if it failed or has left another."""
  _, errors = process.communicate(timeout=600)
  if process.returncode not in (0, -signal.SIGKILL):
    raise AssertionError(
      f'It ended with {process.returncode}: {errors.decode()[-2000:]}'
    )
  for _ in range(100):
    try:
      os.killpg(process.pid, 0)
    except ProcessLookupError:
      return
    time.sleep(0.05)
  raise AssertionError(f'Processes of the group {process.pid} are left.')


def _kill(
  process: subprocess.Popen, awaited: Callable[[], bool], secs: float
) -> bool:
  """Kills a process; returns whether it had not ended before."""
  while process.poll() is None and not awaited():
    time.sleep(_POLL_SECS)
  try:
    process.wait(secs)
  except subprocess.TimeoutExpired:
    process.send_signal(signal.SIGKILL)
  _end(process)
  return process.returncode == -signal.SIGKILL


def _leftovers(folder: pathlib.Path) -> list[str]:
  return [
    str(path)
    for path in folder.rglob('*')
    if (path.name.startswith('.') and path.name not in _KEPT)
    or '_temp' in path.name
  ]


def soak(
  recipe: str, root: pathlib.Path, *, rounds: int, kills: int, seed: int
) -> dict[str, int]:
  """Kills a run, and its exports, and checks their end.

  Args:
    recipe: A name of `RECIPES`.
    root: The folder for the runs.
    rounds: The rounds of the run.
    kills: The number of kills; a tenth of them, at least one, in exports.
    seed: The seed of the moments.

  Returns:
    The number of kills at each kind of moment.

  Raises:
    AssertionError: If anything differs from an uninterrupted run, or is left.
  """
  generator = random.Random(seed)
  settings = {**RECIPES[recipe], 'total_rounds': rounds}

  def train(name: str) -> subprocess.Popen:
    flags = tiny.tiny_flags(name, **settings)
    return _start('train', *flags, f'--root_output_dir={root}')

  _end(train('whole'))
  killed = root / 'killed'
  counts: collections.Counter[str] = collections.Counter()
  of_exports = max(1, kills // 10)
  while sum(counts.values()) < kills - of_exports:
    kind, awaited, secs = _moment(killed, generator)
    if not _kill(train('killed'), awaited, secs):
      break  # All rounds are done.
    counts[kind] += 1
  _end(train('killed'))
  tiny.assert_same_run(killed, root / 'whole')

  output = root / 'exported'
  export = [f'--run={killed}', f'--output={output}']
  for _ in range(of_exports):
    process = _start('export', *export)
    if _kill(process, lambda: True, generator.uniform(0, 15)):
      counts['export'] += 1
  _end(_start('export', *export))
  json.loads((output / 'export.json').read_text())
  left = [*_leftovers(killed), *_leftovers(output)]
  assert not left, f'Temporary files are left: {left}'
  return dict(counts)


def main() -> None:
  """Runs the chosen recipes, or all, and prints the moments of kills."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--rounds', type=int, default=200)
  parser.add_argument('--kills', type=int, default=100)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--recipe', choices=tuple(RECIPES), action='append')
  given = parser.parse_args()
  lost = 0
  for recipe in given.recipe or RECIPES:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
      try:
        counts = soak(
          recipe,
          pathlib.Path(folder),
          rounds=given.rounds,
          kills=given.kills,
          seed=given.seed,
        )
      except AssertionError as error:
        lost += 1
        print(f'{recipe}: LOST: {error}', flush=True)
      else:
        secs = time.monotonic() - start
        print(f'{recipe}: killed at {counts} in {secs:.0f} s', flush=True)
  print(f'{lost} lost')
  sys.exit(bool(lost))


if __name__ == '__main__':
  main()
