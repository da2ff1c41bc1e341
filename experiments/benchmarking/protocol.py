"""The benchmark's protocol with its child processes: JSON lines on pipes.

It uses only the standard library: children may run under another Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from typing import IO, Any, Callable, Dict, Mapping, Optional

_PR_SET_PDEATHSIG = 1
_TAIL = 600


class ChildError(RuntimeError):
  """A child process failed; the message has its name and its last output."""


def die_with_parent() -> None:
  """Asks the kernel to kill this process when its parent dies (Linux)."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(
  start: Callable[[Dict[str, Any]], Mapping[str, Any]],
) -> None:
  """Answers the parent's requests until it closes the pipe.

  The first line on standard input contains the settings, each further one a
  request `{"command": NAME, ...}`; the answer to a line is one line. Output of
  libraries to standard output is redirected to standard error.

  Args:
    start: Maps the settings to commands by name: functions of the request's
      other fields that return JSON values. The value at `about` is the answer
      to the settings.
  """
  answers = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)
  commands: Optional[Mapping[str, Any]] = None
  for line in sys.stdin:
    request = json.loads(line)
    try:
      if commands is None:
        commands = start(request)
        answer = commands['about']
      else:
        answer = commands[request.pop('command')](**request)
    except Exception as error:
      traceback.print_exc()
      lines = str(error).strip().split('\n')
      # TensorFlow's messages begin with "in user code:" and a trace.
      sentence = lines[-1 if lines[0].endswith(':') else 0].strip()
      answer = {'error': f'{type(error).__name__}: {sentence}'}
    answers.write(json.dumps(answer) + '\n')
    answers.flush()


class Child:
  """A process that runs a module of this checkout and answers requests.

  It leads a process group, so that all its descendants end with it; the kernel
  kills it if this process dies. Use it in a `with` block.
  """

  def __init__(
    self,
    name: str,
    module: str,
    settings: Mapping[str, Any],
    *,
    log: str,
    python: str = sys.executable,
    environment: Optional[Mapping[str, str]] = None,
  ):
    """Starts the process; `about()` waits until it is ready.

    Args:
      name: The process's name in messages.
      module: The module to run.
      settings: The first line that it receives.
      log: The file for its standard error.
      python: The interpreter.
      environment: Variables to set in addition to this process's.
    """
    root = os.path.dirname(
      os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    )
    self.name = name
    self._log = log
    self._about: Optional[Dict[str, Any]] = None
    # An exception raised by a signal during a fork would be lost.
    signals = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def prepare() -> None:
      die_with_parent()
      signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
      with open(log, 'wb') as errors:
        self._process = subprocess.Popen(
          [python, '-m', module],
          stdin=subprocess.PIPE,
          stdout=subprocess.PIPE,
          stderr=errors,
          cwd=root,
          env={**os.environ, 'PYTHONPATH': root, **(environment or {})},
          text=True,
          start_new_session=True,
          preexec_fn=prepare,
        )
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
      self._send(settings)
    except BaseException:
      self.close(at_once=True)
      raise

  def __enter__(self) -> Child:
    return self

  def __exit__(self, kind: Any, *_: Any) -> None:
    self.close(at_once=kind is not None)

  def about(self) -> Dict[str, Any]:
    """Waits until the child is ready.

    Returns:
      Facts about it.

    Raises:
      ChildError: It cannot start.
    """
    if self._about is None:
      self._about = self._receive()
    return self._about

  def ask(self, command: str, **fields: Any) -> Dict[str, Any]:
    """Sends a request and waits for its answer.

    Args:
      command: The command's name.
      **fields: Its arguments.

    Returns:
      The answer.

    Raises:
      ChildError: The command failed or the child has ended.
    """
    self.about()
    self._send({'command': command, **fields})
    return self._receive()

  def _send(self, line: Mapping[str, Any]) -> None:
    try:
      _pipe(self._process.stdin).write(json.dumps(line) + '\n')
      _pipe(self._process.stdin).flush()
    except OSError:
      raise ChildError(self._end()) from None

  def _receive(self) -> Dict[str, Any]:
    line = _pipe(self._process.stdout).readline()
    if not line:
      raise ChildError(self._end())
    answer = json.loads(line)
    if 'error' in answer:
      raise ChildError(f'{self.name}: {answer["error"]}')
    return answer

  def _end(self) -> str:
    code = self._process.wait()
    with open(self._log, encoding='utf-8', errors='replace') as log:
      lines = log.read()[-_TAIL:].strip().split('\n')
    return f'{self.name} ended with code {code}: {lines[-1]}'

  def close(self, *, at_once: bool = False) -> None:
    """Ends the child and all its descendants.

    Args:
      at_once: Whether to kill it instead of letting it finish.
    """
    process = self._process
    try:
      if not at_once:
        _pipe(process.stdin).close()
        process.wait(timeout=10)
    except (OSError, subprocess.TimeoutExpired):
      pass
    finally:
      _kill_group(process.pid)
      process.wait()
      for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
          _pipe(pipe).close()


def _pipe(pipe: Optional[IO[str]]) -> IO[str]:
  assert pipe is not None
  return pipe


def _kill_group(group: int) -> None:
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(group, signal.SIGKILL)
