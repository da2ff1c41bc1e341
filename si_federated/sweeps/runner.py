"""Trains the runs of a sweep in parallel processes and monitors them."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import dataclasses
import json
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Union

from si_federated import files
from si_federated.config import ExperimentConfig
from si_federated.sweeps.plan import Plan
from si_federated.training import signals

WAITING, RUNNING, FINISHED, FAILED = 'waiting', 'running', 'finished', 'failed'
LOGS = 'logs'
_POLL_SECS = 0.2
_LOOK_SECS = 2.0
# A stopped run saves its state, which takes time for a large model.
_STOP_SECS = 60.0
_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass
class Run:
  """A run and its progress.

  Attributes:
    settings: Its settings.
    folder: Its folder.
    log: The file for its process's output.
    state: One of the states above.
    round_num: The last round of its metrics.
    perplexity: The last evaluation perplexity, of language models.
    accuracy: The last evaluation accuracy.
    error: Why it failed, in a sentence.
    log_start: The offset in `log` of its last process's output.
    secs: The time that its processes have run in this sweep.
  """

  settings: ExperimentConfig
  folder: str
  log: str
  state: str = WAITING
  round_num: int = 0
  perplexity: float | None = None
  accuracy: float | None = None
  error: str = ''
  log_start: int = 0
  secs: float = 0.0

  @property
  def name(self) -> str:
    """The run's name."""
    return self.settings.experiment_name

  def refresh(self) -> None:
    """Reads the progress from the run's folder."""
    try:
      path = os.path.join(self.folder, 'metrics.csv')
      with open(path, encoding='utf-8', newline='') as file:
        for row in csv.DictReader(file):
          self.round_num = int(row['round_num'])
          if row.get('eval/perplexity'):
            self.perplexity = float(row['eval/perplexity'])
          if row.get('eval/accuracy'):
            self.accuracy = float(row['eval/accuracy'])
    except (OSError, ValueError, KeyError, TypeError):
      # The file is still missing, or garbled, which the run itself will report.
      pass


def find_runs(plan: Plan, folder: Union[str, os.PathLike]) -> list[Run]:
  """Finds the progress of each run of a plan.

  Args:
    plan: The plan.
    folder: The folder of the sweep.

  Returns:
    The runs in the plan's order. Runs with a summary and the settings of the
    plan are finished.
  """
  runs = []
  for settings in plan.runs:
    name = settings.experiment_name
    run = Run(
      settings,
      folder=os.path.join(folder, name),
      log=os.path.join(folder, LOGS, f'{name}.txt'),
    )
    run.refresh()
    if _has_finished(run):
      run.state = FINISHED
    runs.append(run)
  return runs


def _has_finished(run: Run) -> bool:
  try:
    with open(os.path.join(run.folder, 'summary.json'), 'rb') as file:
      json.load(file)
    path = os.path.join(run.folder, 'config.json')
    with open(path, encoding='utf-8') as file:
      held = ExperimentConfig.from_json(file.read())
  except (OSError, ValueError):
    return False
  # Training itself rejects the folder of another experiment.
  return not run.settings.differences(held)


def _has_diverged(run: Run) -> bool:
  try:
    with open(os.path.join(run.folder, 'summary.json'), 'rb') as file:
      return 'diverged_since' in json.load(file)
  except (OSError, ValueError):
    return False


def run_all(
  runs: Sequence[Run],
  command: Callable[[Run], Sequence[str]],
  *,
  num_jobs: int,
  threads_per_run: int,
  changed: Callable[[Run | None], None],
) -> None:
  """Trains all unfinished runs; a failing run does not stop the others.

  Each process has its own processors, so that its libraries use no others:
  those that no other sweep of this user has taken, if there are any.

  Args:
    runs: The runs; they are updated as they progress.
    command: Returns the command of a run.
    num_jobs: Number of parallel processes.
    threads_per_run: Number of processors of each.
    changed: Called with a run when its state has changed, and with None every
      few seconds.

  Raises:
    KeyboardInterrupt: On an interrupt or SIGTERM, once the runs have saved
      their state.
  """
  waiting = [run for run in runs if run.state != FINISHED]
  active: dict[subprocess.Popen, tuple[Run, frozenset[int], float]] = {}
  looked = -math.inf
  with (
    signals.as_interrupts(),
    take_processors(num_jobs, threads_per_run) as processors,
  ):
    free = list(reversed(processors))
    try:
      while waiting or active:
        while waiting and free:
          run, cores = waiting.pop(0), free.pop()
          process = _start(run, command(run), cores)
          active[process] = run, cores, time.monotonic() - run.secs
          run.state = RUNNING
          changed(run)
        time.sleep(_POLL_SECS)
        now = time.monotonic()
        for process in [one for one in active if one.poll() is not None]:
          run, cores, _ = active.pop(process)
          free.append(cores)
          _end(run, process.returncode)
          changed(run)
        if now - looked >= _LOOK_SECS:
          looked = now
          for run, _, start in active.values():
            run.secs = now - start
            run.refresh()
          changed(None)
    except BaseException:
      _stop(list(active))
      for run, _, _ in active.values():
        run.refresh()
        run.state = WAITING
      raise


