"""Published model sizes by name, and checks of sizes."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

from si_federated.layers.checks import check_count


def resolve(
  size: Optional[str],
  *,
  given: Mapping[str, Optional[int]],
  defaults: Mapping[str, Optional[int]],
  published: Mapping[str, Mapping[str, int]],
) -> Dict[str, Any]:
  """Resolves a model's sizes from the given, published and default values.

  Args:
    size: A key of `published`, or `None`.
    given: Option to the value that the caller gave, `None` if absent.
    defaults: Option to its value where neither the caller nor `size` sets it,
      with all keys of `given`; `None` leaves the part out of the model.
    published: Name of a size to the options that it sets.

  Returns:
    Option to value, for each option of `given`.

  Raises:
    ValueError: If a given value is not a positive integer, the size is unknown,
      or a given value differs from the one that the size sets.
  """
  for name, value in given.items():
    if value is not None:
      check_count(name, value)
  if size is not None and size not in published:
    raise ValueError(
      f'size must be one of {", ".join(published)}, but it is {size!r}: choose '
      f'one of these or give {", ".join(given)} instead.'
    )
  fixed = {} if size is None else published[size]
  resolved: Dict[str, Any] = {}
  for name, value in given.items():
    if value is None:
      value = fixed.get(name, defaults[name])
    elif value != fixed.get(name, value):
      raise ValueError(
        f'size={size!r} sets {name}={fixed[name]}, but {name}={value!r} is '
        'also given: leave one of them out.'
      )
    resolved[name] = None if value is None else int(value)
  return resolved


def check_common(
  *, vocab_size: int, num_layers: int, dropout: float = 0.0
) -> None:
  """Checks the options that all models share.

  Args:
    vocab_size: Number of all ids.
    num_layers: Number of layers or blocks.
    dropout: Fraction of units to drop.

  Raises:
    ValueError: If one is out of range.
  """
  check_count('vocab_size', vocab_size)
  check_count('num_layers', num_layers)
  if not 0 <= dropout < 1:
    raise ValueError(
      f'dropout must be at least 0 and below 1, but it is {dropout!r}: give '
      'the fraction of units to drop.'
    )
