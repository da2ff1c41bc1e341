"""The driver's handle on the process that owns an accelerator."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from si_federated.runtime import jax_worker

_END_SECS = 5.0


class WorkerError(RuntimeError):
  """The process that runs the clients failed."""


class OutOfMemoryError(Exception):
  """The device has too little memory for a program."""


class Process:
  """The process that owns the device.

  Attributes:
    facts: Its facts about the device; see `jax_worker.Worker.hello`.
  """

  def __init__(self, python: str | None, device: str | None):
    """Starts the process.

    Args:
      python: The path of its Python; by default the current one.
      device: JAX's name of the platform; by default JAX chooses, or the
        CPU if `python` is not given.

    Raises:
      ValueError: If the process does not start.
    """
    if python is None and device is None:
      device = 'cpu'
    python = (
      sys.executable
      if python is None
      else str(pathlib.Path(python).expanduser())
    )
    environment = dict(os.environ)
    # Its Python may differ from this one.
    for name in ('PYTHONPATH', 'PYTHONHOME'):
      environment.pop(name, None)
    if device is not None:
      environment['JAX_PLATFORMS'] = device
    try:
      self._process = subprocess.Popen(
        [python, jax_worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
      )
    except OSError as error:
      raise ValueError(
        f'The Python {python!r} of --runtime=jax does not start '
        f'({error.strerror}): give the path of a Python that has JAX.'
      ) from error
    self._finalizer = weakref.finalize(self, _end, self._process)
    try:
      self.facts, _ = self.ask({'command': 'hello'})
    except WorkerError as error:
      raise ValueError(
        f'JAX does not start in {python}: {error}. Install JAX there, or name '
        'another Python or device.'
      ) from error

  def ask(
    self, message: dict[str, Any], arrays: Sequence[np.ndarray] = ()
  ) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Sends a message and returns the answer.

    Raises:
      WorkerError: If the process has ended, or reports an error.
    """
    try:
      jax_worker.send(self._process.stdin, message, arrays)
      answer, results = jax_worker.receive(self._process.stdout)
    except (EOFError, OSError, ValueError) as error:  # of a closed pipe, too
      status = _end(self._process)
      raise WorkerError(
        f'The JAX process has ended (status {status})'
      ) from error
    except BaseException:
      # After an interrupt, the next message would get this one's answer.
      _end(self._process)
      raise
    if 'error' in answer:
      if 'RESOURCE_EXHAUSTED' in answer['error']:
        raise OutOfMemoryError(answer['error'])
      raise WorkerError(f'{answer["kind"]}: {answer["error"]}')
    return answer, results

  @property
  def has_ended(self) -> bool:
    """Whether the process has ended."""
    return self._process.poll() is not None

  @property
  def pid(self) -> int:
    """The process's number."""
    return self._process.pid


def _end(process: subprocess.Popen) -> int | None:
  """Ends a worker by closing its input, and returns its exit status."""
  with contextlib.suppress(OSError):
    if process.stdin is not None:
      process.stdin.close()
  try:
    return process.wait(_END_SECS)
  except subprocess.TimeoutExpired:
    process.kill()
    return process.wait()
