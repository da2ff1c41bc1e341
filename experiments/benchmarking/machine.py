"""What the machine and its software are."""

from __future__ import annotations

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
  """Returns the most memory that this process has had, in bytes."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak * (1 if sys.platform == 'darwin' else 1024)


def resident_memory() -> int:
  """Returns the memory that this process has now, or has had at most."""
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
