"""Keras 2 as `tf.keras`, which is Keras 3 from TensorFlow 2.16 on.

Imported before all layers. TensorFlow reads the environment variable
`TF_USE_LEGACY_KERAS` not when it is imported, but when `tf.keras` is first
used, so there is time to set it even if TensorFlow is imported already.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
from typing import Any

import tensorflow as tf

_SWITCH = 'TF_USE_LEGACY_KERAS'
_PACKAGE = 'tf_keras'


def choose(tensorflow: Any) -> None:
  """Makes `tf.keras` Keras 2, from the package tf_keras, if it isn't yet.

  Args:
    tensorflow: The package; before 2.16 it needs nothing.

  Raises:
    ImportError: If tf_keras is not installed, or `tf.keras` is Keras 3 already.
  """
  major, minor = map(int, tensorflow.__version__.split('.')[:2])
  if (major, minor) < (2, 16):
    return
  found = importlib.util.find_spec(_PACKAGE)
  if found is None or found.origin is None:
    raise ImportError(
      'si_federated.layers needs Keras 2, which TensorFlow '
      f'{tensorflow.__version__} leaves to a package of its own: install it by '
      f"pip install '{_PACKAGE}=={major}.{minor}.*'."
    )
  before = os.environ.get(_SWITCH)
  # Kept for the processes that this one starts.
  os.environ.setdefault(_SWITCH, '1')
  others = [sys.modules.get(f'{tensorflow.__name__}.keras'), tensorflow.keras]
  for keras in others:
    if keras and not keras.layers.Layer.__module__.startswith(_PACKAGE):
      if before is None:
        del os.environ[_SWITCH]
      raise ImportError(
        'si_federated.layers needs Keras 2, but tf.keras is Keras 3 in this '
        f'process: set {_SWITCH}=1 before Python starts, or import '
        'si_federated.layers before anything uses tf.keras.'
      )
  # For `from tensorflow.keras import layers`: TensorFlow looks there since its
  # own import if the variable was set by then.
  folder = str(pathlib.Path(found.origin).parent / 'api' / '_v2')
  if folder not in tensorflow.__path__:
    tensorflow.__path__.insert(0, folder)


choose(tf)