@contextlib.contextmanager
def take_processors(
  num_jobs: int, threads_per_run: int
) -> Iterator[list[frozenset[int]]]:
  """Chooses processors, preferably those that no other sweep has taken.

  Without this, two sweeps beside each other would share the first processors
  and leave the others idle.

  Args:
    num_jobs: Number of parallel processes.
    threads_per_run: Number of processors of each.

  Yields:
    The processors of each process, which share them if there are too few; they
    are taken until the block ends.
  """
  taken: list[int] = []
  others: list[int] = []
  with contextlib.ExitStack() as locks:
    for core in sorted(os.sched_getaffinity(0)):
      if len(taken) < num_jobs * threads_per_run and _lock(core, locks):
        taken.append(core)
      else:
        others.append(core)
    cores = taken + others
    yield [
      frozenset(
        cores[(job * threads_per_run + i) % len(cores)]
        for i in range(threads_per_run)
      )
      for job in range(num_jobs)
    ]


def _lock(core: int, locks: contextlib.ExitStack) -> bool:
  name = f'si_federated-{os.getuid()}-processor-{core}.lock'
  try:
    # Closing the file, at the end of `locks`, unlocks it.
    file = open(os.path.join(tempfile.gettempdir(), name), 'a')  # noqa: SIM115
    files.try_lock(locks.enter_context(file))
  except (OSError, files.LockedError):
    return False
  return True


def _start(
  run: Run, command: Sequence[str], cores: frozenset[int]
) -> subprocess.Popen:
  os.makedirs(os.path.dirname(run.log), exist_ok=True)
  threads = str(len(cores))
  limits = {
    'TF_NUM_INTRAOP_THREADS': threads,
    'OMP_NUM_THREADS': threads,
    'OPENBLAS_NUM_THREADS': threads,
  }
  libc = ctypes.CDLL(None)

  def prepare() -> None:
    os.sched_setaffinity(0, cores)
    # If this process is killed, the run saves its state and ends, too.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

  with open(run.log, 'ab') as log:
    run.log_start = log.tell()
    return subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      env={**os.environ, **limits},
      # Only this process gets Ctrl-C; it then stops the others.
      start_new_session=True,
      preexec_fn=prepare,
    )


def _end(run: Run, code: int) -> None:
  run.refresh()
  # A run that diverged ends with an error, but its results are complete.
  if code == 0 or (code == 1 and _has_diverged(run)):
    run.state = FINISHED
    return
  run.state = FAILED
  last = _last_line(run.log, run.log_start)
  how = f'signal {-code}' if code < 0 else f'exit code {code}'
  run.error = last.removeprefix('error: ') if last else f'it ended with {how}'
  if code < 0:
    run.error = f'it was killed by {how}; its last output: {last or "none"}'


def _last_line(path: str, start: int) -> str:
  try:
    with open(path, 'rb') as file:
      file.seek(max(start, os.path.getsize(path) - 4096))
      lines = file.read().decode('utf-8', 'replace').split('\n')
  except OSError:
    return ''
  return next((line.strip() for line in reversed(lines) if line.strip()), '')


def _stop(processes: Sequence[subprocess.Popen]) -> None:
  """Makes the processes save and end; a second interrupt kills them."""
  for process in processes:
    process.terminate()
  deadline = time.monotonic() + _STOP_SECS
  try:
    for process in processes:
      process.wait(max(0.0, deadline - time.monotonic()))
  except (subprocess.TimeoutExpired, KeyboardInterrupt):
    for process in processes:
      process.kill()
    for process in processes:
      process.wait()


def progress(runs: Sequence[Run]) -> tuple[int, int]:
  """Returns the number of finished rounds, and of all rounds."""
  total = sum(run.settings.total_rounds for run in runs)
  done = sum(min(run.round_num, run.settings.total_rounds) for run in runs)
  return done, total
