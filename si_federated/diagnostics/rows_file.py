"""The file of a run's diagnostics: a line for each number."""

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
  """`diagnostics.csv` of a run's folder, in which rounds stand in order.

  Numbers have six digits: what differs in the last bit, as from one machine to
  another, is then the same.
  """

  def __init__(self, folder: Union[str, os.PathLike]):
    """Initializes the file; nothing is written yet.

    Args:
      folder: The run's folder.
    """
    self._path = os.path.join(os.fspath(folder), NAME)
    self._lines: list[str] = []

  def open(self, round_num: int) -> None:
    """Opens it to be continued after a round; later lines are dropped.

    Args:
      round_num: The round of the checkpoint that the run goes on from; -1 for
        a new run.
    """
    self._lines = [','.join(COLUMNS)]
    if os.path.exists(self._path):
      with open(self._path, newline='', encoding='utf-8') as file:
        for row in list(csv.reader(file))[1:]:
          if len(row) == len(COLUMNS) and int(row[0]) <= round_num:
            self._lines.append(','.join(row))
    self._write()

  def write(self, round_num: int, rows: Iterable[Row]) -> None:
    """Adds the lines of a round.

    Args:
      round_num: The round, later than all before.
      rows: Layer, quantity and value of each number.
    """
    self._lines += [
      f'{round_num},{layer},{quantity},{value:.6g}'
      for layer, quantity, value in rows
    ]
    self._write()

  def _write(self) -> None:
    files.write_atomically(self._path, '\n'.join(self._lines) + '\n')
