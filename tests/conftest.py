"""Fixtures of all tests."""

from __future__ import annotations

import gc
import importlib.util
import os
import pathlib
import shutil
import signal
import tempfile

import pytest

# Else a package that TFF imports sets it to a lower one, which the binaries
# under test would inherit.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

# With TensorFlow alone, only tests of layers, models and privacy run.
_HAS_TFF = importlib.util.find_spec('tensorflow_federated') is not None

# A shell's background jobs ignore Ctrl-C, and so would the programs under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


_ROOT = pathlib.Path(__file__).resolve().parents[1]


_CACHE = 'SI_FEDERATED_TESTS_CACHE'


def pytest_configure(config):
  """Gives the session a cache of its own: the user's would fill with tests'.

  Programs under test and pytest-xdist's workers inherit it.
  """
  if _CACHE not in os.environ:
    config.own_cache = tempfile.mkdtemp(prefix='si_federated-tests-')
    os.environ[_CACHE] = os.environ['XDG_CACHE_HOME'] = config.own_cache


def pytest_unconfigure(config):
  """Removes the session's cache."""
  if hasattr(config, 'own_cache'):
    shutil.rmtree(config.own_cache, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
  """Keeps the garbage collector from what lives until the end.

  TensorFlow's modules are most of the objects, and tracing makes so many more
  that Python would visit them all every few seconds.
  """
  gc.disable()
  try:
    return (yield)
  finally:
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 5, 5)
    gc.enable()


@pytest.fixture(autouse=True, scope='session')
def _local_runtime():
  """Keeps TFF from its default: a worker that outlives the tests.

  It would hold their output's pipe, and whoever reads that would wait forever.
  """
  if _HAS_TFF:
    # Not above, where the controller of parallel tests would load it, too.
    from si_federated import runtime

    runtime.set_local_context()


@pytest.fixture(autouse=True, scope='module')
def _drop_gradients():
  """Frees the graphs that a module's tests have differentiated.

  TensorFlow registers the gradient of each differentiated function, and of each
  custom gradient in a graph, never removes it, and so keeps the graphs:
  gigabytes over a few hundred tests.
  """
  from tensorflow.python.framework import ops

  registry = ops.gradient_registry._registry
  before = set(registry)
  yield
  for name in set(registry) - before:
    if name.startswith(('CustomGradient-', 'PartitionedCall-')):
      del registry[name]


@pytest.fixture
def checkout_like_folder(tmp_path, monkeypatch):
  """A current folder from which examples can read `experiments/`.

  Parts that an example registers are removed afterwards, and the runtime that
  it set is replaced by the tests' own.
  """
  from si_federated import aggregators, algorithms, models, runtime, tasks

  (tmp_path / 'experiments').symlink_to(_ROOT / 'experiments')
  monkeypatch.chdir(tmp_path)
  registries = [
    aggregators.AGGREGATORS,
    algorithms.ALGORITHMS,
    models.MODELS,
    models.TRANSFORMS,
    tasks.TASKS,
  ]
  kept = [dict(registry) for registry in registries]
  yield tmp_path
  for registry, before in zip(registries, kept):
    registry.clear()
    registry.update(before)
  runtime.set_local_context()
