"""Figures and sentences of how single clients fare, from a run's files."""

from __future__ import annotations

import dataclasses
from typing import Any, List, Mapping, Sequence, Tuple

from matplotlib import ticker

from si_federated.reporting import plotting, run_groups, tables
from si_federated.reporting.plotting import Label, Picture
from si_federated.reporting.runs import Run, read_json

_METRICS = (
  ('perplexity', 'Perplexity of single clients'),
  ('accuracy', 'Accuracy of single clients'),
)
_BOXES = (
  'Boxes: the middle half of the clients, and their median; lines: from the '
  '10th to the 90th percentile.'
)
# More runs would leave no room for their names.
_MOST_RUNS = 6


@dataclasses.dataclass(frozen=True)
class _Box:
  """How a metric is distributed over clients under one model."""

  model: str
  quantiles: Mapping[str, float]


def draw(comparison: run_groups.Comparison) -> List[Picture]:
  """Draws what fine-tuning and experts do for clients, where runs tell.

  Args:
    comparison: The runs.

  Returns:
    Up to two pictures.
  """
  pictures = []
  for name, reader, caption in (
    (
      'clients_fine_tuned',
      _fine_tuned,
      'Validation clients on their own held-out half, with the model of the '
      'server before, and fine-tuned on the other half after.',
    ),
    (
      'clients_experts',
      _experts,
      'Training clients on their own test part: the global model, a fine-tuned '
      'copy, a local model from scratch, and the mixture of experts.',
    ),
  ):
    for metric, title in _METRICS:
      boxes = [
        (run.name, found)
        for group in comparison.groups
        for run in group.runs
        if (found := reader(run, metric))
      ][:_MOST_RUNS]
      if boxes:
        pictures.append(_draw(name, title, f'{caption} {_BOXES}', boxes))
        break
  return pictures


def _draw(
  name: str,
  title: str,
  caption: str,
  boxes: Sequence[Tuple[str, Sequence[_Box]]],
) -> Picture:
  figure, axes = plotting.blank_axes(title, len(boxes))
  values = [
    value
    for _, found in boxes
    for box in found
    for value in box.quantiles.values()
  ]
  low, high = min(values), max(values)
  if low > 0:
    plotting.scale_y(axes, low * 0.9, high * 1.1)
  else:
    axes.set_ylim(0, high * 1.08 or 1.0)
  axes.xaxis.set_major_locator(ticker.NullLocator())
  labels = []
  place = 0.0
  ticks = []
  for run_name, found in boxes:
    start = place
    for index, box in enumerate(found):
      color = plotting.PALETTE[index % len(plotting.PALETTE)][0]
      q = box.quantiles
      axes.plot([place, place], [q['10'], q['90']], color=color, linewidth=0.9)
      axes.bar(
        place, q['75'] - q['25'], bottom=q['25'], width=0.7, color=color,
        alpha=0.35, linewidth=0,
      )  # fmt: skip
      axes.plot([place - 0.35, place + 0.35], [q['50'], q['50']], color=color)
      if run_name == boxes[-1][0]:
        label = f'{box.model} {plotting.tick(q["50"])}'
        labels.append(Label(label, color, q['50'], (place + 0.35, q['50'])))
      place += 1.0
    ticks.append((0.5 * (start + place - 1.0), run_name))
    place += 0.7
  axes.set_xlim(-0.7, place - 1.0)
  axes.set_xticks([x for x, _ in ticks], [text for _, text in ticks])
  return plotting.finish(name, caption, figure, axes, labels)


def _fine_tuned(run: Run, metric: str) -> List[_Box]:
  content = read_json(run.path / 'personalization.json').get('metrics', {})
  found = content.get(metric, {})
  return _boxes({when: found.get(when) for when in ('before', 'after')})


def _experts(run: Run, metric: str) -> List[_Box]:
  content = read_json(run.path / 'experts.json').get('models', {})
  models = content.get('own', {}).get('all', {})
  return _boxes(
    {
      name.replace('_', '-'): metrics.get(metric)
      for name, metrics in models.items()
    }
  )


def _boxes(described: Mapping[str, Any]) -> List[_Box]:
  """Returns a box for each; none if one has no numbers."""
  boxes = []
  for name, one in described.items():
    quantiles = (one or {}).get('quantiles', {})
    if not quantiles or None in quantiles.values():
      return []
    boxes.append(_Box(name, quantiles))
  return boxes


def sentences(comparison: run_groups.Comparison) -> List[str]:
  """Says what fine-tuning and experts did for single clients.

  Args:
    comparison: The runs.

  Returns:
    A sentence for each run and each of the two that it has.
  """
  said = []
  for group in comparison.groups:
    for run in group.runs:
      tuned = read_json(run.path / 'personalization.json').get('summary')
      if tuned:
        said.append(
          f'{run.name}: fine-tuned on their own text, {tuned["num_clients"]} '
          f'validation clients go from {_median(tuned, "before")} to '
          f'{_median(tuned, "after")}; {tuned["num_worse"]} got worse.'
        )
      experts = read_json(run.path / 'experts.json').get('summary')
      if experts:
        said.append(
          f'{run.name}: of {experts["num_clients"]} clients '
          f'({experts["num_opted_out"]} opted out) the mixture of experts is '
          'at least as good as the better of global and local model for '
          f'{experts["num_mixture_at_least_best"]}; '
          f'{_median(experts, "mixture")} against '
          f'{_median(experts, "global")} of the global model.'
        )
  return said


def _median(summary: Mapping[str, Any], of: str) -> str:
  for metric, _ in _METRICS:
    value = summary.get(f'median_{metric}_{of}')
    if value is not None:
      text = tables.number(value) if metric == 'perplexity' else f'{value:.3f}'
      return f'median {metric} {text}'
  return 'no number'
