"""The report's text: Markdown, and one self-contained HTML page."""

from __future__ import annotations

import statistics
from typing import List, Sequence, Tuple

import markupsafe

from si_federated.reporting import (
  baselines,
  best_settings,
  client_figures,
  diagnostics_section,
  plotting,
  privacy_card,
  rendering,
  run_groups,
  tables,
)
from si_federated.reporting import runs as run_files
from si_federated.reporting.plotting import Picture
from si_federated.reporting.run_groups import Comparison, Group

_LEGEND = (
  'Perplexity and accuracy are measured on held-out clients; accuracy, at the '
  'last evaluation, does not count words outside the vocabulary and ends of '
  'sentences. Seconds a round are the median; bytes are those of one client '
  'in one round. The number after ± is the standard deviation over seeds. The '
  'best setting is the one with the lowest mean final perplexity on these same '
  'held-out clients, among those without a diverged run.'
)
# Facts of `task.json` that the first sentence lists.
_FACTS = {
  'num_train_clients': 'training clients',
  'num_validation_clients': 'validation clients',
  'num_validation_examples': 'validation sentences',
  'num_words': 'words in the vocabulary',
}
# Longer lists of runs or settings are summarized.
_MANY = 6


def findings(comparison: Comparison) -> List[str]:
  """Summarizes the results in sentences, with their caveats.

  Args:
    comparison: The runs.

  Returns:
    Sentences on the task, each group's result relative to the unigram
    perplexity, diverged and unfinished runs, oddities of files, and privacy.
  """
  runs = comparison.runs
  said = _task_sentences(comparison)
  unigram = baselines.reference_lines(comparison).get('unigram')
  if len(comparison.groups) <= _MANY:
    said += [_result(group, unigram) for group in comparison.groups]
  else:
    said += _best_results(comparison, unigram)
  diverged = [
    f'{run.name} diverged: {run.divergence.reason} at round '
    f'{run.divergence.round_num}.'
    for run in runs
    if run.divergence
  ]
  unfinished = [
    f'{run.name} is {tables.state(run)}.'
    for run in runs
    if not run.finished and not run.divergence
  ]
  for sentences, verb in (
    (diverged, 'diverged'),
    (unfinished, 'are unfinished'),
  ):
    if len(sentences) > _MANY:
      sentences = [f'{len(sentences)} of {len(runs)} runs {verb}.']
    said += sentences
  said += [f'{run.name}: {note}' for run in runs for note in run.notes]
  said += privacy_card.sentences(comparison)
  said += diagnostics_section.sentences(comparison)
  said += client_figures.sentences(comparison)
  return said


def markdown(
  title: str, comparison: Comparison, pictures: Sequence[Picture]
) -> str:
  """Returns the report as Markdown that embeds the PNG files next to it.

  Args:
    title: The heading.
    comparison: The runs.
    pictures: The figures.
  """
  shown = [(one, '') for one in pictures]
  return _render('report.md.jinja', title, comparison, shown, escape=False)


def html(
  title: str, comparison: Comparison, pictures: Sequence[Picture]
) -> str:
  """Returns the report as one page that embeds the figures and loads nothing.

  Args:
    title: The heading.
    comparison: The runs.
    pictures: The figures.
  """
  shown = [(one, markupsafe.Markup(plotting.for_page(one))) for one in pictures]
  return _render('report.html.jinja', title, comparison, shown, escape=True)


def _render(
  template: str,
  title: str,
  comparison: Comparison,
  pictures: Sequence[Tuple[Picture, str]],
  *,
  escape: bool,
) -> str:
  return rendering.render(
    template,
    escape=escape,
    title=title,
    findings=findings(comparison),
    pictures=pictures,
    tables=all_tables(comparison),
    legend=_LEGEND,
    shared=[
      (run_groups.full_name(name), value)
      for name, value in comparison.shared.items()
    ],
    shared_heading=(
      'Settings' if len(comparison.runs) == 1 else 'Settings of all runs'
    ),
  )


def all_tables(comparison: Comparison) -> List[Tuple[str, tables.Table]]:
  """Builds every table for which the runs have data.

  Args:
    comparison: The runs.

  Returns:
    Headings and tables; for sweeps the best settings first.
  """
  built = (
    ('The best setting of each kind of run', best_settings.best_table),
    (
      best_settings.rate_heading(comparison),
      best_settings.rate_table,
    ),
    ('Settings over their seeds', tables.groups_table),
    ('Runs', tables.runs_table),
    ('Other settings in which the runs differ', tables.implied_table),
  )
  return [
    (heading, table)
    for heading, build in built
    if (table := build(comparison)) is not None
  ]


def _result(group: Group, unigram: float | None) -> str:
  """States the final result of a group."""
  known = best_settings.final_values(group)
  accuracy = tables.last_value(group, run_files.ACCURACY)
  if accuracy is not None and all(map(run_files.has_classes, group.runs)):
    return f'{group.label}: final validation accuracy {accuracy:.1%}.'
  if not known:
    if best_settings.num_diverged(group):
      return f'{group.label}: diverged.'
    return f'{group.label}: not evaluated yet.'
  mean = statistics.fmean(known)
  text = f'{group.label}: final validation perplexity {tables.number(mean)}'
  if len(known) > 1:
    deviation = tables.number(statistics.stdev(known))
    text += f' ± {deviation} (mean and deviation over {len(known)} seeds)'
  if len(known) < len(group.runs):
    text += f', of {len(known)} of {len(group.runs)} runs'
  if unigram:
    way = 'below' if mean < unigram else 'above'
    share = abs(mean / unigram - 1)
    text += f', {share:.0%} {way} the unigram perplexity'
    text += f' ({tables.number(unigram)})'
  return text + '.'


def _best_results(comparison: Comparison, unigram: float | None) -> List[str]:
  """States the final result of each kind of run in its best setting."""
  said = []
  for kind in best_settings.find_kinds(comparison):
    text = _result(kind.best, unigram)
    if len(kind.groups) > 1:
      text = f'Best of {len(kind.groups)} settings of {kind.label}: {text}'
    said.append(text)
  return said


def _task_sentences(comparison: Comparison) -> List[str]:
  tasks = [run.task for run in comparison.runs if run.task]
  if not tasks:
    return []
  task = tasks[0]
  if any(
    one.get(key) != task.get(key) for one in tasks for key in ('name', *_FACTS)
  ):
    return [
      'The runs do not share one task and evaluation set, so their '
      'perplexities cannot be compared with one another.'
    ]
  known = [
    f'{tables.count(task[key])} {words}'
    for key, words in _FACTS.items()
    if isinstance(task.get(key), (int, float))
  ]
  text = f'Task {task.get("name", "without a name")}'
  return [f'{text}: {", ".join(known)}.' if known else f'{text}.']
