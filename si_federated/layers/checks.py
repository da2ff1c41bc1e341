"""The checks of counts that layers and models share."""

from __future__ import annotations

import math
import numbers
from typing import Any


def check_count(name: str, value: Any) -> None:
  """Raises unless the value is a positive integer.

  Args:
    name: The argument's name, for the message.
    value: Its value.

  Raises:
    ValueError: If it is not.
  """
  is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not is_number or value % 1 != 0 or value < 1:
    raise ValueError(
      f'{name} must be a positive whole number, but it is {value!r}: give a '
      'number from 1 up.'
    )


def check_groups(num_groups: Any, units: int) -> int:
  """Returns a number of groups that divides a number of units.

  Args:
    num_groups: The number of groups.
    units: The number of units.

  Raises:
    ValueError: If it is not a positive integer that divides `units`.
  """
  check_count('num_groups', num_groups)
  if units % num_groups:
    raise ValueError(
      f'num_groups={num_groups} does not divide units={units}: give a divisor.'
    )
  return int(num_groups)


def check_slope(name: str, value: Any) -> None:
  """Raises unless the value is a finite number of at least 0.

  Args:
    name: The argument's name, for the message.
    value: Its value.

  Raises:
    ValueError: If it is not.
  """
  if not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
    raise ValueError(
      f'{name} must not be negative and must be finite, but it is {value!r}: '
      'give 0 or a small positive slope.'
    )
