"""Facts about the machine, its software and memory."""

from __future__ import annotations

import ctypes
import datetime
import importlib.metadata
import os
import platform
import resource
import sys
from typing import Any, Dict

_PACKAGES = (
  'si_federated',
  'tensorflow',
  'tensorflow-federated',
  'numpy',
  'ray',
)


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'not installed'


def _field(path: str, name: str) -> str:
  """Returns the first value of `name : value` in a file of /proc."""
  try:
    with open(path, encoding='utf-8') as file:
      for line in file:
        key, _, value = line.partition(':')
        if key.strip() == name:
          return value.strip()
  except OSError:
    pass
  return 'unknown'


def peak_memory() -> int:
  """Returns the peak memory of this process, in bytes."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak * (1 if sys.platform == 'darwin' else 1024)


def reset_peak_memory() -> bool:
  """Resets the peak memory of this process, if Linux allows it.

  Free memory that still belongs to the process is released first.

  Returns:
    Whether `peak_memory_since_reset` will return the peak since this call.
  """
  try:
    ctypes.CDLL('libc.so.6').malloc_trim(0)
    with open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
      file.write('5')
  except (OSError, AttributeError):
    return False
  return True


def peak_memory_since_reset() -> int:
  """Returns the peak memory since `reset_peak_memory`, in bytes."""
  value = _field('/proc/self/status', 'VmHWM').split()[0]
  return int(value) * 1024 if value.isdigit() else peak_memory()


def resident_memory() -> int:
  """Returns the memory of this process now, or its peak if unknown."""
  try:
    with open('/proc/self/statm', encoding='ascii') as file:
      return int(file.read().split()[1]) * resource.getpagesize()
  except OSError:
    return peak_memory()


def facts() -> Dict[str, Any]:
  """Returns the processor, the cores of this process, memory and versions."""
  flags = _field('/proc/cpuinfo', 'flags').split()
  return {
    'date': datetime.datetime.now(datetime.timezone.utc).isoformat(
      timespec='seconds'
    ),
    'cpu': _field('/proc/cpuinfo', 'model name'),
    'vector_units': [
      name
      for name in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16')
      if name in flags
    ],
    'cores': len(os.sched_getaffinity(0)),
    'memory': _field('/proc/meminfo', 'MemTotal'),
    'load_before': os.getloadavg()[0],
    'platform': platform.platform(),
    'python': platform.python_version(),
    'packages': {name: _version(name) for name in _PACKAGES},
  }
