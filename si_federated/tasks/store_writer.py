"""Writes a token store in one streaming pass over the clients."""

from __future__ import annotations

import collections
import json
import logging
import os
from typing import Any, BinaryIO, Sequence

import numpy as np

from si_federated.tasks.token_arrays import ARRAY_TYPES, MAX_WORDS, UNLISTED

_LOGGER = logging.getLogger(__name__)
FORMAT_VERSION = 1
SPLITS = ('train', 'validation', 'test')
META_NAME, WORDS_NAME, COUNTS_NAME = 'meta.json', 'words.txt', 'word_counts.i8'
# Bytes of tokens ranked at a time; a multiple of the size of a uint32.
_CHUNK = 1 << 22


class StoreWriter:
  """Writes each client to disk as it is added.

  Without a list of words, words are ranked by the number of training clients
  that use them, ties by their UTF-8 bytes. Only the words, their counts and one
  client are in memory.

  Attributes:
    num_empty: Number of clients skipped because they have no sentences.
    notes: Additional counts to record in the store's metadata.
  """

  def __init__(self, folder: str, words: Sequence[str] | None):
    """Creates empty files in an existing folder."""
    self._folder = folder
    self._given = words
    self._ids: dict[bytes, int]
    if words is None:
      self._ids = collections.defaultdict(lambda: len(self._ids))
    else:
      listed = words[:MAX_WORDS]
      self._ids = {word.encode(): rank for rank, word in enumerate(listed)}
    self._counts = np.zeros([1024], np.int64)
    self._files: dict[str, list[BinaryIO]] = {}
    self._totals = {
      split: {'clients': 0, 'sentences': 0, 'words': 0} for split in SPLITS
    }
    self._id_bytes = dict.fromkeys(SPLITS, 0)
    self.num_empty = 0
    self.notes: dict[str, int] = {}
    self._added: list[str] = []
    zero = np.zeros([1], '<i8').tobytes()
    for split in SPLITS:
      os.mkdir(os.path.join(folder, split))
      # `close`, which every build calls, closes these files.
      self._files[split] = [
        open(os.path.join(folder, split, name), 'wb')  # noqa: SIM115
        for name in ARRAY_TYPES
      ]
      for name, file in zip(ARRAY_TYPES, self._files[split]):
        if 'offsets' in name:
          file.write(zero)

  def add_client(
    self, split: str, client_id: str, sentences: Sequence[bytes]
  ) -> None:
    """Appends a client, or only counts it if it has no sentences.

    Args:
      split: One of `SPLITS`.
      client_id: The client's name.
      sentences: UTF-8 words joined by single spaces. Consecutive spaces enclose
        an empty word, as in `tf.strings.split(sep=' ')`.
    """
    if not sentences:
      self.num_empty += 1
      return
    words = b' '.join(sentences).split(b' ')
    sizes = [sentence.count(b' ') + 1 for sentence in sentences]
    if self._given is None:
      ids = np.array([self._ids[word] for word in words], '<u4')
      if split == 'train':
        self._count(ids)
    else:
      get = self._ids.get
      ids = np.array([get(word, UNLISTED) for word in words], '<u2')
    self._append(split, client_id, ids, sizes)

  def add_ranks(
    self,
    split: str,
    client_id: str,
    ranks: np.ndarray,
    sizes: Sequence[int] | np.ndarray,
  ) -> None:
    """Appends a client whose sentences are already ranks of the given words.

    Args:
      split: One of `SPLITS`.
      client_id: The client's name.
      ranks: `[n]` concatenated ranks, `UNLISTED` for unlisted words.
      sizes: The number of ranks in each sentence.

    Raises:
      ValueError: The writer was created without a list of words.
    """
    if self._given is None:
      raise ValueError('Ranks need a list of words; give one to the store.')
    self._append(split, client_id, np.asarray(ranks, '<u2'), sizes)

  def add_file(self, name: str, content: bytes) -> None:
    """Adds a file called `name` to the store's folder."""
    with open(os.path.join(self._folder, name), 'wb') as file:
      file.write(content)
    self._added.append(name)

  def _append(
    self,
    split: str,
    client_id: str,
    ids: np.ndarray,
    sizes: Sequence[int] | np.ndarray,
  ) -> None:
    total = self._totals[split]
    name = client_id.encode()
    ends = np.cumsum(sizes, dtype='<i8') + total['words']
    total['words'] += len(ids)
    total['sentences'] += len(sizes)
    total['clients'] += 1
    self._id_bytes[split] += len(name)
    ids_end = np.array(self._id_bytes[split], '<i8')
    sentences_end = np.array(total['sentences'], '<i8')
    parts = (ids, ends, sentences_end)
    blocks = [*(part.tobytes() for part in parts), name, ids_end.tobytes()]
    for file, block in zip(self._files[split], blocks):
      file.write(block)

  def num_clients(self, split: str) -> int:
    """Returns the number of clients added to a split so far."""
    return self._totals[split]['clients']

  def _count(self, ids: np.ndarray) -> None:
    present = np.unique(ids)
    if present[-1] >= len(self._counts):
      counts = np.zeros([2 * int(present[-1]) + 1], np.int64)
      counts[: len(self._counts)] = self._counts
      self._counts = counts
    self._counts[present] += 1

  def finish(self, key: Any) -> None:
    """Ranks the words and writes the word list and metadata.

    Args:
      key: A JSON value that identifies the source of the store.
    """
    self.close()
    words, counts = self._given, None
    if words is None:
      words, counts = self._rank()
    with open(os.path.join(self._folder, WORDS_NAME), 'wb') as file:
      file.writelines(word.encode() + b'\n' for word in words[:MAX_WORDS])
    if counts is not None:
      with open(os.path.join(self._folder, COUNTS_NAME), 'wb') as file:
        file.write(counts.astype('<i8').tobytes())
    names = [WORDS_NAME] + ([COUNTS_NAME] if counts is not None else [])
    names += self._added
    names += [f'{split}/{name}' for split in SPLITS for name in ARRAY_TYPES]
    meta = {
      'format_version': FORMAT_VERSION,
      'key': key,
      'splits': self._totals,
      'num_empty_clients': self.num_empty,
      'notes': self.notes,
      'sizes': {
        name: os.path.getsize(os.path.join(self._folder, name))
        for name in names
      },
    }
    with open(
      os.path.join(self._folder, META_NAME), 'w', encoding='utf-8'
    ) as file:
      json.dump(meta, file, indent=1)

  def _rank(self) -> tuple[list[str], np.ndarray]:
    """Ranks the words and rewrites tokens as ranks, chunk by chunk."""
    counts = self._counts[: len(self._ids)]
    counts = np.pad(counts, (0, len(self._ids) - len(counts)))
    ranked = []
    garbled = 0
    for word, i in self._ids.items():
      # The word list is a UTF-8 file with one word per line.
      try:
        if counts[i] and word and not set(word) & {10, 13}:
          ranked.append((-int(counts[i]), word, i, word.decode()))
      except UnicodeDecodeError:
        garbled += 1
    if garbled:
      self.notes['words_not_utf8'] = garbled
      _LOGGER.warning(
        '%d words are not UTF-8 text, and will be unknown to every '
        'vocabulary: if they matter, convert the data to UTF-8.',
        garbled,
      )
    ranked.sort(key=lambda item: item[:2])
    del ranked[MAX_WORDS:]
    kept = np.array([item[2] for item in ranked], np.int64)
    ranks = np.full([len(self._ids)], UNLISTED, '<u2')
    ranks[kept] = np.arange(len(kept))
    for split in SPLITS:
      path = os.path.join(self._folder, split, next(iter(ARRAY_TYPES)))
      with open(path, 'rb') as source, open(path + '.new', 'wb') as target:
        while True:
          block = source.read(_CHUNK)
          if not block:
            break
          target.write(ranks[np.frombuffer(block, '<u4')].tobytes())
      os.replace(path + '.new', path)
    return [item[3] for item in ranked], counts[kept]

  def close(self) -> None:
    """Closes the files without completing the store."""
    for files in self._files.values():
      for file in files:
        file.close()
