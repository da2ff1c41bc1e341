"""The perplexities that a report compares with, and their lines."""

from __future__ import annotations

from typing import Dict, List, Mapping, Tuple

from matplotlib.axes import Axes

from si_federated.reporting import plotting, run_groups
from si_federated.reporting.plotting import Label


def reference_lines(comparison: run_groups.Comparison) -> Dict[str, float]:
  """Returns the perplexities to compare with, by label.

  Lines of the same name and (to three digits) the same value are one; where
  tasks disagree the label names the task.
  """
  found: Dict[Tuple[str, str], List[Tuple[str, float]]] = {}
  for group in comparison.groups:
    for run in group.runs:
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


def draw(axes: Axes, lines: Mapping[str, float]) -> List[Label]:
  """Draws a dashed line for each perplexity.

  Args:
    axes: The axes.
    lines: Perplexity by label.

  Returns:
    The labels for the margin.
  """
  labels = []
  for name, value in lines.items():
    axes.axhline(value, color=plotting.QUIET[0], linewidth=0.9, dashes=(4, 2.5))
    text = f'{name} {plotting.tick(value)}'
    labels.append(Label(text, plotting.QUIET[0], value))
  return labels


def explain(label: str) -> str:
  """Returns what a line is, for a caption."""
  if label.startswith('unigram'):
    return f'{label}, a model that knows only how frequent each word is'
  if label.startswith('floor'):
    return f'{label}, the lowest that any model can reach'
  return label
