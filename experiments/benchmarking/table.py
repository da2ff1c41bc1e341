"""Plain-text tables."""

from __future__ import annotations

from typing import List, Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
  """Lays out a table in Markdown, its columns aligned for the terminal.

  Args:
    header: The columns' names.
    rows: The cells.

  Returns:
    The lines.
  """
  grid = [list(header), *map(list, rows)]
  widths = [max(map(len, column)) for column in zip(*grid)]

  def line(cells: Sequence[str]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths)]
    return f'| {" | ".join(padded)} |'

  return [
    line(grid[0]),
    f'|{"|".join("-" * (width + 2) for width in widths)}|',
    *map(line, grid[1:]),
  ]
