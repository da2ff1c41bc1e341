"""Figures and sentences about single clients, from a run's files."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence, Tuple

from matplotlib import ticker

from si_federated.reporting import plotting, tables
from si_federated.reporting.plotting import Picture
from si_federated.reporting.run_groups import Comparison
from si_federated.reporting.runs import Run, read_json

_METRICS = (
  ('perplexity', 'Perplexity of single clients'),
  ('accuracy', 'Accuracy of single clients'),
)
_BOXES = (
  ' Boxes: the middle half of the clients, and their median; lines: from the '
  '10th to the 90th percentile.'
)
# More runs would leave no room for their names.
_MOST_RUNS = 6
# Model -> percentile -> value of a metric, as matplotlib's boxes need it.
_Boxes = Dict[str, Mapping[str, float]]


def draw(comparison: Comparison) -> List[Picture]:
  """Draws the effect of fine-tuning and experts on clients.

  Args:
    comparison: The runs.

  Returns:
    Up to two pictures, of the runs that have fine-tuning and experts.
  """
  pictures = []
  for name, reader, caption in (
    (
      'clients_fine_tuned',
      _fine_tuned,
      'Validation clients on their own held-out half, before and after '
      "fine-tuning the server's model on the other half.",
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
        for run in comparison.runs
        if (found := reader(run, metric))
      ][:_MOST_RUNS]
      if boxes:
        pictures.append(_draw(name, title, caption + _BOXES, boxes))
        break
  return pictures


def _draw(
  name: str, title: str, caption: str, boxes: Sequence[Tuple[str, _Boxes]]
) -> Picture:
  figure, axes = plotting.blank_axes(title, len(boxes))
  values = [
    value
    for _, found in boxes
    for quantiles in found.values()
    for value in quantiles.values()
  ]
  plotting.scale_y(axes, min(values), max(values))
  axes.xaxis.set_major_locator(ticker.NullLocator())
  place = 0.0
  ticks = []
  for run_name, found in boxes:
    ticks.append(place + 0.5 * (len(found) - 1))
    for index, (model, q) in enumerate(found.items()):
      color = plotting.PALETTE[index % len(plotting.PALETTE)][0]
      axes.vlines(place, q['10'], q['90'], color=color, linewidth=0.9)
      axes.bar(
        place, q['75'] - q['25'], bottom=q['25'], width=0.7, color=color,
        alpha=0.35, linewidth=0,
      )  # fmt: skip
      label = f'{model} {plotting.tick(q["50"])}'
      axes.plot(
        [place - 0.35, place + 0.35], [q['50'], q['50']], color=color,
        label=label if run_name == boxes[-1][0] else None,
      )  # fmt: skip
      place += 1.0
    place += 0.7
  axes.set_xlim(-0.7, place - 1.0)
  axes.set_xticks(ticks, [run_name for run_name, _ in boxes])
  return plotting.finish(name, caption, figure, axes)


def _fine_tuned(run: Run, metric: str) -> _Boxes:
  metrics = read_json(run.path / 'personalization.json').get('metrics', {})
  found = metrics.get(metric, {})
  return _boxes({when: found.get(when) for when in ('before', 'after')})


def _experts(run: Run, metric: str) -> _Boxes:
  models = read_json(run.path / 'experts.json').get('models', {})
  return _boxes(
    {
      name.replace('_', '-'): metrics.get(metric)
      for name, metrics in models.get('own', {}).get('all', {}).items()
    }
  )


def _boxes(described: Mapping[str, Any]) -> _Boxes:
  """Returns the percentiles of each; none if one of them has no numbers."""
  boxes = {
    name: (one or {}).get('quantiles', {}) for name, one in described.items()
  }
  complete = all(q and None not in q.values() for q in boxes.values())
  return boxes if complete else {}


def sentences(comparison: Comparison) -> List[str]:
  """States the effect of fine-tuning and experts on single clients.

  Args:
    comparison: The runs.

  Returns:
    For each run, a sentence on fine-tuning and one on experts, if it has them.
  """
  said = []
  for run in comparison.runs:
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
