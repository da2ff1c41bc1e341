"""The grammar of what a sweep varies: lists of values, and ranges."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Mapping

from si_federated import config

# A bar separates values; \| is a bar in a value.
_BAR = re.compile(r'(?<!\\)\|')
_RANGE = re.compile(r'(linear|log|int):(.+)\.\.(.+)')
# Enough to tell drawn numbers apart, few enough for the name of a folder.
_DIGITS = 3


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers to draw from.

  Attributes:
    kind: `'linear'`, `'log'` (uniform in the logarithm) or `'int'`.
    low: The lowest.
    high: The highest.
  """

  kind: str
  low: float
  high: float

  def draw(self, source: random.Random) -> str:
    """Returns a number, to three significant digits, as text."""
    if self.kind == 'int':
      return str(source.randint(int(self.low), int(self.high)))
    if self.kind == 'log':
      low, high = math.log(self.low), math.log(self.high)
      number = math.exp(source.uniform(low, high))
    else:
      number = source.uniform(self.low, self.high)
    rounded = float(f'{number:.{_DIGITS}g}')
    return f'{min(max(rounded, self.low), self.high):g}'


@dataclasses.dataclass(frozen=True)
class Axis:
  """A flag and what it is set to.

  Attributes:
    flag: Its name.
    values: Its values as text, if they are listed.
    range: What they are drawn from, if they are not.
  """

  flag: str
  values: tuple[str, ...] = ()
  range: Range | None = None

  def draw(self, seed: int, index: int) -> str:
    """Draws a value, a pure function of the flag and of two numbers.

    Args:
      seed: The seed of the search.
      index: Which draw of the search.

    Returns:
      The value as text.
    """
    source = random.Random(f'{seed}/{index}/{self.flag}')
    return self.range.draw(source) if self.range else source.choice(self.values)


def parse_axis(
  text: str,
  numeric: Mapping[str, bool],
  aliases: Mapping[str, str] | None = None,
) -> Axis:
  r"""Parses `FLAG=VALUES`.

  Values are separated by `|`. Those of a flag that is a number may be
  separated by commas, too; in all others a comma belongs to the value, as in
  `model=cifg:units=256,num_layers=2|si_cifg`. `\|` is a bar in a value.

  Instead of values, a flag that is a number may have a range: `log:0.01..3`,
  `linear:0..1`, or `int:1..8`, both ends included.

  Args:
    text: What a user typed.
    numeric: The flags that there are, and whether each is a number.
    aliases: Other names of flags.

  Returns:
    The axis.

  Raises:
    config.ConfigError: If the text does not follow the grammar, or there is no
      such flag.
  """
  flag, equals, rest = text.partition('=')
  flag = flag.strip().lstrip('-')
  flag = (aliases or {}).get(flag, flag)
  if not equals or not rest.strip():
    raise config.ConfigError(
      f'--grid={text} is not of the form FLAG=VALUE|VALUE, as in '
      '--grid=client_learning_rate=0.1,0.3 or --grid=model=cifg|si_cifg.'
    )
  if flag not in numeric:
    raise config.ConfigError(
      f'--grid={text}: there is no flag {flag!r} of experiments.train; '
      f'{config.near_matches(flag, numeric)}'
    )
  found = _RANGE.fullmatch(rest.strip())
  if found and numeric[flag]:
    return Axis(flag, range=_parse_range(text, *found.groups()))
  pieces = _BAR.split(rest)
  if numeric[flag]:
    pieces = [part for piece in pieces for part in piece.split(',')]
  values = tuple(piece.strip().replace('\\|', '|') for piece in pieces)
  if not all(values):
    raise config.ConfigError(f'--grid={text} has an empty value; remove it.')
  return Axis(flag, values)


def _parse_range(text: str, kind: str, low: str, high: str) -> Range:
  try:
    ends = [int(end) if kind == 'int' else float(end) for end in (low, high)]
  except ValueError:
    raise config.ConfigError(
      f'--grid={text}: {low!r} and {high!r} are to be '
      f'{"whole numbers" if kind == "int" else "numbers"}.'
    ) from None
  finite = all(map(math.isfinite, ends))
  if not finite or ends[0] >= ends[1] or (kind == 'log' and ends[0] <= 0):
    above = ', the first above 0' if kind == 'log' else ''
    raise config.ConfigError(
      f'--grid={text}: the ends of a range are to be finite and ascending'
      f'{above}.'
    )
  return Range(kind, *ends)
