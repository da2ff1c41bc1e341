"""Distinguishes curves by color, strength and marker."""

from __future__ import annotations

from typing import Dict, List

from si_federated.reporting.plotting import PALETTE, Look
from si_federated.reporting.run_groups import Comparison

_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')


def palette_looks(number: int) -> List[Look]:
  """Returns looks for `number` curves, which differ in color first."""
  looks = []
  for i in range(number):
    cycle, place = divmod(i, len(PALETTE))
    marker = _MARKERS[cycle % len(_MARKERS)] if number > len(PALETTE) else None
    looks.append(Look(PALETTE[place][0], marker=marker))
  return looks


def group_looks(comparison: Comparison) -> List[Look]:
  """Chooses how each group is drawn.

  Up to seven groups have a color each. More of them share the colors by the
  setting with the fewest values (the model if it differs) and are distinguished
  by markers and strength.
  """
  groups = comparison.groups
  choices = {}
  for name in groups[0].settings:
    values = list(dict.fromkeys(group.settings[name] for group in groups))
    if 1 < len(values) <= len(PALETTE):
      choices[name] = values
  if len(groups) <= len(PALETTE) or not choices:
    return palette_looks(len(groups))
  hue = 'model'
  if hue not in choices:
    hue = min(choices, key=lambda name: len(choices[name]))
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
