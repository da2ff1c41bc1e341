"""The file of a run's diagnostics: a row for each number."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from typing import Union

from si_federated import files
from si_federated.diagnostics.quantities import Row

NAME = 'diagnostics.csv'
COLUMNS = ('round_num', 'layer', 'quantity', 'value')


class DiagnosticsFile:
  """`diagnostics.csv` in a run's folder, in the order of rounds.

  Numbers are rounded to six digits, which hides differences between machines in
  the last bits.
  """

  def __init__(self, folder: Union[str, os.PathLike]):
    """Initializes the file; nothing is written yet.

    Args:
      folder: The run's folder.
    """
    self._path = os.path.join(os.fspath(folder), NAME)

  def open(self, round_num: int) -> None:
    """Opens the file to continue it after a round, and removes later rows.

    Args:
      round_num: The round of the checkpoint; -1 for a new run.
    """
    lines = [','.join(COLUMNS)]
    if os.path.exists(self._path):
      for row in list(csv.reader(files.whole_lines(self._path)))[1:]:
        if len(row) == len(COLUMNS) and int(row[0]) <= round_num:
          lines.append(','.join(row))
    files.write_atomically(self._path, '\n'.join(lines) + '\n')

  def write(self, round_num: int, rows: Iterable[Row]) -> None:
    """Adds the rows of a round.

    Args:
      round_num: The round, later than all others.
      rows: Layer, quantity and value of each number.
    """
    lines = [
      f'{round_num},{layer},{quantity},{value:.6g}\n'
      for layer, quantity, value in rows
    ]
    files.append(self._path, ''.join(lines))
