"""Keeps the memory that a step frees for the next one."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
  """Makes this process's allocator reuse large blocks rather than return them.

  A step allocates and frees arrays of the model's size. The C library takes
  each from the operating system and gives it back, and the kernel clears every
  page again: a fifth of the time of a step of four million weights. One pool
  for all threads, never trimmed, avoids that and holds less in all than a pool
  a thread. Call it before threads are started.

  Returns:
    Whether it took effect: with the GNU C library only.
  """
  if sys.platform != 'linux':
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except AttributeError:
    return False
  mallopt(_ARENA_MAX, 1)
  mallopt(_TRIM_THRESHOLD, _LARGEST)
  # Older releases of the library refuse more than 32 MiB.
  return bool(
    mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_THRESHOLD, 2**25)
  )
