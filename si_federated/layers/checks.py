"""The check of whole numbers that layers and models share."""

from __future__ import annotations

import numbers
from typing import Any


def check_count(name: str, value: Any) -> None:
  """Refuses what is no number of things.

  Args:
    name: The argument's name, for the message.
    value: Its value.

  Raises:
    ValueError: If the value isn't a whole number from 1 up.
  """
  is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not is_number or value % 1 != 0 or value < 1:
    raise ValueError(
      f'{name} must be a positive whole number, but it is {value!r}: give a '
      'number from 1 up.'
    )
