"""The perplexities that a report compares with, and their lines."""

from __future__ import annotations

from typing import Dict, List, Mapping, Tuple

from matplotlib.axes import Axes

from si_federated.reporting import plotting, run_groups


def reference_lines(comparison: run_groups.Comparison) -> Dict[str, float]:
  """Returns the perplexities to compare with, by label.

  Lines with the same name and the same value (to three digits) are merged;
  where tasks disagree the label names the task.
  """
  found: Dict[Tuple[str, str], List[Tuple[str, float]]] = {}
  for run in comparison.runs:
    for name, value in run.reference_perplexity.items():
      key = name, f'{value:.2e}'
      found.setdefault(key, []).append((run.task.get('name', ''), value))
  names = [name for name, _ in found]
  lines = {}
  for (name, _), entries in found.items():
    task, value = entries[0]
    label = name if names.count(name) == 1 else f'{name} {task}'.strip()
    while label in lines:
      label += '′'
    lines[label] = value
  return lines


def draw(axes: Axes, lines: Mapping[str, float]) -> str:
  """Draws a dashed line for each perplexity.

  Args:
    axes: The axes.
    lines: Perplexity by label.

  Returns:
    A sentence for the caption that explains the lines; empty without any.
  """
  for name, value in lines.items():
    plotting.draw_level(axes, value, f'{name} {plotting.tick(value)}')
  if not lines:
    return ''
  return ' Dashed: ' + ' and '.join(map(_explain, lines)) + '.'


def _explain(label: str) -> str:
  if label.startswith('unigram'):
    return f'{label}, a model that only knows word frequencies'
  if label.startswith('floor'):
    return f'{label}, the lowest that any model can reach'
  return label
