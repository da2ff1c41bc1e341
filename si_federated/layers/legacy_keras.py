"""The Keras that the layers build on: Keras 2 if possible, else Keras 3.

From TensorFlow 2.16 on, `tf.keras` is Keras 3 unless the environment variable
`TF_USE_LEGACY_KERAS` selects Keras 2, from the package tf_keras. TensorFlow
reads the variable when `tf.keras` is first used, so that it can be set after
TensorFlow's import.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
from typing import Any, Dict

import tensorflow as tf

_SWITCH = 'TF_USE_LEGACY_KERAS'
_PACKAGE = 'tf_keras'


def _is_keras_2(keras: Any) -> bool:
  return keras.layers.Layer.__module__.startswith(_PACKAGE)


def choose(tensorflow: Any) -> bool:
  """Makes `tf.keras` Keras 2, unless there is none or Keras 3 is in use.

  Args:
    tensorflow: The package; releases before 2.16 need no switch.

  Returns:
    Whether `tf.keras` is Keras 3.
  """
  if tuple(map(int, tensorflow.__version__.split('.')[:2])) < (2, 16):
    return False
  package = importlib.util.find_spec(_PACKAGE)
  imported = sys.modules.get(f'{tensorflow.__name__}.keras')
  chosen = _SWITCH in os.environ
  if package and not chosen and not (imported and not _is_keras_2(imported)):
    # Kept for the processes that this one starts.
    os.environ[_SWITCH] = '1'
  if not _is_keras_2(tensorflow.keras):
    if not chosen:
      os.environ.pop(_SWITCH, None)
    return True
  # For `from tensorflow.keras import layers`: TensorFlow looks there since its
  # own import if the variable was set by then.
  assert package and package.origin, 'It was imported.'
  folder = str(pathlib.Path(package.origin).parent / 'api' / '_v2')
  if folder not in tensorflow.__path__:
    tensorflow.__path__.insert(0, folder)
  return False


IS_KERAS_3 = choose(tf)

# Other generators of Keras 2 have a variable, which a model with plain tensors
# as weights can't have. Keras 3 has no choice.
STATEFUL_GENERATOR: Dict[str, Any] = (
  {} if IS_KERAS_3 else {'rng_type': 'legacy_stateful'}
)


def check_keras_2(user: str) -> None:
  """Raises if `tf.keras` is Keras 3.

  Args:
    user: The name of whatever needs Keras 2, for the message.

  Raises:
    ValueError: If it is Keras 3.
  """
  if IS_KERAS_3:
    raise ValueError(
      f'{user} needs Keras 2, but tf.keras is Keras 3 in this process: install '
      f'the package {_PACKAGE} in the same version as TensorFlow, and set '
      f'{_SWITCH}=1 before Python starts.'
    )
