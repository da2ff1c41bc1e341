"""The sentences of a split as memory-mapped arrays of word ranks."""

from __future__ import annotations

import dataclasses
import os
from typing import Mapping, Sequence

import numpy as np

# The rank of all unlisted words; ranks 0..65,533 are listed words.
UNLISTED = 65_535
MAX_WORDS = 65_534

# The files of a split, in the order of the fields of `TokenArrays`, and their
# dtypes.
ARRAY_TYPES: Mapping[str, str] = {
  'tokens.u2': '<u2',
  'sentence_offsets.i8': '<i8',
  'client_offsets.i8': '<i8',
  'client_ids.bin': '|u1',
  'client_id_offsets.i8': '<i8',
}


@dataclasses.dataclass(frozen=True)
class TokenArrays:
  """The concatenated sentences of a split, grouped by client.

  Attributes:
    tokens: `[words]` uint16, frequency rank of each word, 0 for the most
      frequent and `UNLISTED` for unlisted words.
    sentence_offsets: `[sentences + 1]` int64, starts of sentences in `tokens`.
    client_offsets: `[clients + 1]` int64, index of each client's first
      sentence.
    client_ids: `[bytes]` uint8, the concatenated client names in UTF-8.
    client_id_offsets: `[clients + 1]` int64, starts of names in `client_ids`.
    folder: The folder of memory-mapped arrays; None for arrays in memory.
  """

  tokens: np.ndarray
  sentence_offsets: np.ndarray
  client_offsets: np.ndarray
  client_ids: np.ndarray
  client_id_offsets: np.ndarray
  folder: str | None = None

  @classmethod
  def map_folder(cls, folder: str) -> TokenArrays:
    """Memory-maps the files of one split."""
    arrays: dict[str, np.ndarray] = {}
    for name, kind in ARRAY_TYPES.items():
      path = os.path.join(folder, name)
      field = name.partition('.')[0]
      if os.path.getsize(path):
        arrays[field] = np.memmap(path, dtype=kind, mode='r')
      else:  # An empty file cannot be mapped.
        arrays[field] = np.empty([0], kind)
    return cls(
      arrays['tokens'],
      arrays['sentence_offsets'],
      arrays['client_offsets'],
      arrays['client_ids'],
      arrays['client_id_offsets'],
      folder,
    )

  @classmethod
  def from_clients(
    cls, clients: Mapping[str, Sequence[Sequence[int]]]
  ) -> TokenArrays:
    """Returns in-memory arrays from client name -> sentences of ranks."""
    names = [name.encode() for name in clients]
    groups = list(clients.values())
    sentences = [sentence for group in groups for sentence in group]

    def offsets(parts):
      return np.cumsum([0, *map(len, parts)], dtype=np.int64)

    tokens = [np.asarray(s, dtype=np.uint16) for s in sentences]
    return cls(
      tokens=np.concatenate([np.empty([0], np.uint16), *tokens]),
      sentence_offsets=offsets(sentences),
      client_offsets=offsets(groups),
      client_ids=np.frombuffer(b''.join(names), np.uint8),
      client_id_offsets=offsets(names),
    )

  def __reduce__(self):
    # Pickle mapped arrays by their folder's name.
    if self.folder is not None:
      return TokenArrays.map_folder, (self.folder,)
    return TokenArrays, tuple(
      getattr(self, field.name) for field in dataclasses.fields(self)
    )
