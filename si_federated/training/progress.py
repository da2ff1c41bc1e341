"""The live progress line of training, and plain log lines off a terminal."""

from __future__ import annotations

import collections
import contextlib
import math
import os
import shutil
import sys
import time
from typing import Callable, Deque, List, NamedTuple, TextIO

# Rounds over which speed and time left are estimated.
_RECENT_ROUNDS = 20
# Off a terminal the wait between lines grows with the run, so that a run of
# weeks writes hundreds of lines, not thousands.
_LOG_GROWTH = 0.02
_LIVE_SECS = 0.1
_LOG_SECS = 10.0
_BAR_CELLS = 20


class _Mark(NamedTuple):
  """One moment of the run."""

  secs: float
  round_num: int
  clients: int  # Clients of all rounds up to this one.


class Progress:
  """Shows how far training is: round, loss, perplexity, speed, time left.

  On a terminal one line is rewritten in place and cut to the terminal's width.
  Elsewhere (a pipe, a file) plain lines are written: the first round, then one
  at least every `min_interval_secs`, later every 2 % of the time passed, the
  first round with a non-finite loss, and the last round. Nothing is ever raised
  because of the stream: after the first failed write the object stays silent.

  ```
  with Progress(total_rounds=800) as progress:
    for round_num in range(1, 801):
      ...
      progress.update(round_num, loss, perplexity, clients=20)
  ```

  Args:
    total_rounds: The round at which training ends.
    start_round: Rounds already done, for a resumed run.
    stream: Where to write; standard error, as it is when constructed, if None.
    min_interval_secs: Least seconds between two writes; if None, 0.1 on a
      terminal and 10 elsewhere.
    clock: Returns the time in seconds; for tests.

  Raises:
    ValueError: If `start_round` is negative or `total_rounds` is below it.
  """

  def __init__(
    self,
    total_rounds: int,
    start_round: int = 0,
    stream: TextIO | None = None,
    min_interval_secs: float | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
  ):
    if not 0 <= start_round <= total_rounds:
      raise ValueError(
        f'start_round must lie between 0 and total_rounds ({total_rounds}), '
        f'not {start_round}.'
      )
    self._total = total_rounds
    self._stream = sys.stderr if stream is None else stream
    self._clock = clock
    self._silent = False
    self._live = self._is_terminal()
    if min_interval_secs is None:
      min_interval_secs = _LIVE_SECS if self._live else _LOG_SECS
    self._min_interval = min_interval_secs
    self._start_secs = clock()
    self._marks: Deque[_Mark] = collections.deque(maxlen=_RECENT_ROUNDS + 1)
    self._marks.append(_Mark(self._start_secs, start_round, 0))
    self._start_round = start_round
    self._loss: float | None = None
    self._perplexity: float | None = None
    self._accuracy: float | None = None
    self._written_secs: float | None = None
    self._written_round = start_round
    self._shown = 0  # Characters of the live line now on the terminal.
    self._loss_was_finite = True

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *unused_error) -> None:
    self.close()

  def update(
    self,
    round_num: int,
    loss: float | None,
    perplexity: float | None = None,
    clients: int = 0,
    accuracy: float | None = None,
  ) -> None:
    """Records a finished round and shows it if it is time to.

    Args:
      round_num: Number of rounds done, the first round being 1.
      loss: Training loss of the round, or None if there is none.
      perplexity: Evaluation perplexity if this round was evaluated; the last
        one given stays on the line.
      clients: Clients that took part in the round.
      accuracy: Evaluation accuracy, which is shown where there is no
        perplexity; the last one given stays, too.
    """
    now = self._clock()
    self._loss = loss
    if perplexity is not None:
      self._perplexity = perplexity
    if accuracy is not None:
      self._accuracy = accuracy
    clients += self._marks[-1].clients
    self._marks.append(_Mark(now, round_num, clients))
    # The first round traces and compiles: as soon as two later rounds are
    # known it no longer counts for the estimates.
    if len(self._marks) == 4 and self._marks[0].round_num == self._start_round:
      self._marks.popleft()
    finite = loss is None or math.isfinite(loss)
    newly_broken = self._loss_was_finite and not finite
    self._loss_was_finite = self._loss_was_finite and finite
    if round_num >= self._total or newly_broken or self._is_due(now):
      self._show()

  def message(self, text: str) -> None:
    """Prints `text` on a line of its own, above the live line if any."""
    if not self._live:
      self._write(text + '\n')
      return
    shown = self._shown
    self._shown = 0
    erase = '\r' + ' ' * shown + '\r' if shown else ''
    self._write(erase + text + '\n')
    if shown:
      self._show()

  def close(self) -> None:
    """Shows the last round if it isn't shown yet and ends the live line."""
    if self._marks[-1].round_num != self._written_round:
      self._show()
    if self._live and self._shown:
      self._shown = 0
      self._write('\n')

  def _is_due(self, now: float) -> bool:
    if self._written_secs is None:
      return True
    interval = self._min_interval
    if not self._live:
      interval = max(interval, _LOG_GROWTH * (now - self._start_secs))
    return now - self._written_secs >= interval

  def _show(self) -> None:
    self._written_secs = self._marks[-1].secs
    self._written_round = self._marks[-1].round_num
    if not self._live:
      self._write('  '.join(self._parts()) + '\n')
      return
    # One column stays free: a full line would wrap on some terminals.
    line = self._fit(max(1, self._width() - 1))
    padding = ' ' * (self._shown - len(line))
    self._shown = len(line)
    self._write('\r' + line + padding)

  def _parts(self) -> List[str]:
    """Returns what the line says, the most important first."""
    newest, oldest = self._marks[-1], self._marks[0]
    parts = [f'round {newest.round_num}/{self._total}']
    if self._loss is not None:
      parts.append(f'loss {_number(self._loss, 3)}')
    if self._perplexity is not None:
      parts.append(f'perplexity {_number(self._perplexity, 1)}')
    elif self._accuracy is not None:
      parts.append(f'accuracy {self._accuracy:.1%}')
    secs = newest.secs - oldest.secs
    rounds = newest.round_num - oldest.round_num
    if newest.round_num >= self._total:
      parts.append(f'took {_duration(newest.secs - self._start_secs)}')
    elif rounds > 0:
      left = (self._total - newest.round_num) * secs / rounds
      parts.append(f'{_duration(left)} left')
    clients = newest.clients - oldest.clients
    if clients and secs > 0:
      parts.append(f'{_number(clients / secs, 1)} clients/s')
    return parts

  def _fit(self, width: int) -> str:
    parts = self._parts()
    line = '  '.join(parts)
    fraction = self._marks[-1].round_num / self._total if self._total else 1.0
    filled = min(_BAR_CELLS, int(_BAR_CELLS * fraction))
    bar = '[' + '#' * filled + '.' * (_BAR_CELLS - filled) + ']'
    if len(line) + len(bar) + 2 <= width:
      return '  '.join([parts[0], bar, *parts[1:]])
    while len(line) > width and len(parts) > 1:
      parts.pop()
      line = '  '.join(parts)
    return line[:width]

  def _width(self) -> int:
    columns = 0
    with contextlib.suppress(AttributeError, OSError, ValueError):
      columns = os.get_terminal_size(self._stream.fileno()).columns
    return columns or shutil.get_terminal_size().columns

  def _is_terminal(self) -> bool:
    try:
      return self._stream.isatty()
    except (AttributeError, OSError, ValueError):
      return False

  def _write(self, text: str) -> None:
    if self._silent:
      return
    try:
      try:
        self._stream.write(text)
      except UnicodeEncodeError:
        self._stream.write(text.encode('ascii', 'backslashreplace').decode())
      self._stream.flush()
    except (AttributeError, OSError, ValueError):
      # A closed or broken stream must not end hours of training.
      self._silent = True


def _number(value: float, digits: int) -> str:
  if math.isfinite(value) and abs(value) >= 1e5:
    return f'{value:.3g}'
  return f'{value:.{digits}f}'


def _duration(secs: float) -> str:
  secs = max(0, round(secs))
  if secs < 60:
    return f'{secs}s'
  if secs < 3600:
    return f'{secs // 60}m{secs % 60:02d}s'
  if secs < 86400:
    return f'{secs // 3600}h{secs % 3600 // 60:02d}m'
  return f'{secs // 86400}d{secs % 86400 // 3600:02d}h'
