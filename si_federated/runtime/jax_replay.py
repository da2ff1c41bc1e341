"""Replays recorded rounds of clients, and measures them.

  python FOLDER/replay.py

This needs only JAX and NumPy, and runs on the device that JAX chooses;
`JAX_PLATFORMS=cpu`, for example, chooses another one. It compares the sums over
clients with the recorded ones, and prints a row for each round: the seconds
from arrays in the host's memory to sums there. If the recording has a
`floor.py`, plain JAX trains the same clients as well.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import io
import json
import os
import statistics
import sys
import time
from typing import Any

import numpy as np

VERSION = 2
INDEX = 'recording.json'
DIGITS = 32
# The largest relative deviation of sums, by precision of matrix products.
_TOLERANCES = {'highest': 1e-3, 'high': 3e-2, 'default': 3e-2}
_FLOOR = 'floor.py'


class RecordingError(ValueError):
  """A recording can't be used; the message says why."""


class Reader:
  """A recording."""

  def __init__(self, folder):
    """Reads a recording's list of rounds.

    Args:
      folder: The recording's folder.

    Raises:
      RecordingError: If there is no recording, or it is damaged.
    """
    self.folder = folder
    try:
      index = json.loads(self._read(INDEX))
      version, self.rounds = index['version'], index['rounds']
    except (KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
      if isinstance(error, RecordingError):
        raise
      raise RecordingError(self._damaged(INDEX)) from error
    if version != VERSION:
      raise RecordingError(
        f'{os.path.join(folder, INDEX)} has version {version}, not {VERSION}: '
        'use the replay.py that was recorded with it.'
      )

  def _damaged(self, name):
    return (
      f'{os.path.join(self.folder, name)} is damaged or cut short: copy the '
      'recording again, or record it again.'
    )

  def _read(self, name):
    path = os.path.join(self.folder, name)
    try:
      with open(path, 'rb') as file:
        return file.read()
    except OSError as error:
      raise RecordingError(
        f'{path} of the recording cannot be read ({error.strerror}): copy the '
        'recording again, or record it again.'
      ) from error

  def content(self, name):
    """Returns the bytes of a stored file.

    Raises:
      RecordingError: If the file is missing or has changed.
    """
    content = self._read(name)
    digest = hashlib.sha256(content).hexdigest()[:DIGITS]
    if os.path.basename(name).partition('.')[0] != digest:
      raise RecordingError(self._damaged(name))
    return content

  def arrays(self, names):
    """Returns stored arrays."""
    return [
      np.load(io.BytesIO(self.content(name)), allow_pickle=False)
      for name in names
    ]


def _import_sibling(name):
  """Imports a module from this file's folder."""
  here = os.path.dirname(os.path.abspath(__file__))
  spec: Any = importlib.util.spec_from_file_location(
    name, os.path.join(here, f'{name}.py')
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _largest(array):
  """Returns the largest finite magnitude, 0 if there is none."""
  return np.max(np.abs(array), initial=0.0, where=np.isfinite(array))


def deviation(got, expected):
  """Returns the largest relative difference between arrays.

  Numbers are compared relative to their own size, but entries of arrays
  relative to the largest entry of all arrays: some gradients, such as that of a
  key's bias, are zero up to rounding. NaN equals an expected NaN.
  """
  pairs = [
    (np.asarray(one, np.float64), np.asarray(other, np.float64))
    for one, other in zip(got, expected)
  ]
  if any(one.shape != other.shape for one, other in pairs):
    return float('inf')
  common = max((_largest(other) for _, other in pairs if other.ndim), default=0)
  worst = 0.0
  for one, other in pairs:
    equal = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid='ignore'):
      different = np.where(equal, 0.0, np.abs(one - other))
    different = np.where(np.isnan(different), np.inf, different)
    largest = np.max(different, initial=0.0)
    scale = common if other.ndim else _largest(other)
    worst = max(worst, float(largest / scale if scale else largest))
  return worst


def with_clients(groups, masks):
  """Returns groups with other masks of clients; see `client_arrays.Group`."""
  return [[*arrays[:-1], mask] for arrays, mask in zip(groups, masks)]


class _Programs:
  """The recorded programs of a round, loaded in the worker."""

  def __init__(self, worker, reader, entry, platform):
    self._worker = worker
    self._keys = [group['programs'][platform] for group in entry['groups']]
    self.compile_secs = 0.0
    self.bytes = None
    for key in dict.fromkeys(self._keys):
      content = np.frombuffer(reader.content(key), np.uint8)
      try:
        worker.load({'key': key}, [content])
      except ValueError as error:
        raise RecordingError(f'{error}.') from error
      facts, _ = worker.compile({'key': key, 'device': 0}, ())
      self.compile_secs += facts['seconds']
      if facts['bytes'] is not None:
        self.bytes = max(self.bytes or 0, facts['bytes'])
    self._broadcast = reader.arrays(entry['broadcast'])
    self._zeros = reader.arrays(entry['zeros'])

  def run(self, groups):
    number = len(self._broadcast)
    self._worker.begin(
      {'num_broadcast': number, 'num_devices': 1},
      [*self._broadcast, *self._zeros],
    )
    for key, arrays in zip(self._keys, groups):
      self._worker.add({'key': key, 'device': 0}, arrays)
    return self._worker.end({}, ())[1]


def _timed(run, groups, seconds):
  began = time.perf_counter()
  run(groups)
  seconds.append(time.perf_counter() - began)


def _measure_round(reader, entry, worker, floor, repetitions, platform):
  """Returns the rows of a round."""
  masks = reader.arrays(entry['checked'])
  groups = [reader.arrays(group['arrays']) for group in entry['groups']]
  checked = with_clients(groups, masks)
  contestants = {}
  programs = _Programs(worker, reader, entry, platform)
  contestants['recorded programs'] = (
    programs.run,
    programs.compile_secs,
    programs.bytes,
    deviation(programs.run(checked), reader.arrays(entry['sums'])),
  )
  if floor is not None and 'floor' in entry:
    given = entry['floor']
    plain = floor(
      reader.arrays(given['weights']),
      groups,
      matmul_precision=entry['matmul_precision'],
      **given['options'],
    )
    contestants['plain JAX'] = (
      plain.run,
      plain.compile_secs,
      plain.bytes,
      deviation(plain.run(checked), reader.arrays(given['update'])),
    )
  seconds: Any = {name: [] for name in contestants}
  for number in range(repetitions + 1):
    for name, (run, *_) in contestants.items():
      # The first run of each is a warm-up.
      _timed(run, groups, seconds[name] if number else [])
  medians = {name: statistics.median(times) for name, times in seconds.items()}
  tolerance = _TOLERANCES[entry['matmul_precision']]
  rows = []
  for name, (_, compile_secs, size, difference) in contestants.items():
    ratio = None
    if 'plain JAX' in medians:
      ratio = medians[name] / medians['plain JAX']
    rows.append(
      {
        **entry['facts'],
        'matmul_precision': entry['matmul_precision'],
        'contestant': name,
        'num_clients': entry['num_clients'],
        'num_steps': entry['num_steps'],
        'seconds': seconds[name],
        'round_seconds': medians[name],
        'ms_a_step': medians[name] * 1e3 / max(1, entry['num_steps']),
        'compile_seconds': compile_secs,
        'bytes': size,
        'relative_to_floor': ratio,
        'deviation': difference,
        'agrees': difference <= tolerance,
      }
    )
  return rows


def device_name(jax):
  """Returns the device that JAX has chosen, with JAX's version."""
  device = jax.devices()[0]
  return f'{device.device_kind} ({device.platform}), JAX {jax.__version__}'


def cells(row):
  """Returns a row's cells, by column."""
  size = row['bytes']
  ratio = row['relative_to_floor']
  return {
    **{
      key: str(row[key])
      for key in ('model', 'clients', 'contestant')
      if key in row
    },
    'clients a round': str(row['num_clients']),
    'client-steps': str(row['num_steps']),
    's a round': f'{row["round_seconds"]:.4f}',
    'ms a client-step': f'{row["ms_a_step"]:.3f}',
    'compiling, s': f'{row["compile_seconds"]:.1f}',
    'device memory, GiB': '' if size is None else f'{size / 2**30:.2f}',
    'time / floor': '' if ratio is None else f'{ratio:.2f}',
    'deviation': f'{row["deviation"]:.0e}'
    + ('' if row['agrees'] else ' (TOO LARGE)'),
  }


def replay(folder, repetitions, report):
  """Runs all rounds of a recording.

  Args:
    folder: The recording.
    repetitions: The number of measurements of each round.
    report: Called with the device's name, then with each row.

  Returns:
    Whether all sums agree with the recorded ones.

  Raises:
    RecordingError: If the recording is damaged, or not for this device.
  """
  reader = Reader(folder)
  jax_worker = _import_sibling('jax_worker')
  import jax

  floor = None
  if os.path.exists(os.path.join(folder, _FLOOR)):
    floor = functools.partial(
      _import_sibling('floor').Floor, jax, memory_of=jax_worker.compiled_memory
    )
  worker = jax_worker.Worker(jax)
  platform = jax.devices()[0].platform
  platform = {'gpu': 'cuda'}.get(platform, platform)
  report({'device': device_name(jax)})
  agrees = True
  for entry in reader.rounds:
    platforms = sorted({p for g in entry['groups'] for p in g['programs']})
    if platform not in platforms and platforms:
      raise RecordingError(
        f'The recording has programs for {", ".join(platforms)}, and JAX has '
        f'chosen {platform}: set JAX_PLATFORMS to one of them.'
      )
    for row in _measure_round(
      reader, entry, worker, floor, repetitions, platform
    ):
      agrees &= row['agrees']
      report(row)
  return agrees


def main():
  """Replays the recording that contains this file."""
  parser = argparse.ArgumentParser(
    description='Runs recorded rounds on this machine, and measures them.'
  )
  parser.add_argument(
    '--repetitions', type=int, default=5, help='Measurements of each round.'
  )
  parser.add_argument(
    '--json', action='store_true', help='Print lines of JSON, not a table.'
  )
  options = parser.parse_args()
  if options.repetitions < 1:
    parser.error('--repetitions must be 1 or more.')
  header = None

  def report(row):
    nonlocal header
    if options.json:
      more = {} if 'device' in row else {'cells': cells(row)}
      print(json.dumps({**row, **more}), flush=True)
    elif 'device' in row:
      print(f'# {row["device"]}\n', flush=True)
    else:
      shown = cells(row)
      if header is None:
        header = list(shown)
        print(f'| {" | ".join(header)} |')
        print(f'|{"|".join(" --- " for _ in header)}|')
      print(
        f'| {" | ".join(shown.get(name, "") for name in header)} |', flush=True
      )

  here = os.path.dirname(os.path.abspath(__file__))
  sys.dont_write_bytecode = True  # the recording stays as it was
  try:
    if not replay(here, options.repetitions, report):
      print(
        'Sums differ from the recorded ones by more than rounding: this device '
        'or its JAX cannot be trusted with this program.',
        file=sys.stderr,
      )
      return 1
  except RecordingError as error:
    print(f'ERROR: {error}', file=sys.stderr)
    return 1
  except ImportError as error:
    print(f'ERROR: {error}; install jax and numpy here.', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
