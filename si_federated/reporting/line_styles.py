"""How each curve is told from the others: colour, strength, marker."""

from __future__ import annotations

import dataclasses
from typing import Dict, List

from si_federated.reporting.plotting import PALETTE
from si_federated.reporting.run_groups import Comparison

_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')


@dataclasses.dataclass(frozen=True)
class Look:
  """How a curve is drawn, in matplotlib's terms."""

  color: str
  alpha: float = 1.0
  marker: str | None = None


def palette_looks(number: int) -> List[Look]:
  """Returns looks for so many curves: colours first, then markers as well."""
  return [
    Look(
      PALETTE[i % len(PALETTE)][0],
      marker=_MARKERS[(i // len(PALETTE)) % len(_MARKERS)]
      if number > len(PALETTE)
      else None,
    )
    for i in range(number)
  ]


def group_looks(comparison: Comparison) -> List[Look]:
  """Chooses how each group is drawn.

  Up to seven groups have a colour each. More share the colours by the setting
  with the fewest values (the model where it differs) and are told apart by
  markers and strength.
  """
  groups = comparison.groups
  if len(groups) <= len(PALETTE):
    return palette_looks(len(groups))
  choices = {
    name: list(dict.fromkeys(group.settings[name] for group in groups))
    for name in groups[0].settings
  }
  choices = {
    name: values
    for name, values in choices.items()
    if 1 < len(values) <= len(PALETTE)
  }
  if not choices:
    return palette_looks(len(groups))
  hue = (
    'model'
    if 'model' in choices
    else min(choices, key=lambda name: len(choices[name]))
  )
  seen: Dict[str, int] = {}
  looks = []
  for group in groups:
    value = group.settings[hue]
    rank = seen.get(value, 0)
    seen[value] = rank + 1
    looks.append(
      Look(
        PALETTE[choices[hue].index(value)][0],
        alpha=max(0.4, 1.0 - 0.15 * rank),
        marker=_MARKERS[rank % len(_MARKERS)],
      )
    )
  return looks
