"""Tests of the progress line: its exact text, with a fake clock."""

from __future__ import annotations

import io
import math
import re

import pytest

from si_federated.training import progress


class _Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


class _Terminal(io.StringIO):
  def isatty(self):
    return True


class _BrokenPipe(io.StringIO):
  def __init__(self):
    super().__init__()
    self.attempts = 0

  def write(self, text):
    self.attempts += 1
    raise BrokenPipeError('gone')


class _Ascii(io.TextIOWrapper):
  def __init__(self):
    self._bytes = io.BytesIO()
    super().__init__(self._bytes, encoding='ascii')

  def text(self):
    self.flush()
    return self._bytes.getvalue().decode('ascii')


@pytest.fixture
def clock():
  return _Clock()


def _screen(text: str) -> list[str]:
  """Returns the lines that a terminal shows after `text`."""
  lines = ['']
  column = 0
  for char in text:
    if char == '\r':
      column = 0
    elif char == '\n':
      lines.append('')
      column = 0
    else:
      line = lines[-1].ljust(column)
      lines[-1] = line[:column] + char + line[column + 1 :]
      column += 1
  return [line.rstrip() for line in lines]


def _rounds(shown, clock, rounds, secs=1.0, **kwargs):
  for round_num in rounds:
    clock.now += secs
    shown.update(round_num, 8.0 - round_num / 100, **kwargs)


def test_pipe_writes_first_and_last_round_and_nothing_between(clock):
  stream = io.StringIO()
  with progress.Progress(5, stream=stream, clock=clock) as shown:
    _rounds(shown, clock, range(1, 6), clients=20)
  assert stream.getvalue() == (
    'round 1/5  loss 7.990  4s left  20.0 clients/s\n'
    'round 5/5  loss 7.950  took 5s  20.0 clients/s\n'
  )


def test_pipe_writes_at_the_interval_and_keeps_the_last_perplexity(clock):
  stream = io.StringIO()
  shown = progress.Progress(6, stream=stream, min_interval_secs=20, clock=clock)
  _rounds(shown, clock, [1], secs=10)
  _rounds(shown, clock, [2], secs=10, perplexity=512.34)
  _rounds(shown, clock, [3, 4], secs=10)
  assert stream.getvalue().splitlines() == [
    'round 1/6  loss 7.990  50s left',
    'round 3/6  loss 7.970  perplexity 512.3  30s left',
  ]
  shown.close()
  assert stream.getvalue().splitlines()[2:] == [
    'round 4/6  loss 7.960  perplexity 512.3  20s left'
  ]
  shown.close()
  assert len(stream.getvalue().splitlines()) == 3


def test_pipe_of_a_week_of_rounds_stays_short(clock):
  stream = io.StringIO()
  total = 200_000
  with progress.Progress(total, stream=stream, clock=clock) as shown:
    _rounds(shown, clock, range(1, total + 1), secs=3)
  lines = stream.getvalue().splitlines()
  assert 50 < len(lines) < 500
  assert lines[-1].startswith(f'round {total}/{total} ')
  assert lines[-1].endswith('took 6d22h')


def test_time_left_forgets_the_first_round_and_follows_recent_ones(clock):
  stream = _Terminal()
  shown = progress.Progress(
    100, stream=stream, min_interval_secs=0, clock=clock
  )
  _rounds(shown, clock, [1], secs=60)  # Tracing.
  assert '1h39m left' in _screen(stream.getvalue())[-1]
  _rounds(shown, clock, [2, 3], secs=2, clients=10)
  last = _screen(stream.getvalue())[-1]
  assert '3m14s left' in last  # 97 rounds of 2 seconds.
  assert '5.0 clients/s' in last
  _rounds(shown, clock, range(4, 41), secs=1, clients=10)
  last = _screen(stream.getvalue())[-1]
  assert '1m00s left' in last  # The 2-second rounds are out of the window.
  assert '10.0 clients/s' in last


def test_resumed_run_counts_only_its_own_rounds(clock):
  stream = io.StringIO()
  shown = progress.Progress(800, start_round=790, stream=stream, clock=clock)
  _rounds(shown, clock, [791], secs=2, clients=4)
  assert stream.getvalue() == (
    'round 791/800  loss 0.090  18s left  2.0 clients/s\n'
  )


def test_terminal_rewrites_one_line_and_clears_what_was_longer(
  clock, monkeypatch
):
  monkeypatch.setenv('COLUMNS', '100')
  stream = _Terminal()
  with progress.Progress(4, stream=stream, clock=clock) as shown:
    clock.now = 100
    shown.update(1, 1234.5)
    clock.now = 102
    shown.update(2, 5.25)
    assert _screen(stream.getvalue()) == [
      'round 2/4  [##########..........]  loss 5.250  1m42s left'
    ]
  assert _screen(stream.getvalue())[1:] == ['']


