"""Makes a report from run folders: tables, figures, one page to share.

  python -m experiments.report --runs=runs
  python -m experiments.report --runs=runs/cifg --runs=runs/si_cifg

It reads everything that training has written so far, so it can run at any time.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags as absl_flags

from si_federated import config, flags, reporting

_RUNS = absl_flags.DEFINE_multi_string(
  'runs',
  None,
  'Run folders, or a folder whose children are run folders, separated by '
  'commas or spaces.',
)
_OUTPUT = absl_flags.DEFINE_string(
  'output',
  None,
  'Folder to write the report to. Default: the folder "report" next to the '
  'runs.',
)
_TITLE = absl_flags.DEFINE_string(
  'title', 'Federated training report', 'Heading of the report.'
)


def main(arguments: Sequence[str]) -> None:
  """Writes the report and prints its tables and the files' paths."""
  # Positional arguments are folders, too, so that --runs runs/* works.
  paths = [
    config.expand_path(path)
    for path in (*_split(_RUNS.value or []), *arguments)
  ]
  if not paths:
    raise config.ConfigError(
      'Flag --runs is missing: name run folders or a folder of them.'
    )
  folders = reporting.find_runs(paths)
  comparison = reporting.compare([reporting.read_run(one) for one in folders])
  output = _OUTPUT.value or reporting.default_output(folders)
  written = reporting.write_report(comparison, output, _TITLE.value)
  for _, table in reporting.all_tables(comparison):
    print(table.as_text(), end='\n\n')
  for path in written:
    print(path)


def _split(values: Sequence[str]) -> list[str]:
  paths: list[str] = []
  for value in values:
    if pathlib.Path(value).exists():
      paths.append(value)
    else:
      paths.extend(part for part in value.split(',') if part)
  return paths


def run() -> None:
  """Runs the binary."""
  flags.run_main(main, arguments=True)


if __name__ == '__main__':
  run()
