"""The report's text: Markdown, and one HTML page that needs nothing else."""

from __future__ import annotations

import statistics
from typing import List, Sequence, Tuple

import jinja2
import markupsafe

from si_federated.reporting import (
  baselines,
  best_settings,
  client_figures,
  diagnostics_section,
  plotting,
  run_groups,
  tables,
)
from si_federated.reporting import runs as run_files
from si_federated.reporting.plotting import Picture
from si_federated.reporting.run_groups import Comparison, Group

_HTML = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root {
  --paper: #ffffff; --ink: {{ ink[0] }}; --quiet: {{ quiet[0] }};
  --grid: {{ grid[0] }};
  {% for light, dark in palette %}\
--c{{ loop.index0 }}: {{ light }}; {% endfor %}

}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #141416; --ink: {{ ink[1] }}; --quiet: {{ quiet[1] }};
    --grid: {{ grid[1] }};
    {% for light, dark in palette %}\
--c{{ loop.index0 }}: {{ dark }}; {% endfor %}

  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 76rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word;
}
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, ul { margin: .5rem 0; max-width: 46rem; }
ul { padding-left: 1.2rem; }
.figures {
  display: grid; gap: 1.5rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
}
figure { margin: 0; break-inside: avoid; max-width: 40rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: var(--quiet); font-size: .85rem; line-height: 1.4; }
.wide { overflow-x: auto; }
table {
  border-collapse: collapse; font-size: .85rem; white-space: nowrap;
  font-variant-numeric: tabular-nums;
}
th, td { padding: .3rem .7rem .3rem 0; text-align: left; }
th {
  border-bottom: 1px solid var(--quiet); vertical-align: bottom;
  white-space: normal; line-height: 1.25;
}
td { border-bottom: 1px solid var(--grid); }
.number { text-align: right; }
dl { columns: 20rem; font-size: .85rem; margin: .5rem 0; }
dl div { display: flex; gap: .75rem; break-inside: avoid; }
dt { flex: 0 0 12.5rem; color: var(--quiet); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  .wide { overflow: visible; }
  table { font-size: 7pt; white-space: normal; }
  th, td { padding-right: .35rem; }
  h2 { break-after: avoid; }
  .figures { grid-template-columns: 1fr 1fr; }
}
</style>
</head>
<body>
<h1>{{ title }}</h1>
<ul>
{% for sentence in findings %}<li>{{ sentence }}</li>
{% endfor %}</ul>
<h2>Figures</h2>
<div class="figures">
{% for picture, svg in pictures %}<figure>
{{ svg }}
<figcaption>{{ picture.caption }}</figcaption>
</figure>
{% endfor %}</div>
{% for heading, table in tables %}<h2>{{ heading }}</h2>
<div class="wide"><table>
<thead><tr>{% for cell in table.columns %}\
<th scope="col"{% if table.numeric[loop.index0] %} class="number"{% endif %}>\
{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}<tr>{% for cell in row %}\
<td{% if table.numeric[loop.index0] %} class="number"{% endif %}>{{ cell }}\
</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% endfor %}<p>{{ legend }}</p>
{% if shared %}<h2>{{ shared_heading }}</h2>
<dl>
{% for name, value in shared %}\
<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{% endfor %}</dl>
{% endif %}</body>
</html>
"""

_MARKDOWN = """\
# {{ title }}

{% for sentence in findings %}- {{ sentence }}
{% endfor %}
## Figures

{% for picture, _ in pictures %}\
![{{ picture.name.replace("_", " ") }}]({{ picture.name }}.png)

{{ picture.caption }}

{% endfor %}{% for heading, table in tables %}## {{ heading }}

{{ table.as_markdown() }}

{% endfor %}{{ legend }}
{% if shared %}
## {{ shared_heading }}

