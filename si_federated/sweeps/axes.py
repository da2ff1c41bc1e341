"""The grammar of `--grid`: lists of values, and ranges."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Mapping

from si_federated import config

# A bar separates values; \| is a bar within a value. For flags that vary
# together, & works in the same way.
_BAR = re.compile(r'(?<!\\)\|')
_AND = re.compile(r'(?<!\\)&')
_ESCAPED = re.compile(r'\\([|&])')
_RANGE = re.compile(r'(linear|log|int):(.+)\.\.(.+)')
# Significant digits: enough to distinguish drawn numbers, but few enough for
# the name of a folder.
_DIGITS = 3


@dataclasses.dataclass(frozen=True)
class Range:
  """A range of numbers to draw from.

  Attributes:
    kind: `'linear'`, `'log'` (uniform in the logarithm) or `'int'`.
    low: The lowest.
    high: The highest.
  """

  kind: str
  low: float
  high: float

  def draw(self, source: random.Random) -> str:
    """Returns a number as text, with three significant digits."""
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
  """A flag, or several that vary together, and their values.

  Attributes:
    flags: The names.
    values: Listed values as text, in tuples with a value for each flag.
    range: Without listed values, the range from which to draw the value of a
      single flag.
  """

  flags: tuple[str, ...]
  values: tuple[tuple[str, ...], ...] = ()
  range: Range | None = None

  def draw(self, seed: int, index: int) -> tuple[str, ...]:
    """Draws values, a pure function of the flags, the seed and the index.

    Args:
      seed: The seed of the search.
      index: The number of the draw.

    Returns:
      A value as text for each flag.
    """
    source = random.Random(f'{seed}/{index}/{"&".join(self.flags)}')
    if self.range:
      return (self.range.draw(source),)
    return source.choice(self.values)


def parse_axis(
  text: str,
  numeric: Mapping[str, bool],
  aliases: Mapping[str, str] | None = None,
) -> Axis:
  r"""Parses `FLAG=VALUES`.

  `|` separates values, as do commas for a numeric flag. In values of other
  flags a comma belongs to the value, as in
  `model=cifg:units=256,num_layers=2|si_cifg`.

  Flags joined by `&` vary together, and so do their values:
  `model&client_learning_rate=cifg&0.3|si_cifg&1`. `\|` and `\&` are a bar and
  an ampersand in a value.

  Instead of values, a numeric flag can have a range: `log:0.01..3`,
  `linear:0..1` or `int:1..8`, both ends included.

  Args:
    text: The user's input.
    numeric: All flags, and whether each is numeric.
    aliases: Other names of flags.

  Returns:
    The axis.

  Raises:
    config.ConfigError: If the text does not follow the grammar or names an
      unknown flag.
  """
  names, equals, rest = text.partition('=')
  known = [name.strip().lstrip('-') for name in names.split('&')]
  flags = tuple((aliases or {}).get(flag, flag) for flag in known)
  if not equals or not rest.strip():
    raise config.ConfigError(
      f'--grid={text} is not of the form FLAG=VALUE|VALUE, as in '
      '--grid=client_learning_rate=0.1,0.3 or --grid=model=cifg|si_cifg.'
    )
  for flag in flags:
    if flag not in numeric:
      raise config.ConfigError(
        f'--grid={text}: there is no flag {flag!r} of experiments.train; '
        f'{config.near_matches(flag, numeric)}'
      )
  is_number = len(flags) == 1 and numeric[flags[0]]
  found = _RANGE.fullmatch(rest.strip())
  if found and is_number:
    return Axis(flags, range=_parse_range(text, *found.groups()))
  pieces = _BAR.split(rest)
  if is_number:
    pieces = [part for piece in pieces for part in piece.split(',')]
  values = tuple(
    tuple(
      _ESCAPED.sub(r'\1', part.strip())
      for part in (_AND.split(piece) if len(flags) > 1 else [piece])
    )
    for piece in pieces
  )
  for value in values:
    if not all(value):
      raise config.ConfigError(f'--grid={text} has an empty value; remove it.')
    if len(value) != len(flags):
      raise config.ConfigError(
        f'--grid={text}: {"&".join(value)} has {len(value)} of '
        f'{len(flags)} values; give one for each flag, separated by &.'
      )
  return Axis(flags, values)


def _parse_range(text: str, kind: str, low: str, high: str) -> Range:
  try:
    ends = [int(end) if kind == 'int' else float(end) for end in (low, high)]
  except ValueError:
    raise config.ConfigError(
      f'--grid={text}: {low!r} and {high!r} must be '
      f'{"whole numbers" if kind == "int" else "numbers"}.'
    ) from None
  finite = all(map(math.isfinite, ends))
  if not finite or ends[0] >= ends[1] or (kind == 'log' and ends[0] <= 0):
    above = ', the first above 0' if kind == 'log' else ''
    raise config.ConfigError(
      f'--grid={text}: the ends of a range must be finite and ascending{above}.'
    )
  return Range(kind, *ends)
