"""Writes the files of a report on runs."""

from __future__ import annotations

import os
import pathlib
from typing import Dict, List, Sequence, Union

from si_federated import files
from si_federated.reporting import (
  diagnostics_section,
  figures,
  page,
  privacy_card,
)
from si_federated.reporting.run_groups import Comparison


def write_report(
  comparison: Comparison,
  output: Union[str, pathlib.Path],
  title: str,
) -> List[pathlib.Path]:
  """Writes `report.html`, `report.md` and the figures as PNG and SVG.

  For private runs, `privacy.html` and `privacy.md` are their report cards.

  All contents are computed before the first file is touched; each file is
  written under a temporary name and renamed.

  Args:
    comparison: The runs.
    output: Folder to write to; created if missing.
    title: The report's heading.

  Returns:
    The files written, `report.html` first.

  Raises:
    OSError: If a file can't be written.
    ValueError: If a run's `privacy.json` can't be understood.
  """
  pictures = figures.draw_all(comparison) + diagnostics_section.draw(comparison)
  cards = privacy_card.build(comparison)
  contents: Dict[str, bytes] = {
    'report.html': page.html(title, comparison, pictures).encode(),
    'report.md': page.markdown(title, comparison, pictures).encode(),
  }
  if cards:
    heading = f'{title}: privacy'
    contents['privacy.html'] = privacy_card.html(heading, cards).encode()
    contents['privacy.md'] = privacy_card.markdown(heading, cards).encode()
    pictures += [card.picture for card in cards if card.picture]
  for picture in pictures:
    contents[f'{picture.name}.png'] = picture.png
    contents[f'{picture.name}.svg'] = picture.svg.encode()
  paths = {name: pathlib.Path(output) / name for name in contents}
  for name, data in contents.items():
    files.write_atomically(paths[name], data)
  return list(paths.values())


def default_output(runs: Sequence[pathlib.Path]) -> pathlib.Path:
  """Returns the folder `report` next to the runs.

  Args:
    runs: The run folders, at least one.
  """
  parents = {str(run.parent) for run in runs}
  return pathlib.Path(os.path.commonpath(sorted(parents))) / 'report'