{% for name, value in shared %}- {{ name }}: {{ value }}
{% endfor %}{% endif %}"""

_LEGEND = (
  'Perplexity and accuracy are measured on held-out clients; accuracy, at the '
  'last evaluation, does not count words outside the vocabulary and ends of '
  'sentences. Seconds a round are the median; bytes are those of one client '
  'in one round. After ± stands the standard deviation over seeds. The best '
  'setting is the one with the lowest mean final perplexity on these same '
  'held-out clients, among those of which no run diverged.'
)

# From so many settings on, only the best of each model is put in words.
_MANY = 6


def findings(comparison: Comparison) -> List[str]:
  """Says in sentences what came out and what to be careful with.

  Args:
    comparison: The runs.

  Returns:
    Sentences: the task, each group's result against the reference lines, runs
    that diverged or aren't finished, odd files.
  """
  runs = [run for group in comparison.groups for run in group.runs]
  said = _task_sentences(comparison)
  unigram = baselines.reference_lines(comparison).get('unigram')
  if len(comparison.groups) <= _MANY:
    said += [_result(group, unigram) for group in comparison.groups]
  else:
    said += _best_results(comparison, unigram)
  diverged = [run for run in runs if run.divergence]
  unfinished = [r for r in runs if not r.finished and not r.divergence]
  if len(diverged) > _MANY:
    said.append(f'{len(diverged)} of {len(runs)} runs diverged.')
  else:
    said += [
      f'{run.name} diverged: {run.divergence.reason} at round '
      f'{run.divergence.round_num}.'
      for run in diverged
      if run.divergence
    ]
  if len(unfinished) > _MANY:
    said.append(f'{len(unfinished)} of {len(runs)} runs are unfinished.')
  else:
    said += [f'{run.name} is {tables.state(run)}.' for run in unfinished]
  said += [f'{run.name}: {note}' for run in runs for note in run.notes]
  said += diagnostics_section.sentences(comparison)
  said += client_figures.sentences(comparison)
  return said


def markdown(
  title: str, comparison: Comparison, pictures: Sequence[Picture]
) -> str:
  """Returns the report as Markdown that shows the PNG files beside it.

  Args:
    title: The heading.
    comparison: The runs.
    pictures: The figures.

  Returns:
    The text.
  """
  return _render(_MARKDOWN, title, comparison, pictures, escape=False)


def html(
  title: str, comparison: Comparison, pictures: Sequence[Picture]
) -> str:
  """Returns the report as one page with the figures inside.

  Args:
    title: The heading.
    comparison: The runs.
    pictures: The figures.

  Returns:
    The page; it loads nothing.
  """
  return _render(_HTML, title, comparison, pictures, escape=True)


def _render(
  template: str,
  title: str,
  comparison: Comparison,
  pictures: Sequence[Picture],
  *,
  escape: bool,
) -> str:
  environment = jinja2.Environment(
    autoescape=escape,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
  )
  shown = all_tables(comparison)
  runs = sum(len(group.runs) for group in comparison.groups)
  return environment.from_string(template).render(
    title=title,
    findings=findings(comparison),
    pictures=[
      (one, markupsafe.Markup(plotting.for_page(one))) for one in pictures
    ]
    if escape
    else [(one, '') for one in pictures],
    tables=shown,
    legend=_LEGEND,
    shared=[
      (run_groups.full_name(name), value)
      for name, value in comparison.shared.items()
    ],
    shared_heading='Settings' if runs == 1 else 'Settings of all runs',
    palette=plotting.PALETTE,
    ink=plotting.INK,
    quiet=plotting.QUIET,
    grid=plotting.GRID,
  )


def all_tables(comparison: Comparison) -> List[Tuple[str, tables.Table]]:
  """Builds every table for which the runs have data.

  Args:
    comparison: The runs.

  Returns:
    Headings and tables; of sweeps the best settings first.
  """
  best = best_settings.best_table(comparison)
  rates = best_settings.rate_table(comparison)
  repeated = tables.groups_table(comparison)
  shown = []
  if best is not None:
    shown.append(('The best setting of each kind of run', best))
  if rates is not None:
    shown.append(rates)
  if repeated is not None:
    shown.append(('Settings over their seeds', repeated))
  shown.append(('Runs', tables.runs_table(comparison)))
  implied = tables.implied_table(comparison)
  if implied is not None:
    shown.append(('Other settings in which the runs differ', implied))
  return shown


def _result(group: Group, unigram: float | None) -> str:
  """Says how well a group did."""
  known = best_settings.final_values(group)
  accuracy = tables.last_value(group, run_files.ACCURACY)
  if accuracy is not None and all(map(run_files.has_classes, group.runs)):
    return f'{group.label}: final validation accuracy {accuracy:.1%}.'
  if not known:
    if best_settings.num_diverged(group):
      return f'{group.label}: diverged.'
    return f'{group.label}: not evaluated yet.'
  mean = sum(known) / len(known)
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
  """Says how well the best setting of each kind of run did."""
  said = []
  for kind in best_settings.find_kinds(comparison):
    text = _result(kind.best, unigram)
    if len(kind.groups) > 1:
      text = f'Best of {len(kind.groups)} settings of {kind.label}: {text}'
    said.append(text)
  return said


def _task_sentences(comparison: Comparison) -> List[str]:
  tasks = [
    run.task for group in comparison.groups for run in group.runs if run.task
  ]
  if not tasks:
    return []
  facts = (
    ('num_train_clients', 'training clients'),
    ('num_validation_clients', 'validation clients'),
    ('num_validation_examples', 'validation sentences'),
    ('num_words', 'words in the vocabulary'),
  )
  task = tasks[0]
  known = [
    f'{tables.count(task[key])} {words}'
    for key, words in facts
    if isinstance(task.get(key), (int, float))
  ]
  text = f'Task {task.get("name", "without a name")}'
  said = [f'{text}: {", ".join(known)}.' if known else f'{text}.']
  keys = ['name', *(key for key, _ in facts)]
  if any(one.get(key) != task.get(key) for one in tasks for key in keys):
    said = [
      'The runs do not share one task and evaluation set, so their '
      'perplexities cannot be compared with one another.'
    ]
  return said
