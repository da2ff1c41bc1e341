"""Keeps freed memory for the next training step."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
  """Makes this process's allocator keep large blocks instead of freeing them.

  A step allocates and frees arrays of the model's size. By default the C
  library returns each to the operating system, and the kernel clears its pages
  again, which takes a fifth of a step with four million weights. A single pool
  that is never trimmed avoids this, and takes less memory than a pool per
  thread. Call it before threads are started.

  Returns:
    Whether it took effect; only the GNU C library supports it.
  """
  if sys.platform != 'linux':
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except AttributeError:
    return False
  mallopt(_ARENA_MAX, 1)
  mallopt(_TRIM_THRESHOLD, _LARGEST)
  # Older releases of the library accept at most 32 MiB.
  return bool(
    mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_THRESHOLD, 2**25)
  )
