"""Tables in Markdown, aligned for the terminal."""

from __future__ import annotations

from typing import List, Mapping, Sequence


def table(rows: Sequence[Mapping[str, str]]) -> List[str]:
  """Lays out a table.

  Args:
    rows: Cells by column. A row without a column leaves its cell empty.

  Returns:
    The lines.
  """
  header = list(dict.fromkeys(column for row in rows for column in row))
  grid = [header, *([row.get(column, '') for column in header] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*grid)]
  lines = [f'| {" | ".join(map(str.ljust, cells, widths))} |' for cells in grid]
  lines.insert(1, f'|{"|".join("-" * (width + 2) for width in widths)}|')
  return lines
