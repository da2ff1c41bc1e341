"""Starts Ray on this machine or joins a cluster, and leaves it at exit."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator

import ray
import ray._private.services
import tensorflow as tf

from si_federated.runtime import child_processes

_ENVIRONMENT = {
  # Where /dev/shm is small, objects go to /tmp instead of raising an error.
  'RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE': '1',
  # Otherwise Ray warns after half a minute that nobody collects its metrics;
  # there is no other way to turn this off.
  'RAY_BACKEND_LOG_LEVEL': 'fatal',
}

# The limit of a socket's path, less the name that Ray adds to the folder.
_MAX_FOLDER = 107 - len(
  '/ray/session_2026-11-28_07-42-51_468236_4194304/sockets/plasma_store'
)
_SHORT_FOLDER = '/tmp'

# The cluster that `connect` started ('local') or joined, if any.
_address: str | None = None
_processes = child_processes.MarkedProcesses()


def connect(num_cpus: int, address: str | None) -> None:
  """Starts Ray on this machine, or joins a cluster.

  Args:
    num_cpus: How many actors a cluster started here can run.
    address: See `runtime.set_ray_context`.

  Raises:
    ValueError: If no cluster answers, or this process is in another one.
  """
  global _address
  # No usage reports to Ray's authors.
  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
  if ray.is_initialized():
    if _address is None:
      if address not in (None, 'auto'):
        raise ValueError(
          f'address={address!r}: this process is connected to a Ray cluster '
          'already; call ray.shutdown() first.'
        )
      return
    if _address == (address or 'local') and (
      address is not None or ray.cluster_resources().get('CPU', 0) >= num_cpus
    ):
      return
    _shut_down()
  with warnings.catch_warnings(), _keep_sigterm():
    warnings.simplefilter('ignore')
    if address is None:
      _start(num_cpus)
    else:
      ray.init(
        _reachable(address), log_to_driver=False, logging_level=logging.ERROR
      )
  _address = address or 'local'
  # Before Ray's own handler, which was registered when Ray was imported.
  atexit.unregister(_shut_down)
  atexit.register(_shut_down)


def _choose_folder() -> None:
  """Chooses a folder whose path is short enough for Ray's sockets.

  Raises:
    ValueError: If the path of the folder that the user chose is too long.
  """
  variable = 'RAY_TMPDIR' if 'RAY_TMPDIR' in os.environ else 'TMPDIR'
  folder = os.environ.get(variable, _SHORT_FOLDER)
  if len(os.fsencode(folder)) <= _MAX_FOLDER:
    return
  if variable == 'RAY_TMPDIR' or not os.access(_SHORT_FOLDER, os.W_OK):
    raise ValueError(
      f"{variable}={folder} is too long for Ray's sockets; set RAY_TMPDIR to a "
      f'folder whose path has at most {_MAX_FOLDER} bytes.'
    )
  os.environ['RAY_TMPDIR'] = _SHORT_FOLDER


def _start(num_cpus: int) -> None:
  _choose_folder()
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  with child_processes.silence(), _processes.mark():
    ray.init(
      'local',
      num_cpus=num_cpus,
      num_gpus=len(tf.config.list_physical_devices('GPU')),
      include_dashboard=False,
      log_to_driver=False,
      logging_level=logging.ERROR,
    )


def _reachable(address: str) -> str:
  """Returns HOST:PORT of a cluster; `ray.init` exits if none answers."""
  if address.startswith('ray://'):
    raise ValueError(
      f'address={address!r} is of Ray Client; give the HOST:PORT of the '
      "cluster's head, or auto on one of its nodes."
    )
  try:
    found = ray._private.services.canonicalize_bootstrap_address(address)
    host, _, port = str(found).rpartition(':')
    socket.create_connection((host.strip('[]'), int(port)), timeout=10).close()
  except (OSError, ValueError) as error:
    raise ValueError(
      f'No Ray cluster answers at address={address!r}; start one with '
      '`ray start --head`.'
    ) from error
  return str(found)


@contextlib.contextmanager
def _keep_sigterm() -> Iterator[None]:
  """Keeps the program's handler of SIGTERM; without one, SIGTERM exits.

  Exit handlers then end Ray's processes. Ray's own handler would abort.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.getsignal(signal.SIGTERM)
  try:
    yield
  finally:
    signal.signal(
      signal.SIGTERM,
      before
      if callable(before) or before is signal.SIG_IGN
      else lambda signum, _: sys.exit(128 + signum),
    )


def _shut_down() -> None:
  """Leaves the cluster, and ends it if it was started here."""
  global _address
  _address = None
  ray.shutdown()
  # `ray.shutdown` does not wait for the last of its processes.
  _processes.end()
