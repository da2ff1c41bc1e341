"""Progress of training: tqdm's bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import collections
import contextlib
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Optional, TextIO

import tqdm

# Rounds over which speed and remaining time are estimated.
_RECENT_ROUNDS = 20
# Without a terminal, the time between lines grows with the run, so that a run
# of weeks writes hundreds of lines, not thousands.
_LOG_GROWTH = 0.02
_LIVE_SECS = 0.1
_LOG_SECS = 10.0


class _Bar(tqdm.tqdm):
  """A bar without a thread, and without a lock between processes."""

  monitor_interval = 0


_Bar.set_lock(threading.RLock())


class _Stream:
  """A stream that falls silent when it breaks, instead of raising."""

  def __init__(self, stream: Any):
    self._stream = stream
    self._broken = False

  @contextlib.contextmanager
  def _silenced(self):
    try:
      yield
    except (AttributeError, OSError, ValueError):
      self._broken = True

  def write(self, text: str) -> None:
    """Writes text, escaping characters that the stream cannot encode."""
    if self._broken:
      return
    with self._silenced():
      try:
        self._stream.write(text)
      except UnicodeEncodeError:
        self._stream.write(text.encode('ascii', 'backslashreplace').decode())
      self._stream.flush()

  def flush(self) -> None:
    """Does nothing, since `write` flushes."""

  def isatty(self) -> bool:
    """Returns whether the stream is a terminal."""
    try:
      return bool(self._stream.isatty())
    except (AttributeError, OSError, ValueError):
      return False

  def width(self) -> int:
    """Returns the number of columns that fit on a line."""
    columns = 0
    with contextlib.suppress(AttributeError, OSError, ValueError):
      columns = os.get_terminal_size(self._stream.fileno()).columns
    return max(1, (columns or shutil.get_terminal_size().columns) - 1)


class _Mark(NamedTuple):
  """One moment of the run."""

  secs: float
  round_num: int
  clients: int  # Of all rounds up to this one.


class Progress:
  """Shows the progress of training: round, loss, perplexity, speed, time left.

  On a terminal this is a bar; elsewhere (a pipe, a file) it is plain lines. A
  line shows the first round, the first one with a non-finite loss, the last
  one, and others at intervals of `min_interval_secs` or, if longer, 2 % of the
  elapsed time. A broken stream raises no error, and gets no text after the
  first failed write.

  ```
  with Progress(total_rounds=800) as progress:
    for round_num in range(1, 801):
      ...
      progress.update(round_num, loss, perplexity, clients=20)
  ```

  Args:
    total_rounds: The round at which training ends.
    start_round: The number of rounds already done, in a resumed run.
    stream: The output; None is standard error at the time of construction.
    min_interval_secs: The minimum time between two writes, in seconds; if None,
      0.1 on a terminal and 10 elsewhere.
    unit: The word for a round.
    clock: Returns the time in seconds; for tests.

  Raises:
    ValueError: If `start_round` is negative or `total_rounds` is below it.
  """

  def __init__(
    self,
    total_rounds: int,
    start_round: int = 0,
    stream: Optional[TextIO] = None,
    min_interval_secs: Optional[float] = None,
    *,
    unit: str = 'round',
    clock: Callable[[], float] = time.monotonic,
  ):
    if not 0 <= start_round <= total_rounds:
      raise ValueError(
        f'start_round must lie between 0 and total_rounds ({total_rounds}), '
        f'not {start_round}.'
      )
    self._total = total_rounds
    self._unit = unit
    self._stream = _Stream(sys.stderr if stream is None else stream)
    self._clock = clock
    self._start_round = self._shown_round = start_round
    self._marks = collections.deque(
      [_Mark(clock(), start_round, 0)], maxlen=_RECENT_ROUNDS + 1
    )
    self._start_secs = self._marks[0].secs
    self._shown_secs = -math.inf
    self._min_interval = min_interval_secs
    self._loss: Optional[float] = None
    self._loss_was_finite = True
    self._perplexity: Optional[float] = None
    self._accuracy: Optional[float] = None
    self._is_live = self._stream.isatty()
    self._bar: Optional[_Bar] = None

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *unused_error) -> None:
    self.close()

  def update(
    self,
    round_num: int,
    loss: Optional[float],
    perplexity: Optional[float] = None,
    clients: int = 0,
    accuracy: Optional[float] = None,
  ) -> None:
    """Records a finished round, and shows it if an update is due.

    Args:
      round_num: Number of rounds done, the first round being 1.
      loss: Training loss of the round, or None if there is none.
      perplexity: Evaluation perplexity if this round was evaluated; the last
        one given stays on the line.
      clients: The number of clients in the round.
      accuracy: Evaluation accuracy, shown if there is no perplexity; the last
        one given stays on the line.
    """
    now = self._clock()
    self._loss = loss
    if perplexity is not None:
      self._perplexity = perplexity
    if accuracy is not None:
      self._accuracy = accuracy
    self._marks.append(_Mark(now, round_num, clients + self._marks[-1].clients))
    # The first round traces and compiles, so that estimates ignore it once two
    # later rounds are known.
    if len(self._marks) == 4 and self._marks[0].round_num == self._start_round:
      self._marks.popleft()
    is_finite = loss is None or math.isfinite(loss)
    newly_broken = self._loss_was_finite and not is_finite
    self._loss_was_finite = self._loss_was_finite and is_finite
    if round_num >= self._total or newly_broken or self._is_due(now):
      self._show()

  def message(self, text: str) -> None:
    """Writes a separate line, above the bar if there is one."""
    if self._bar is not None:
      self._bar.clear()
    self._stream.write(text + '\n')
    if self._bar is not None:
      self._bar.refresh()

  def close(self) -> None:
    """Shows the last round if it isn't shown yet, and ends the bar."""
    if self._marks[-1].round_num != self._shown_round:
      self._show()
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  def _is_due(self, now: float) -> bool:
    interval = self._min_interval
    if self._is_live:
      interval = _LIVE_SECS if interval is None else interval
    else:
      interval = max(
        _LOG_SECS if interval is None else interval,
        _LOG_GROWTH * (now - self._start_secs),
      )
    return now - self._shown_secs >= interval

  def _show(self) -> None:
    self._shown_secs, self._shown_round, _ = self._marks[-1]
    first, *others = self._parts()
    if not self._is_live:
      self._stream.write('  '.join([first, *others]) + '\n')
      return
    if self._bar is None:
      self._bar = _Bar(
        total=self._total,
        initial=self._start_round,
        file=self._stream,
        ascii='.#',
        delay=1e-9,  # Draws nothing yet.
      )
    self._bar.n = self._shown_round
    self._bar.ncols = self._stream.width()
    self._bar.bar_format = '  '.join([first, '[{bar:20}]', *others])
    self._bar.refresh()

  def _parts(self) -> list[str]:
    """Returns the parts of the line, the most important first."""
    newest, oldest = self._marks[-1], self._marks[0]
    parts = [f'{self._unit} {newest.round_num}/{self._total}']
    if self._loss is not None:
      parts.append(f'loss {_number(self._loss, 3)}')
    if self._perplexity is not None:
      parts.append(f'perplexity {_number(self._perplexity, 1)}')
    elif self._accuracy is not None:
      parts.append(f'accuracy {self._accuracy:.1%}')
    secs = newest.secs - oldest.secs
    rounds = newest.round_num - oldest.round_num
    if newest.round_num >= self._total:
      parts.append(f'took {duration(newest.secs - self._start_secs)}')
    elif rounds > 0:
      left = (self._total - newest.round_num) * secs / rounds
      parts.append(f'{duration(left)} left')
    clients = newest.clients - oldest.clients
    if clients and secs > 0:
      parts.append(f'{_number(clients / secs, 1)} clients/s')
    return parts


def _number(value: float, digits: int) -> str:
  if math.isfinite(value) and abs(value) >= 1e5:
    return f'{value:.3g}'
  return f'{value:.{digits}f}'


def duration(secs: float) -> str:
  """Returns a duration in seconds as text, such as `2m05s`."""
  secs = max(0, round(secs))
  if secs < 60:
    return f'{secs}s'
  if secs < 3600:
    return f'{secs // 60}m{secs % 60:02d}s'
  if secs < 86400:
    return f'{secs // 3600}h{secs % 3600 // 60:02d}m'
  return f'{secs // 86400}d{secs % 86400 // 3600:02d}h'