def test_terminal_is_not_rewritten_more_often_than_asked(clock, monkeypatch):
  monkeypatch.setenv('COLUMNS', '100')
  stream = _Terminal()
  with progress.Progress(
    1000, stream=stream, min_interval_secs=1.0, clock=clock
  ) as shown:
    _rounds(shown, clock, range(1, 1001), secs=0.125)
  # Rounds 1, 9, 17, ..., 993, the last one, and once more at the end.
  assert stream.getvalue().count('\r') == 127
  assert _screen(stream.getvalue())[0].startswith('round 1000/1000 ')


@pytest.mark.parametrize(
  ('columns', 'expected'),
  [
    (
      90,
      'round 3/8  [#######.............]  loss 7.970  perplexity 99.5'
      '  5s left  7.0 clients/s',
    ),
    (50, 'round 3/8  [#######.............]  loss 7.970  pe'),
    (22, 'round 3/8  [#######..'),
    (6, 'round'),
    (1, 'r'),
  ],
)
def test_bar_is_cut_to_the_terminal(clock, monkeypatch, columns, expected):
  monkeypatch.setenv('COLUMNS', str(columns))
  stream = _Terminal()
  shown = progress.Progress(8, stream=stream, min_interval_secs=0, clock=clock)
  _rounds(shown, clock, [1, 2, 3], perplexity=99.49, clients=7)
  assert stream.getvalue().split('\r')[-1].rstrip() == expected


def test_message_leaves_the_live_line_whole(clock, monkeypatch):
  monkeypatch.setenv('COLUMNS', '60')
  stream = _Terminal()
  with progress.Progress(2, stream=stream, clock=clock) as shown:
    shown.message('Before.')
    clock.now = 1
    shown.update(1, 5.0)
    shown.message('Saved.')
    clock.now = 2
    shown.update(2, 4.0)
  assert _screen(stream.getvalue()) == [
    'Before.',
    'Saved.',
    'round 2/2  [####################]  loss 4.000  took 2s',
    '',
  ]


def test_message_on_a_pipe_is_a_line(clock):
  stream = io.StringIO()
  shown = progress.Progress(2, stream=stream, clock=clock)
  shown.message('Saved.')
  assert stream.getvalue() == 'Saved.\n'


def test_non_finite_loss_is_shown_at_once_and_only_once(clock):
  stream = io.StringIO()
  shown = progress.Progress(50, stream=stream, clock=clock)
  for round_num in range(1, 5):
    clock.now += 0.5
    shown.update(
      round_num,
      math.nan if round_num > 1 else 7.0,
      perplexity=math.inf if round_num > 1 else 5e7,
    )
  assert stream.getvalue().splitlines() == [
    'round 1/50  loss 7.000  perplexity 5e+07  24s left',
    'round 2/50  loss nan  perplexity inf  24s left',
  ]


def test_round_without_loss_and_without_time_passed(clock):
  stream = io.StringIO()
  shown = progress.Progress(3, stream=stream, clock=clock)
  shown.update(1, None, clients=5)
  assert stream.getvalue() == 'round 1/3  0s left\n'


def test_no_round_writes_nothing(clock):
  for stream in (io.StringIO(), _Terminal()):
    with progress.Progress(0, stream=stream, clock=clock):
      pass
    assert stream.getvalue() == ''


def test_interrupted_live_line_is_ended_and_the_error_passes(clock):
  stream = _Terminal()
  shown = progress.Progress(9, stream=stream, clock=clock)
  with pytest.raises(KeyboardInterrupt), shown:
    _rounds(shown, clock, [1, 2], secs=0.01)
    raise KeyboardInterrupt
  assert re.search(r'round 2/9 .*\n\Z', stream.getvalue())


def test_a_closed_stream_is_silent_and_rounds_go_on(clock):
  closed = io.StringIO()
  closed.close()
  late = _Terminal()
  for stream in (closed, late):
    shown = progress.Progress(4, stream=stream, clock=clock)
    _rounds(shown, clock, [1], secs=100)
    if stream is late:
      assert 'round 1/4' in late.getvalue()
      late.close()
    _rounds(shown, clock, [2, 3], secs=100)
    shown.message('Hello.')
    shown.close()
    assert stream.closed


def test_no_stream_means_standard_error(clock, capsys):
  with progress.Progress(1, clock=clock) as shown:
    _rounds(shown, clock, [1])
  assert capsys.readouterr().err.startswith('round 1/1')


def test_broken_pipe_is_tried_once(clock):
  stream = _BrokenPipe()
  with progress.Progress(4, stream=stream, clock=clock) as shown:
    _rounds(shown, clock, range(1, 5), secs=1000)
  assert stream.attempts == 1


def test_letters_unknown_to_the_stream_are_escaped(clock):
  stream = _Ascii()
  shown = progress.Progress(1, stream=stream, clock=clock)
  shown.message('δ = 1')
  shown.message('Next.')
  assert stream.text() == '\\u03b4 = 1\nNext.\n'


@pytest.mark.parametrize(('start', 'total'), [(-1, 5), (6, 5)])
def test_impossible_rounds_are_refused(start, total):
  with pytest.raises(ValueError, match='start_round must lie between 0 and'):
    progress.Progress(total, start_round=start, stream=io.StringIO())
