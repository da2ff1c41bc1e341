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

# Otherwise a package that TFF imports sets a lower level, which the binaries
# under test would inherit.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# Compiling small programs takes JAX much longer than running them.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

# With TensorFlow alone, only tests of layers, models and privacy run.
_HAS_TFF = importlib.util.find_spec('tensorflow_federated') is not None

# A shell's background jobs ignore Ctrl-C, and so would the programs under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


_ROOT = pathlib.Path(__file__).resolve().parents[1]


_CACHE = 'SI_FEDERATED_TESTS_CACHE'


def pytest_configure(config):
  """Gives the session its own cache, to keep tests out of the user's.

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
  """Excludes objects that live until the end from garbage collection.

  Most objects belong to TensorFlow's modules. Tracing makes so many more that
  Python would visit all of them every few seconds.
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
  """Avoids TFF's default context, whose worker outlives the tests.

  The worker would keep the pipe of their output open, so that a reader would
  wait forever.
  """
  if _HAS_TFF:
    # Imported here, so that the controller of parallel tests does not load it.
    from si_federated import runtime

    runtime.set_local_context()


@pytest.fixture(autouse=True, scope='module')
def _drop_gradients():
  """Frees the graphs that a module's tests have differentiated.

  TensorFlow registers the gradients of differentiated functions and of custom
  gradients in graphs, and never removes them. They keep the graphs alive:
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
  """Changes to a folder from which examples can read `experiments/`.

  Afterwards, removes the parts that an example registered, and restores the
  tests' own runtime.
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
