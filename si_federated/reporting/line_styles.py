"""Distinguishes curves by color, strength and marker."""

from __future__ import annotations

from typing import Dict, List

from si_federated.reporting.plotting import PALETTE, Style
from si_federated.reporting.run_groups import Comparison

_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')


def palette_styles(number: int) -> List[Style]:
  """Returns styles for `number` curves, which differ in color first."""
  styles = []
  for i in range(number):
    cycle, place = divmod(i, len(PALETTE))
    marker = _MARKERS[cycle % len(_MARKERS)] if number > len(PALETTE) else None
    styles.append(Style(PALETTE[place][0], marker=marker))
  return styles


def group_styles(comparison: Comparison) -> List[Style]:
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
    return palette_styles(len(groups))
  hue = 'model'
  if hue not in choices:
    hue = min(choices, key=lambda name: len(choices[name]))
  seen: Dict[str, int] = {}
  styles = []
  for group in groups:
    value = group.settings[hue]
    rank = seen.get(value, 0)
    seen[value] = rank + 1
    styles.append(
      Style(
        PALETTE[choices[hue].index(value)][0],
        alpha=max(0.4, 1.0 - 0.15 * rank),
        marker=_MARKERS[rank % len(_MARKERS)],
      )
    )
  return styles
